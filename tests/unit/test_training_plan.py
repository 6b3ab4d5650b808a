"""Steps as arithmetic: positions, learning rate, arms matched in steps and in audio."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aut.config import Schedule
from aut.training.groups import divide
from aut.training.plan import Plan, learning_rate, matched, seconds
from aut.training.sizes import Sizes


def schedule(**changes):
    values = {
        "steps": 10, "epochs": None, "batch": 4, "lr": 1e-3, "warmup_fraction": 0.2, "weight_decay": 0.0,
        "betas": (0.9, 0.999), "clip_norm": None,
    }  # fmt: skip
    return Schedule(**(values | changes))


class Durations:
    """An order of which only durations are asked."""

    def __init__(self, seconds_P):
        self._seconds_P = np.asarray(seconds_P)

    def seconds(self, positions):
        return self._seconds_P[positions % len(self._seconds_P)]


@given(st.integers(1, 50), st.integers(0, 500))
def test_steps_take_every_position_once(steps, more):
    plan = Plan(steps, steps + more)
    taken = np.concatenate([plan.positions(k) for k in range(steps)])
    assert taken.tolist() == list(range(plan.clips))
    sizes = {len(plan.positions(k)) for k in range(steps)}
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.1, 40.0), min_size=1, max_size=30), st.lists(st.floats(0.1, 40.0), min_size=1, max_size=30))
def test_the_control_has_as_many_seconds_and_not_a_clip_more(all_s, own_s):
    mixture, speech, full = Durations(all_s), Durations(own_s), Plan(3, 12)
    own = matched(full, mixture, speech, max_s=30.0)
    wanted_s = seconds(mixture, full.clips, 30.0)
    assert own.steps == full.steps
    assert seconds(speech, own.clips, 30.0) >= wanted_s * (1 - 1e-12)
    # Sums over other blocks differ in their last bits, on this side as on the other.
    assert own.clips == full.steps or seconds(speech, own.clips - 1, 30.0) < wanted_s * (1 + 1e-12)


def test_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(schedule(), k, 10) for k in range(10)]
    assert rates[:2] == pytest.approx([0.5e-3, 1e-3])
    assert rates[2] == pytest.approx(1e-3)
    assert all(a > b for a, b in itertools.pairwise(rates[2:]))
    assert learning_rate(schedule(), 10, 10) == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.05, 30.0), min_size=4, max_size=40), st.floats(1.0, 100.0), st.integers(1, 4))
def test_every_process_has_the_same_number_of_micro_batches(durations, budget_s, world):
    groups = divide(durations, Sizes(budget_s), world)
    assert sorted(i for g in groups for i in g) == list(range(len(durations)))
    for group in groups:
        assert all(group[rank::world] for rank in range(world))
    longest_first = [durations[i] for g in groups for i in g]
    assert longest_first == sorted(durations, reverse=True)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.05, 30.0), min_size=2, max_size=9),
    st.floats(1.0, 100.0),
    st.floats(0.0, 30.0),
    st.integers(1, 2),
)
def test_a_step_is_divided_at_the_least_cost(durations, budget_s, launch_s, world):
    sizes = Sizes(budget_s, pace=[(x, launch_s + x) for x in (1e-9, 1e9)])
    rounds = len(durations) // world
    longest = sorted(durations, reverse=True)

    def cost(cuts):
        ends = [0, *cuts, rounds]
        clips = [b - a + (b == rounds and len(durations) % world > 0) for a, b in itertools.pairwise(ends)]
        begin = [longest[a * world] for a in ends[:-1]]
        if any(n > sizes(s) and b - a > 1 for n, s, (a, b) in zip(clips, begin, itertools.pairwise(ends), strict=True)):
            return float("inf")
        return sum(launch_s + n * s for n, s in zip(clips, begin, strict=True))

    ways = [cuts for n in range(rounds) for cuts in itertools.combinations(range(1, rounds), n)]
    groups = divide(durations, sizes, world)
    ends = list(itertools.accumulate(len(g) // world for g in groups[:-1]))
    assert cost(ends) == pytest.approx(min(map(cost, ways)), rel=1e-6)
