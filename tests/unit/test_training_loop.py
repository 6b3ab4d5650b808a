"""A small training on noise: stopped, killed, cut short or never stopped, it is the same training."""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from aut.contracts import INDEX_SCHEMA, Silent
from aut.training import checkpoint, data
from aut.training.data import Loader
from aut.training.job import execute
from aut.training.sizes import Sizes
from aut.training.tokenizer import Targets
from tests.unit.training_case import CLIPS, curve, job_of, whisper_of, write_case


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return write_case(tmp_path_factory.mktemp("case"))


def run(case, work, steps=6, track=None, **changes):
    job = job_of(case, steps, **changes)
    whisper = whisper_of(case)
    state = execute(job, whisper, case, {"noise": case}, work, track or Silent())
    return state, whisper


@pytest.fixture(scope="module")
def whole(case, tmp_path_factory):
    return run(case, tmp_path_factory.mktemp("whole"))


class StopAt(Silent):
    """A tracker that sends us SIGTERM when a step is reported."""

    def __init__(self, step):
        self.step, self.rows = step, []

    def metrics(self, values, step=None):
        self.rows.append((step, dict(values)))
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_it_learns(case, tmp_path):
    state, _ = run(case, tmp_path, steps=20)
    assert state.log[-1]["loss"] < state.log[0]["loss"]
    assert state.step == 20
    assert state.clips == 20 * 4


