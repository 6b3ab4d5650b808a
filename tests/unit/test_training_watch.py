"""What a training tells while it runs: utilisation, memory, samples, what stood out; and where checkpoints go."""

import errno
import json
import os
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from aut.contracts import Silent
from aut.edges import spool
from aut.errors import ConfigError, DataError, MissingInput
from aut.files import locked
from aut.training import checkpoint, loop
from aut.training.captions import A_DOMAIN, COLUMNS, chosen
from aut.training.checkpoint import State
from aut.training.data import Batch
from aut.training.flops import Shape, matrix_rate, training_flops
from aut.training.job import execute, finished
from aut.training.loop import Run
from aut.training.upload import Remote, uploads
from tests.unit.training_case import TEXTS, job_of, whisper_of, write_case


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return write_case(tmp_path_factory.mktemp("case"))


class Heard(Silent):
    def __init__(self):
        self.rows, self.tables, self.markers = [], {}, []

    def metrics(self, values, step=None):
        self.rows.append((step, dict(values)))

    def table(self, name, columns, rows):
        self.tables[name] = (tuple(columns), [list(r) for r in rows])

    def goes_on(self, marker):
        self.markers.append(marker)


def run(case, work, steps=20, **changes):
    track = Heard()
    job = job_of(case, steps, **changes)
    state = execute(job, whisper_of(case), case, {"noise": case}, work, track)
    return state, track, job


@pytest.fixture(scope="module")
def heard(case, tmp_path_factory):
    return run(case, tmp_path_factory.mktemp("heard"), eval_every=10)


def test_rates_utilisation_memory_and_padding_are_told(heard):
    told = {key: value for _, row in heard[1].rows for key, value in row.items()}
    assert {"loss", "loss_speech", "lr", "grad_norm", "eval_loss", "eval_loss_speech"} <= set(told)
    assert {"clips_per_s", "audio_s_per_s", "mfu_percent", "data_wait_percent", "padding_percent"} <= set(told)
    assert 0.0 < told["mfu_percent"] < 100.0
    assert 0.0 <= told["data_wait_percent"] <= 100.0
    assert 0.0 < told["padding_percent"] < 50.0
    assert told["memory_gb"] > 0.05
    assert {"replaced_clips", "skipped_steps"} <= set(told)


