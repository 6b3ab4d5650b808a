"""Micro-batches that fit: found by trying, remembered, split where they do not; the step stays the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aut.contracts import Silent
from aut.errors import ConfigError
from aut.files import read_json
from aut.training import sizes as module
from aut.training.augment import Augment
from aut.training.data import IGNORED
from aut.training.engine import Engine
from aut.training.job import execute
from aut.training.model import Captioner
from aut.training.sizes import EDGES_S, Budget, Searched, largest, micro_sizes, search
from aut.training.trial import Trial, reserve_b, silence
from tests.unit.test_training_model import examples
from tests.unit.training_case import curve, job_of, settings, whisper_of, write_case


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return write_case(tmp_path_factory.mktemp("case"))


class Gpu:
    """A memory of so many seconds of audio, and a fixed cost a clip; counts what is tried."""

    def __init__(self, seconds):
        self.seconds, self.tried = seconds, []

    def __call__(self, clips, seconds):
        self.tried.append((clips, seconds))
        return clips * (seconds + 0.5) <= self.seconds


@given(st.floats(40.0, 5000.0), st.integers(1, 200))
def test_what_is_found_fits_and_is_nearly_all_that_does(memory_s, most):
    gpu = Gpu(memory_s)
    found = search(gpu, most)
    for clips, edge_s in zip(found, EDGES_S, strict=True):
        assert 1 <= clips <= most
        assert clips == 1 or gpu(clips, edge_s)
        could = min(most, int(memory_s // (edge_s + 0.5)))
        assert clips >= 0.75 * could - 1
    assert found == sorted(found, reverse=True)
    assert len(gpu.tried) < 12 * len(EDGES_S) + 20


def test_where_a_whole_share_of_the_longest_fits_nothing_more_is_tried():
    gpu = Gpu(1e9)
    assert search(gpu, 16) == [16] * len(EDGES_S)
    assert len(gpu.tried) == 2
    assert largest(lambda n: n <= 1, 1, 1000) == 1


def test_padded_clips_all_cost_the_same():
    assert search(Gpu(305.0), 64, alike=True) == [9] * len(EDGES_S)


def test_a_device_too_small_for_one_clip_is_named():
    with pytest.raises(ConfigError, match=r"one clip of 30 s does not fit.*activation_checkpointing"):
        search(Gpu(20.0), 16)


def test_the_search_is_run_once_and_remembered(case, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("AUT_MICRO_S", raising=False)
    made = []
    monkeypatch.setattr("aut.training.trial.Trial", lambda *_: made.append(Gpu(305.0)) or made[-1])
    model, gpu = Captioner(whisper_of(case), settings(), Augment(settings(), 0)), torch.device("meta")
    work = tmp_path / "job"
    first = micro_sizes(model, gpu, settings(), 64, 1, work)
    assert "that fit meta" in capsys.readouterr().err
    again = micro_sizes(model, gpu, settings(), 64, 1, work)
    assert len(made) == 1
    assert isinstance(first, Searched)
    assert isinstance(again, Searched)
    assert again.clips == first.clips == read_json(next(tmp_path.glob("micro/*.json")))["clips"]
    micro_sizes(model, gpu, settings(activation_checkpointing=True), 64, 1, work)  # needs less memory: another search
    assert len(made) == 2


def test_a_bucket_that_did_not_fit_is_halved_with_all_longer_ones(tmp_path):
    sizes = Searched([64, 64, 60, 50, 40, 30, 20, 18, 15, 12, 10, 8], tmp_path / "sizes.json", {})
    sizes.shrink(30, 7.5)  # in the bucket of 6 to 8 s
    sizes.save()
    assert sizes.clips == [64, 64, 60, 50, 40, 15, 15, 15, 15, 12, 10, 8]
    assert read_json(tmp_path / "sizes.json")["clips"] == sizes.clips
    assert sizes(7.9) == 15
    assert sizes(31.0) == 8
    budget = Budget(20.0)
    budget.shrink(10, 2.0)
    assert (budget(2.0), budget(30.0)) == (5, 1)
    assert Budget(60.0, each_s=30.0)(1.0) == 2


def test_a_trial_leaves_the_model_as_it_was(case):
    model = Captioner(whisper_of(case), settings(), Augment(settings(), 0)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert Trial(model, torch.device("cpu"), settings())(2, 1.0)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert silence(3, 2.0).seconds == 2.0


def test_halves_hold_the_same_clips_and_tokens():
    from aut.training.data import collate

    micro = collate(examples((4000, 2500)))
    one, two = micro.halves()
    assert [len(m.n_B) for m in (one, two)] == [1, 1]
    assert (one.x_BT.shape[1], two.x_BT.shape[1]) == (4000, 2500)
    assert one.tokens + two.tokens == micro.tokens
    assert np.array_equal(micro.x_BT[1, :2500], two.x_BT[0])
    assert np.array_equal(np.concatenate([one.position_B, two.position_B]), micro.position_B)
    assert (two.targets_BL != IGNORED).all()


@pytest.mark.parametrize("where", ["forward", "_backward"])
def test_a_batch_that_does_not_fit_is_split_said_and_the_step_is_the_same(case, tmp_path, monkeypatch, capsys, where):
    def run(work):
        whisper = whisper_of(case)
        return execute(job_of(case, 6), whisper, case, {"noise": case}, work, Silent()), whisper

    plain, weights = run(tmp_path / "plain")
    limit, forward, backward = 3, Engine.forward, Engine._backward

    def full(engine, micro):
        if len(micro.n_B) >= limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return forward(engine, micro)

    def half_way(engine, loss, last):
        backward(engine, loss, last)  # gradients are there already: they must not count twice
        if not half_way.done:
            half_way.done = True
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    half_way.done = False
    monkeypatch.setattr(Engine, where, full if where == "forward" else half_way)
    state, split = run(tmp_path / "split")
    said = capsys.readouterr().err
    assert 1 <= said.count("does not fit cpu: it is split") <= 2  # once a size
    assert state.ids_digest == plain.ids_digest
    assert [r["loss"] for r in state.log] == pytest.approx([r["loss"] for r in plain.log], rel=1e-4)
    for ours, theirs in zip(split.parameters(), weights.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)  # Adam moves by lr, however small the gradient
    assert curve(state)[1][-1]["eval_loss"] == pytest.approx(curve(plain)[1][-1]["eval_loss"], rel=1e-3)


def test_a_single_clip_that_does_not_fit_is_an_error_with_a_remedy(case, tmp_path, monkeypatch):
    def full(engine, micro):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Engine, "forward", full)
    with pytest.raises(ConfigError, match=r"1 clips of up to .* does not fit cpu.*activation_checkpointing"):
        execute(job_of(case, 6), whisper_of(case), case, {"noise": case}, tmp_path, Silent())


def test_other_errors_are_not_taken_for_a_full_memory(case, tmp_path, monkeypatch):
    def broken(engine, micro):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(Engine, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        execute(job_of(case, 6), whisper_of(case), case, {"noise": case}, tmp_path, Silent())
    assert module.out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 10 bytes"))


def test_a_budget_keeps_what_it_learnt_for_the_same_number(tmp_path):
    path = tmp_path / "micro.json"
    first = Budget(60.0, path=path)
    first.shrink(8, 7.0)
    assert not path.exists()
    first.save()
    assert Budget(60.0, path=path)(7.0) == 4
    assert Budget(70.0, path=path)(7.0) == 10  # another number is tried as it is
    assert Budget(60.0)(7.0) == 8


def test_shares_of_a_group_are_halved_alike():
    """A process with a clip less than the others computes as many micro-batches."""
    from aut.training.data import collate

    two, one = (replace(collate(examples(lengths)), most=2) for lengths in ((4000, 2500), (3000,)))
    assert [part.clips for part in two.halves()] == [part.clips for part in one.halves()] == [1, 1]
    assert [part.tokens for part in one.halves()] == [one.tokens, 0]
    three = replace(collate(examples((4000, 3000, 2500))), most=4)
    assert [(part.clips, len(part.n_B)) for part in three.halves()] == [(2, 1), (2, 2)]


def test_a_clip_longer_than_its_index_says_halves_the_bucket_that_it_was_put_in(case, tmp_path):
    from tests.unit.test_training_loop import loader_of
    from tests.unit.test_training_plan import schedule

    job = job_of(case)
    loader = loader_of(case, job, sizes=Budget(20.0))
    loader._decode = lambda row: np.zeros(16000 * 9, np.int16)  # of 9 s, where the index says less than one
    (micro,) = next(loader.steps(job.plan, 0)).micros
    engine = Engine(Captioner(whisper_of(case), settings(), Augment(settings(), 0)), schedule(), settings())
    engine.sizes = sizes = Searched([8] * len(EDGES_S), tmp_path / "sizes.json", {})
    halves = engine._halved(micro, speaks=True)
    assert sizes.clips == [2] * len(EDGES_S)
    assert [half.seconds for half in halves] == [9.0, 9.0]
    engine._halved(halves[1], speaks=True)
    assert read_json(tmp_path / "sizes.json")["clips"] == [1] * len(EDGES_S)


@pytest.mark.parametrize(
    ("stage", "world", "floats"), [(0, 1, 2), (0, 8, 3), (1, 1, 7), (1, 8, 3.5), (2, 8, 2.5), (3, 1, 6)]
)
def test_room_is_kept_for_what_a_step_holds_beside_weights_and_gradients(stage, world, floats):
    assert reserve_b(1000, stage, world) == 4 * 1000 * floats