def test_stopped_by_sigterm_and_resumed_is_bit_identical(case, tmp_path, whole):
    with pytest.raises(SystemExit) as stopped:
        run(case, tmp_path, track=StopAt(3))  # step 3 is reported by the evaluation
    assert stopped.value.code == 143
    track = StopAt(None)
    state, whisper = run(case, tmp_path, track=track)
    assert curve(state) == curve(whole[0])
    assert state.ids_digest == whole[0].ids_digest
    for ours, theirs in zip(whisper.parameters(), whole[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert [s for s, v in track.rows if "eval_loss" in v] == [3, 6]  # a new tracker gets the points from before, too


def test_killed_and_resumed_is_bit_identical(case, tmp_path, whole):
    script = "import pathlib, sys; from tests.unit.training_case import train; train(*map(pathlib.Path, sys.argv[1:]))"
    child = subprocess.Popen([sys.executable, "-c", script, str(case), str(tmp_path)])
    end = time.monotonic() + 120
    while not checkpoint.checkpoints(tmp_path) and child.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert checkpoint.checkpoints(tmp_path)
    state, _ = run(case, tmp_path)
    assert curve(state) == curve(whole[0])
    assert state.ids_digest == whole[0].ids_digest


@pytest.fixture
def compiler():
    """torch's compiler from the beginning, as a new process has it; it warns of what it does itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._dynamo.reset()
        yield torch._dynamo
        torch._dynamo.reset()


KERNELS = "inductor" if shutil.which("c++") else "aot_eager"


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "micro_s"), [("aot_eager", "0.5"), (KERNELS, "20")])  # many shapes; real kernels
def test_compiled_it_is_the_same_training_and_so_is_a_resumed_one(
    case, tmp_path, monkeypatch, whole, compiler, backend, micro_s
):
    from torch._dynamo.utils import counters

    monkeypatch.setattr("aut.encoders.whisper.BACKEND", backend)
    monkeypatch.setenv("AUT_MICRO_S", micro_s)
    counters.clear()
    plain, compiled = (run(case, tmp_path / str(on), compile=on) for on in (False, True))
    assert 1 <= counters["stats"]["unique_graphs"] <= 8  # for any number of layers, clips and frames
    for ours, theirs in zip(compiled[0].log, plain[0].log, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)  # kernels sum in another order
    with pytest.raises(SystemExit):
        run(case, tmp_path / "stopped", track=StopAt(3), compile=True)
    compiler.reset()
    state, whisper = run(case, tmp_path / "stopped", compile=True)
    assert curve(state) == curve(compiled[0])
    for ours, theirs in zip(whisper.parameters(), compiled[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    weights = torch.load(next((tmp_path / "True").glob("step-*/weights.pt")), weights_only=True)
    assert list(weights) == [name for name, _ in whole[1].named_parameters()]  # no module was wrapped


def test_a_checkpoint_cut_short_is_passed_over(case, tmp_path, whole, capsys):
    run(case, tmp_path)
    last = checkpoint.checkpoints(tmp_path)[-1]
    weights = last / "weights.pt"
    weights.write_bytes(weights.read_bytes()[:100])
    state, _ = run(case, tmp_path)
    assert "cut short" in capsys.readouterr().err
    assert curve(state) == curve(whole[0])


def test_an_unreadable_clip_is_replaced_and_counted(case, tmp_path):
    broken = case / "0003.wav"
    kept = broken.read_bytes()
    broken.write_bytes(b"not audio")
    try:
        state, _ = run(case, tmp_path, steps=CLIPS // 4)
    finally:
        broken.write_bytes(kept)
    assert state.replaced >= 1
    assert state.clips == CLIPS // 4 * 4


def test_a_clip_whose_text_the_decoder_cannot_hold_is_replaced_counted_and_told(case, tmp_path, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = case / "part-0.parquet"
    kept = part.read_bytes()
    rows = pq.read_table(part).to_pylist()
    rows[3]["text"] = "x" * 2000
    pq.write_table(pa.Table.from_pylist(rows), part)
    try:
        state, _ = run(case, tmp_path, steps=CLIPS // 4)
    finally:
        part.write_bytes(kept)
    assert state.replaced >= 1
    assert "noise/0003: text_too_long: " in capsys.readouterr().err


def test_a_clip_without_a_sample_is_replaced_and_of_an_evaluation_left_out(case, monkeypatch, capsys):
    job = job_of(case)
    rows = job.order.rows(np.arange(4))
    read, empty = data.read_clip, {rows[1]["id"]}

    def heard(root, row, max_s):
        return read(root, row, max_s)[: 0 if row["id"] in empty else None]

    monkeypatch.setattr(data, "read_clip", heard)
    loader = loader_of(case, job)
    assert [e.id for e in loader.examples(rows)] == [row["id"] for row in rows if row["id"] not in empty]
    assert f"{rows[1]['id']}: zero_length: no samples: it is left out" in capsys.readouterr().err
    batch = next(loader_of(case, job).steps(job.plan, 0))
    assert (batch.replaced, len(batch.row_ids)) == (1, 4)
    assert not empty & set(batch.row_ids)
    assert f"{rows[1]['id']}: zero_length: no samples: the next of its domain" in capsys.readouterr().err


@pytest.mark.parametrize("clips", [1, 2, 4, 5])
def test_every_process_evaluates_as_many_micro_batches(case, clips):
    job = job_of(case)
    rows = job.order.rows(np.arange(clips))
    shares = [loader_of(case, job, rank=rank, world=3).batch(0, rows) for rank in range(3)]
    assert len({len(share.micros) for share in shares}) == 1
    assert sorted(i for share in shares for i in share.row_ids) == sorted(row["id"] for row in rows)
    alone = loader_of(case, job).batch(0, rows)
    assert sum(m.tokens for share in shares for m in share.micros) == sum(m.tokens for m in alone.micros)


def test_clips_padded_on_the_device_count_thirty_seconds(case):
    job = job_of(case)
    native, padded = (next(loader_of(case, job, padded=p).steps(job.plan, 0)) for p in (False, True))
    assert padded.seconds == native.seconds
    assert padded.padded_s == 4 * 30.0
    assert native.seconds <= native.padded_s < 4.0


def loader_of(case, job, sizes=None, **placement):
    targets = Targets(case, job.training.language)
    return Loader(job.order, {"noise": case}, targets, 30.0, sizes or Sizes(0.5), **placement)


def test_losses_that_are_not_finite_stop_after_three_and_name_rows(case, tmp_path):
    from aut.errors import DataError

    whisper = whisper_of(case)
    with torch.no_grad():
        whisper.model.encoder.conv1.weight.fill_(float("nan"))
    with pytest.raises(DataError, match=r"3 steps in a row were not finite; step 3: loss nan") as ended:
        execute(job_of(case, 6), whisper, case, {"noise": case}, tmp_path, Silent())
    for step, batch in enumerate(loader_of(case, job_of(case)).steps(job_of(case, 3).plan, 0), 1):
        told = ended.value.what.split(f"rows of step {step}: ")[1].split(";")[0]
        assert sorted(told.split(", ")) == sorted(batch.row_ids)


def test_micro_batches_do_not_change_the_step(case, tmp_path, monkeypatch, whole):
    monkeypatch.setenv("AUT_MICRO_S", "0.5")
    state, _ = run(case, tmp_path)
    assert state.ids_digest == whole[0].ids_digest
    ours, theirs = [r["loss"] for r in state.log], [r["loss"] for r in whole[0].log]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)  # float32 sums in another order


def test_schema_of_the_case_is_the_index(case):
    import pyarrow.parquet as pq

    assert pq.read_schema(case / "part-0.parquet").names == list(INDEX_SCHEMA)
    assert isinstance(case, Path)
