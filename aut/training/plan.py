"""Plan: which positions of the order each optimiser step takes, and its learning rate. Arithmetic, no state.

Step k of S takes positions [floor(k N / S), floor((k + 1) N / S)) of N. The adapted arm has N = B S. The control has
the smallest N whose valid audio seconds reach the adapted arm's, so that both arms do as many steps on as much audio:
speech clips last longer or shorter than captions' clips, and equal counts would not be equal exposure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aut.config import Schedule
from aut.errors import ConfigError

if TYPE_CHECKING:
    from aut.training.kept import Kept


BLOCK = 1 << 16  # positions asked for at once


@dataclass(frozen=True)
class Plan:
    """`clips` positions over `steps` optimiser steps."""

    steps: int
    clips: int

    def positions(self, step: int) -> NDArray[np.int64]:
        """Positions of optimiser step `step`, counted from 0."""
        return np.arange(step * self.clips // self.steps, (step + 1) * self.clips // self.steps, dtype=np.int64)


def plan(schedule: Schedule, length: int) -> Plan:
    """`schedule.batch` clips a step; `length` is the rows of one epoch, for schedules given in epochs."""
    steps = schedule.steps or math.floor((schedule.epochs or 0.0) * length / schedule.batch)
    if steps < 1:
        raise ConfigError(
            f"{length} rows and {schedule.epochs} epochs make no step of {schedule.batch} clips",
            "give more epochs or a smaller batch",
        )
    return Plan(steps, steps * schedule.batch)


def matched(full: Plan, all_rows: Kept, own_rows: Kept, max_s: float) -> Plan:
    """The plan over `own_rows` with as many steps, and at least as many valid seconds, as `full` over `all_rows`."""
    wanted_s = seconds(all_rows, full.clips, max_s)
    reached_s, start = 0.0, 0
    block = min(BLOCK, full.clips)  # of like size: a small set would be gone through many times for nothing
    while True:
        block_s = np.minimum(own_rows.seconds(np.arange(start, start + block, dtype=np.int64)), max_s)
        total_s = reached_s + np.cumsum(block_s)
        if total_s[-1] >= wanted_s:
            clips = start + int(np.searchsorted(total_s, wanted_s, side="left")) + 1
            return Plan(full.steps, max(clips, full.steps))
        reached_s, start = float(total_s[-1]), start + block


def seconds(order: Kept, clips: int, max_s: float) -> float:
    """Valid audio seconds of the first `clips` positions, each clip cut at `max_s`."""
    total_s = 0.0
    for start in range(0, clips, BLOCK):
        positions = np.arange(start, min(start + BLOCK, clips), dtype=np.int64)
        total_s += float(np.cumsum(np.minimum(order.seconds(positions), max_s))[-1])
    return total_s


def learning_rate(schedule: Schedule, step: int, steps: int) -> float:
    """Linear warm-up from lr / warm-up steps to lr, then half a cosine down to zero at `steps`."""
    warmup = round(schedule.warmup_fraction * steps)
    if step < warmup:
        return schedule.lr * (step + 1) / warmup
    return schedule.lr * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
