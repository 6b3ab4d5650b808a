"""A checkpoint is written while the training goes on: what it holds, what a stop and a failure do, what it costs."""

import os
import shutil
import signal
import threading

import numpy as np
import pytest
import torch

from aut.contracts import Silent
from aut.files import digest_file
from aut.training import checkpoint, loop, writer
from aut.training.engine import Engine
from aut.training.job import execute
from tests.unit.training_case import curve, job_of, whisper_of, write_case


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return write_case(tmp_path_factory.mktemp("case"))


class Heard(Silent):
    def __init__(self):
        self.rows = []

    def metrics(self, values, step=None):
        self.rows.append((step, dict(values)))


class Stop(Silent):
    """SIGTERM at the report of a step."""

    def __init__(self, step):
        self.step = step

    def metrics(self, values, step=None):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def run(case, work, steps=6, **changes):
    track, whisper = Heard(), whisper_of(case)
    state = execute(job_of(case, steps, **changes), whisper, case, {"noise": case}, work, track)
    return state, whisper, track


@pytest.fixture(scope="module")
def whole(case, tmp_path_factory):
    return run(case, tmp_path_factory.mktemp("whole"))


def test_steps_are_done_while_it_is_written_and_it_holds_none_of_them(case, tmp_path, monkeypatch, whole):
    """The checkpoint of step 2 reaches the disk after step 3; a training that goes on from it is the same."""
    past, write, step = threading.Event(), checkpoint.write, loop._step

    def late(work, files, state, keep):
        if state.step == 2:
            assert past.wait(60), "the training waits for its checkpoint"
        return write(work, files, state, keep)

    def stepped(run, state, batch):
        flops = step(run, state, batch)
        if state.step == 3:
            past.set()
        return flops

    monkeypatch.setattr(checkpoint, "write", late)
    monkeypatch.setattr(loop, "_step", stepped)
    run(case, tmp_path, keep_checkpoints=9)
    assert past.is_set()
    for later in checkpoint.checkpoints(tmp_path)[1:]:
        shutil.rmtree(later)
    state, whisper, _ = run(case, tmp_path, keep_checkpoints=9)
    assert curve(state) == curve(whole[0])
    for ours, theirs in zip(whisper.parameters(), whole[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("room", [True, False])
def test_a_kill_costs_at_most_the_interval_however_long_a_checkpoint_takes(case, tmp_path, monkeypatch, every, room):
    """Each is held back until the training waits for it: no step can be done later that it does not hold. So it is
    from a checkpoint off the grid, too, which a stop leaves, or another interval."""
    cost, waits = [], threading.Event()
    write, step, wait = checkpoint.write, loop._step, writer.Writer.wait

    def held(work, files, state, keep):
        assert waits.wait(60), "nobody waits for the checkpoint"
        return write(work, files, state, keep)

    def waited(self):
        waits.set()
        wait(self)
        waits.clear()

    def stepped(run, state, batch):
        flops = step(run, state, batch)
        stand = [int(p.name.removeprefix("step-")) for p in checkpoint.checkpoints(run.work)]
        cost.append(state.step - max(stand, default=0))
        return flops

    monkeypatch.setattr(checkpoint, "write", held)
    monkeypatch.setattr(writer.Writer, "wait", waited)
    monkeypatch.setattr(loop, "_step", stepped)
    if not room:
        monkeypatch.setattr(writer, "free_memory_b", lambda: 1000)
    with pytest.raises(SystemExit):
        execute(job_of(case, 21, checkpoint_every=every), whisper_of(case), case, {"noise": case}, tmp_path, Stop(9))
    most = max(cost)
    cost.clear()
    run(case, tmp_path, 21, checkpoint_every=every)
    assert len(cost) == 12
    assert max(most, *cost) <= every
    assert most == every or not room  # the steps that the interval allows are done meanwhile


def test_what_is_written_is_digested_on_its_way(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(checkpoint, "digest_file", lambda path: read.append(path.name) or digest_file(path))
    files = {"weights.pt": {"w": torch.arange(300_000.0)}, "optimizer.pt": {"step": 3.0}}
    folder = checkpoint.write(tmp_path, files, checkpoint.State("i", step=3), keep=2)
    assert read == ["state.json"]  # and no tensor a second time
    assert checkpoint.whole(folder)
    (folder / "optimizer.pt").write_bytes(b"cut")
    assert not checkpoint.whole(folder)


def test_how_long_the_training_stood_still_is_told(whole):
    told = {step: row["checkpoint_s"] for step, row in whole[2].rows if "checkpoint_s" in row}
    assert set(told) == {2, 4, 6}
    assert all(0.0 < seconds < 60.0 for seconds in told.values())


def test_without_room_for_a_copy_the_training_waits_and_says_so_once(case, tmp_path, monkeypatch, capsys, whole):
    monkeypatch.setattr(writer, "free_memory_b", lambda: 1000)
    state, _, _ = run(case, tmp_path)
    assert capsys.readouterr().err.count("the training waits for its checkpoints: no room for a copy of") == 1
    assert curve(state) == curve(whole[0])
    theirs = torch.load(tmp_path / "step-00000006/weights.pt", weights_only=True)
    for name, p in whole[1].named_parameters():
        assert torch.equal(theirs[name], p)


def test_free_memory_is_the_containers_where_that_is_less(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "CGROUP", tmp_path)
    machine = writer.free_memory_b()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("9000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\nactive_file 3000\ninactive_file 5000\n")
    assert writer.free_memory_b() == pytest.approx(machine, rel=0.5)
    (tmp_path / "memory.max").write_text("10000\n")
    assert writer.free_memory_b() == 9000  # file caches go when memory is wanted


def test_a_checkpoint_that_cannot_be_written_ends_the_training(case, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(OSError, match="No space left"):
        run(case, tmp_path, steps=2000)  # not at the end: as soon as it is known


def test_a_stop_while_a_checkpoint_is_made_makes_no_second_one(case, tmp_path, monkeypatch):
    steps, snapshot = [], Engine.snapshot

    def stopped(engine, apart):
        os.kill(os.getpid(), signal.SIGTERM)
        steps.append(apart)
        return snapshot(engine, apart)

    monkeypatch.setattr(Engine, "snapshot", stopped)
    with pytest.raises(SystemExit) as ended:
        run(case, tmp_path)
    assert ended.value.code == 143
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step-00000002"]
    assert len(steps) == 1


def test_a_snapshot_before_the_first_update_starts_like_no_snapshot(case, tmp_path):
    from aut.training.augment import Augment
    from aut.training.model import Captioner

    job = job_of(case)
    first, again = (
        Engine(Captioner(whisper_of(case), job.training, Augment(job.training, 0)), job.schedule, job.training)
        for _ in range(2)
    )
    folder = checkpoint.write(tmp_path, first.snapshot(apart=True), checkpoint.State("i"), keep=2)
    again.start(folder)
    for engine in (first, again):
        rng = np.random.default_rng(0)
        for p in engine.captioner.parameters():
            p.grad = torch.from_numpy(rng.normal(size=tuple(p.shape)).astype(np.float32)) if p.requires_grad else None
        engine.update(1e-3, 1.0)
    for ours, theirs in zip(first.captioner.parameters(), again.captioner.parameters(), strict=True):
        assert torch.equal(ours, theirs)
