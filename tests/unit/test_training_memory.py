"""Micro-batches that fit: found by trying, remembered, split where they do not; the step stays the same."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aut.contracts import Silent
from aut.errors import ConfigError
from aut.files import read_json
from aut.training.augment import Augment
from aut.training.data import IGNORED
from aut.training.engine import Engine
from aut.training.job import execute
from aut.training.memory import out_of_memory
from aut.training.model import Captioner
from aut.training.sizes import EDGES_S, LEARNT, Sizes, busy, largest, micro_sizes, search, timed
from aut.training.trial import Trial, reserve_b, silence
from tests.unit.test_training_model import examples
from tests.unit.training_case import curve, job_of, settings, whisper_of, write_case


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return write_case(tmp_path_factory.mktemp("case"))


class Gpu:
    """A memory of so many seconds of audio, and a fixed cost a clip; counts what is tried.

    A pass takes the time of `launch_s` of audio, or of its own where that is more.
    """

    def __init__(self, seconds, launch_s=100.0):
        self.seconds, self.launch_s, self.tried = seconds, launch_s, []

    def took(self, clips, seconds):
        return max(self.launch_s, clips * seconds) / 1000 if clips * (seconds + 0.5) <= self.seconds else None

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


@pytest.mark.parametrize(("launch_s", "wanted_s"), [(0.0, 10.0), (30.0, 30.0), (100.0, 120.0), (400.0, 480.0)])
def test_a_micro_batch_is_the_smallest_that_keeps_the_device_busy(launch_s, wanted_s):
    pace = timed(Gpu(1e9, launch_s).took)
    assert busy(pace) == wanted_s
    sizes = Sizes(wanted_s, search(Gpu(1e9), 128, busy_s=wanted_s), pace)
    for seconds in (0.7, 3.0, 7.5, 10.0, 17.0, 30.0):
        assert sizes(seconds) == min(128, max(1, wanted_s // seconds))
    assert sizes.took(960.0) == pytest.approx(0.96)
    assert sizes.took(1.0) == pytest.approx(max(10.0, launch_s) / 1000)
    assert sizes.took(90.0) == pytest.approx(max(launch_s, 90.0) / 1000, rel=0.12)


def test_no_more_is_timed_than_fits():
    assert [padded_s for padded_s, _ in timed(Gpu(70.0).took)] == [10.0, 20.0, 30.0, 40.0, 60.0]
    assert [padded_s for padded_s, _ in timed(Gpu(70.0).took, alike=True)] == [30.0, 60.0]
    assert busy([]) == 120.0


def alone(model, device, rank=0, world=1):
    return SimpleNamespace(captioner=model, device=torch.device(device), rank=rank, world=world, gather=lambda v: v)


def test_the_search_is_run_once_and_remembered(case, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("AUT_MICRO_S", raising=False)
    made = []
    monkeypatch.setattr("aut.training.trial.Trial", lambda *_: made.append(Gpu(305.0)) or made[-1])
    engine = alone(Captioner(whisper_of(case), settings(), Augment(settings(), 0)), "meta")
    work = tmp_path / "job"
    first = micro_sizes(engine, settings(), 64, work)
    said = capsys.readouterr().err
    assert "that fit meta" in said
    assert "120 padded seconds keep it busy" in said
    again = micro_sizes(engine, settings(), 64, work)
    assert len(made) == 1
    kept = read_json(next(tmp_path.glob("micro/*.json")))
    assert again.clips == first.clips == kept["clips"]
    assert again.busy_s == first.busy_s == kept["busy_s"] == 120.0
    assert [list(point) for point in first.pace] == again.pace == kept["pace"]
    micro_sizes(engine, settings(activation_checkpointing=True), 64, work)  # needs less memory: another search
    assert len(made) == 2


def test_hosts_with_other_gpus_agree_on_what_fits_both(case, tmp_path, monkeypatch):
    """The first process of each kind looks; the third reads nothing and has the same."""
    monkeypatch.delenv("AUT_MICRO_S", raising=False)
    memories, meet, said = {"meta": Gpu(400.0), "mps": Gpu(100.0, launch_s=50.0)}, Barrier(3), [[], [], []]
    monkeypatch.setattr("aut.training.sizes.memory_facts", lambda model, device, *_: {"device": device.type})
    monkeypatch.setattr("aut.training.trial.Trial", lambda model, device, *_: memories[device.type])

    def process(rank):
        def gather(values):
            said[rank].append(values)
            meet.wait(60)
            return [value for one in said for value in one[len(said[rank]) - 1]]

        device = torch.device("mps" if rank else "meta")
        engine = SimpleNamespace(captioner=None, device=device, rank=rank, world=3, gather=gather)
        return micro_sizes(engine, settings(), 64, tmp_path / "job")

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(process, range(3)))
    assert len({one.told for one in found}) == 1
    both = search(Gpu(400.0), 64, busy_s=120.0), search(Gpu(100.0), 64, busy_s=60.0)
    assert found[2].clips == [min(pair) for pair in zip(*both, strict=True)]
    assert found[2].busy_s == 60.0
    assert [bool(one[1]) for one in said] == [True, True, False]


def test_a_bucket_that_did_not_fit_is_halved_with_all_longer_ones(tmp_path):
    sizes = Sizes(1e9, [64, 64, 60, 50, 40, 30, 20, 18, 15, 12, 10, 8], path=tmp_path / "sizes.json")
    sizes.shrink(30, 7.5)  # in the bucket of 6 to 8 s
    sizes.save()
    assert sizes.clips == [64, 64, 60, 50, 40, 15, 15, 15, 15, 12, 10, 8]
    assert read_json(tmp_path / "sizes.json")["clips"] == sizes.clips
    assert sizes(7.9) == 15
    assert sizes(31.0) == 8
    budget = Sizes(20.0)
    budget.shrink(10, 2.0)
    assert (budget(2.0), budget(30.0)) == (5, 1)
    assert Sizes(60.0, each_s=30.0)(1.0) == 2


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


def test_a_budget_keeps_what_it_learnt_for_the_same_number(tmp_path, monkeypatch):
    def sizes(seconds):
        monkeypatch.setenv("AUT_MICRO_S", seconds)
        return micro_sizes(alone(None, "cpu"), settings(), 64, tmp_path)

    first = sizes("60")
    first.shrink(8, 7.0)
    assert not (tmp_path / LEARNT).exists()
    first.save()
    assert sizes("60")(7.0) == 4
    assert sizes("70")(7.0) == 10  # another number is tried as it is
    assert Sizes(60.0)(7.0) == 8


@pytest.mark.parametrize(
    "told",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
        "NCCL error: unhandled cuda error. Last error: Failed to CUDA calloc 10485760 bytes",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: 10 bytes",
    ],
)
def test_a_full_memory_is_told_in_many_words(told):
    assert out_of_memory(RuntimeError(told))
    assert not out_of_memory(ValueError(told))


def test_a_full_memory_has_a_class_of_its_own():
    assert out_of_memory(torch.OutOfMemoryError("no words"))
    assert not out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


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
    loader = loader_of(case, job, sizes=Sizes(20.0))
    loader._decode = lambda row: np.zeros(16000 * 9, np.int16)  # of 9 s, where the index says less than one
    (micro,) = next(loader.steps(job.plan, 0)).micros
    engine = Engine(Captioner(whisper_of(case), settings(), Augment(settings(), 0)), schedule(), settings())
    engine.sizes = sizes = Sizes(1e9, [8] * len(EDGES_S), path=tmp_path / "sizes.json")
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