def test_flops_are_those_of_the_matrices(case):
    """Counted by torch itself, less what the formula leaves out."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from aut.training.augment import Augment
    from aut.training.data import collate
    from aut.training.model import Captioner
    from tests.unit.test_training_model import examples
    from tests.unit.training_case import settings

    model = Captioner(whisper_of(case), settings(), Augment(settings(), 0)).train()
    micro = collate(examples((160_000, 160_000)))
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):  # whose products it knows
        model(micro, torch.device("cpu")).loss.backward()
    tokens_B = (micro.targets_BL != -100).sum(axis=1)
    ours = training_flops(Shape.of(model.whisper.config), micro.n_B, tokens_B)
    mel = 2 * 2 * 1000 * 201 * 80  # of two clips, which it counts, too
    assert ours == pytest.approx(counted.get_total_flops() - mel, rel=0.1)  # the features need no gradient
    assert matrix_rate(torch.device("cpu"), torch.float32) > 1e8


def test_each_evaluation_has_a_table_of_samples(heard):
    state, track, _ = heard
    columns, rows = track.tables["captions"]
    assert columns == COLUMNS
    assert [row[0] for row in rows] == [10] * A_DOMAIN + [20] * A_DOMAIN
    assert {row[3] for row in rows} <= set(TEXTS)
    assert all(isinstance(row[4], str) for row in rows)
    assert [row[1] for row in rows[:A_DOMAIN]] == [row[1] for row in rows[A_DOMAIN:]]
    assert rows == state.captions
    json.dumps(rows)


def test_samples_are_of_every_domain():
    rows = [{"id": i, "domain": d} for i, d in enumerate(["music", "speech", "speech", "speech", "environment"])]
    assert [r["id"] for r in chosen(rows)] == [1, 2, 4, 0]


def test_a_resumed_run_tells_the_whole_table_and_names_its_folder(case, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted(case, tmp_path)
    state, track, _ = run(case, tmp_path, 6)
    assert [row[0] for row in track.tables["captions"][1]] == [3] * A_DOMAIN + [6] * A_DOMAIN
    assert track.markers == [tmp_path / "run.json"]
    assert state.step == 6


class Stop(Silent):
    def metrics(self, values, step=None):
        if step == 6:
            raise KeyboardInterrupt


def interrupted(case, work):
    execute(job_of(case, 6), whisper_of(case), case, {"noise": case}, work, Stop())


def test_what_stands_out_is_told_with_its_rows():
    class Alone:
        rank = 0

        def gather(self, values):
            return values

    track = Heard()
    run = Run("x", Alone(), None, None, None, None, [], None, "i", {}, 0, track)
    state = State("i")
    for step in range(80):
        state.step = step
        batch = Batch(step, [], [f"clip/{step}"], 0)
        loop._watch(run, state, batch, 9.0 if step == 70 else 1.0 + 0.01 * np.sin(step))
    (row,) = track.tables["spikes"][1]
    assert row == [71, 9.0, "clip/70"]  # the 71st step, which counts from 1 as logged rows do


def test_the_last_and_the_best_checkpoint_are_kept(tmp_path):
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5), (5, 2.2)):
        state = State("i", step=step, evals=[{"step": step, "eval_loss": loss}])
        checkpoint.write(tmp_path, {"x": step}, state, keep=2)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step-00000002", "step-00000004", "step-00000005"]


def test_a_checkpoint_of_other_rows_or_another_model_is_refused_with_both_digests(case, tmp_path):
    _, _, job = run(case, tmp_path, 2)
    for name, theirs in (("mixture", job.order.digest), ("model", "trained from nothing")):
        other = job.origin | {name: "another"}
        with pytest.raises(DataError, match=rf"another training: its {name} is {theirs}, this run's is another"):
            checkpoint.newest(tmp_path, "other", other)
    with pytest.raises(DataError, match=r"its inputs \(params, code\) are .*this run's are other"):
        checkpoint.newest(tmp_path, "other", job.origin)


def test_a_base_folder_without_weights_is_named(tmp_path):
    from aut.stages.finetune import _weights
    from aut.training.model import open_whisper

    (tmp_path / "base").mkdir()
    for look in (_weights, open_whisper):
        with pytest.raises(MissingInput, match=r"base holds no .*run `aut base base`"):
            look(tmp_path / "base")


def test_checkpoints_go_to_a_second_place_and_come_back(case, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AUT_CHECKPOINTS", str(tmp_path / "second"))
    with pytest.raises(KeyboardInterrupt):
        interrupted(case, tmp_path / "work")
    place = tmp_path / "second/base" / job_of(case, 6).identity
    assert [p.name for p in sorted(place.iterdir())][-1] == "step-00000004"
    assert not list((tmp_path / "work").glob(".up-*"))
    shutil.rmtree(tmp_path / "work")  # the disk is gone
    state, _, job = run(case, tmp_path / "work", 6)
    said = capsys.readouterr().err
    assert "step-00000004 was fetched" in said
    assert "resumes at step 4" in said
    monkeypatch.delenv("AUT_CHECKPOINTS")
    whole, _, _ = run(case, tmp_path / "whole", 6)
    assert (state.log, state.evals, state.ids_digest) == (whole.log, whole.evals, whole.ids_digest)
    monkeypatch.setenv("AUT_CHECKPOINTS", str(tmp_path / "second"))
    finished(job, tmp_path / "work")
    assert not place.exists()
    assert not checkpoint.checkpoints(tmp_path / "work")


def made(work, step):
    return checkpoint.write(work, {"weights.pt": os.urandom(1000)}, State("i", step=step), keep=9)


def test_a_copy_cut_short_is_passed_over_for_the_one_before(tmp_path, capsys):
    second = Remote(str(tmp_path / "second"), "x")
    for step in (1, 2):
        second._copy(made(tmp_path / "work", step), f"step-{step:08d}")
    second.close()
    (tmp_path / "second/x/step-00000002/weights.pt").write_bytes(b"cut")
    second.fetch(tmp_path / "elsewhere")
    assert "cut short" in capsys.readouterr().err
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "elsewhere")] == ["step-00000001"]


def test_a_whole_copy_is_fetched_where_no_checkpoint_here_is_whole(case, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AUT_CHECKPOINTS", str(tmp_path / "second"))
    with pytest.raises(KeyboardInterrupt):
        interrupted(case, tmp_path / "work")
    for folder in (tmp_path / "work").glob("step-*"):
        (folder / "weights.pt").write_bytes(b"cut")
    state, _, _ = run(case, tmp_path / "work", 6)
    said = capsys.readouterr().err
    assert "step-00000004 was fetched" in said
    assert "resumes at step 4" in said
    assert "begins anew" not in said
    assert state.step == 6


def test_where_no_checkpoint_is_whole_it_begins_anew_and_says_so(case, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        interrupted(case, tmp_path)
    for folder in tmp_path.glob("step-*"):
        (folder / "weights.pt").write_bytes(b"cut")
    with pytest.raises(KeyboardInterrupt):
        interrupted(case, tmp_path)
    said = capsys.readouterr().err
    assert said.count("no checkpoint is whole: begins anew") == 1
    assert "is used" not in said
    assert all(checkpoint.whole(folder) for folder in checkpoint.checkpoints(tmp_path))  # the cut ones push none out


def test_checkpoints_of_other_inputs_are_told_of_and_not_used(case, tmp_path, capsys):
    first = job_of(case, 6)
    with pytest.raises(KeyboardInterrupt):
        interrupted(case, tmp_path / first.identity)
    capsys.readouterr()
    _, _, job = run(case, tmp_path / "new", 6, label_smoothing=0.1)
    (line,) = [s for s in capsys.readouterr().err.splitlines() if "other inputs" in s]
    ours, theirs = job.origin["params"][:8], first.origin["params"][:8]
    assert f"{first.identity[:8]} (step-00000004: its params {theirs}, here {ours})" in line
    assert "not used" in line
    assert "remove its folder" in line


def begun(case, work, place="here", **inputs):
    """An interrupted training of a working copy, and its folder; then another, on other inputs."""
    first = replace(job_of(case, 6), place=place)
    with pytest.raises(KeyboardInterrupt):
        execute(first, whisper_of(case), case, {"noise": case}, work / first.identity, Stop())
    return first, replace(first, inputs=inputs)


def start(case, job, work):
    return execute(job, whisper_of(case), case, {"noise": case}, work / job.identity, Silent())


@pytest.mark.parametrize("changed", ["mixture", "base"])
def test_an_interrupted_training_on_other_rows_or_another_model_stops_a_new_one(case, tmp_path, monkeypatch, changed):
    first, other = begun(case, tmp_path, **{changed: "another"})
    name = {"base": "model"}.get(changed, changed)
    said = rf"case was interrupted at \S+step-00000004.*its {name} is {first.origin[name]}, this run's is another"
    with pytest.raises(DataError, match=rf"{said}.*set AUT_ANEW=1 once, or remove {tmp_path / first.identity}"):
        start(case, other, tmp_path)
    assert start(case, first, tmp_path).step == 6  # its own inputs go on from it
    monkeypatch.setenv("AUT_ANEW", "1")
    assert start(case, other, tmp_path).step == 6


def test_only_what_this_working_copy_left_stops_a_new_training(case, tmp_path, capsys):
    first, other = begun(case, tmp_path, mixture="another")
    with locked(tmp_path / first.identity / "lock", "the first"):  # it is at work
        assert start(case, replace(other, inputs={"mixture": "third"}), tmp_path).step == 6
    assert "other inputs" not in capsys.readouterr().err
    assert start(case, replace(other, place="elsewhere"), tmp_path).step == 6
    assert "are not used" in capsys.readouterr().err


def test_settings_that_change_no_step_do_not_begin_anew(case, tmp_path, capsys):
    whole, _, job = run(case, tmp_path / "whole", 6)
    with pytest.raises(KeyboardInterrupt):
        interrupted(case, tmp_path / "work")
    others = {"keep_checkpoints": 3, "checkpoint_every": 1, "activation_checkpointing": True}
    state, _, changed = run(case, tmp_path / "work", 6, **others)
    assert changed.identity == job.identity == job_of(case, 6, deepspeed_stage=2).identity
    assert "resumes at step 4" in capsys.readouterr().err
    assert (state.ids_digest, state.evals) == (whole.ids_digest, whole.evals)
    assert job_of(case, 6, label_smoothing=0.1).identity != job.identity


def test_links_of_a_copy_that_was_killed_go(tmp_path):
    folder = made(tmp_path / "work", 1)
    shutil.copytree(folder, tmp_path / "work/.up-step-00000001", copy_function=os.link)
    with uploads("x", tmp_path / "work"):
        assert [p.name for p in (tmp_path / "work").iterdir()] == ["step-00000001"]


def test_a_full_disk_of_the_spool_ends_no_training(case, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool, "write_json", full)
    monkeypatch.setattr(spool.shutil, "copy2", full)
    with spool.Spool(tmp_path / "spool") as track:
        state = execute(job_of(case, 6), whisper_of(case), case, {"noise": case}, tmp_path / "work", track)
        track.artifact(tmp_path / "work/step-00000006/state.json")
        with pytest.raises(FileNotFoundError):
            track.artifact(tmp_path / "nothing")
        track.metrics({"x": 1.0})
    assert state.step == 6
    assert capsys.readouterr().err.count("No space left on device") == 1
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "spool/events.jsonl").read_text().splitlines()]
    assert "metrics" in kinds
    assert not {"table", "artifact"} & set(kinds)


@pytest.mark.parametrize(("address", "named"), [("foo://x/y", "foo"), ("s3://bucket/f", "s3fs")])
def test_a_second_place_of_an_unknown_kind_is_named(tmp_path, monkeypatch, address, named):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setenv("AUT_CHECKPOINTS", address)
    with (
        pytest.raises(ConfigError, match=rf"AUT_CHECKPOINTS={address} cannot be opened.*{named}"),
        uploads("x", tmp_path),
    ):
        pass


def test_a_second_place_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("AUT_CHECKPOINTS", str(tmp_path / "file/below"))
    with uploads("x", tmp_path / "work") as second:
        second.offer(made(tmp_path / "work", 1))
    assert "was not uploaded" in capsys.readouterr().err
    assert not list((tmp_path / "work").glob(".up-*"))
