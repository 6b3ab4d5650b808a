"""`aut finetune` as a person starts it: two processes, two hosts on one machine, stopped and started again."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aut.config import compose, read_params
from aut.contracts import Silent
from aut.layout import Layout
from benchmarks import _pool as pool

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SHORT = ("base.schedule.steps=4", "finetune.schedule.steps=40", "finetune.training.checkpoint_every=4")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A working copy in which everything before finetune has been made."""
    from aut.sources import scan
    from aut.stages.base import base
    from aut.stages.index import index
    from aut.stages.mixture import mixture

    place = tmp_path_factory.mktemp("prepared")
    root = place / "copy"
    root.mkdir()
    compose("tiny", SHORT, ROOT / "conf", root / "params.yaml")
    (root / "dvc.yaml").write_text("stages: {}\n")
    before = os.environ.get("AUT_WORK")
    os.environ["AUT_WORK"] = str(place / "work")
    try:
        params, layout = read_params(root / "params.yaml"), Layout(root)
        for name, source in params.sources.items():
            if source.role != "probe":
                scan(params, layout, name)
                index(params, layout, Silent(), name)
        pool.block(layout, [])
        mixture(params, layout, Silent())
        base(params, layout, Silent(), "base")
    finally:
        os.environ.pop("AUT_WORK")
        os.environ.update({"AUT_WORK": before} if before else {})
    return place


class Place:
    """A copy of it, and `aut finetune adapted 0` there."""

    def __init__(self, prepared, folder):
        shutil.copytree(prepared / "copy", folder / "copy")
        self.copy, self.work = folder / "copy", folder / "work"
        shutil.copytree(prepared / "work" / "corpora", self.work / "corpora")

    def start(self, **extra):
        env = os.environ | {"AUT_WORK": str(self.work), "AUT_TRACK": "off", "OMP_NUM_THREADS": "1"}
        env |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **extra}
        command = [sys.executable, "-m", "aut", "finetune", "adapted", "0"]
        return subprocess.Popen(command, cwd=self.copy, env=env, stderr=subprocess.PIPE, text=True)

    def report(self):
        return json.loads((self.copy / "reports/metrics/finetune@adapted-0.json").read_text())

    def checkpoints(self):
        return list((self.work / "finetune").glob("*/step-*"))


def ended(process):
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said[-3000:]
    return said


def same(ours, theirs):
    """The same rows and counts exactly, losses to the order of float32 sums."""
    for key in ("steps", "clips", "tokens", "valid_seconds", "mixture_digest", "replaced_clips", "skipped_steps"):
        assert ours[key] == theirs[key], key
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)
    assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=2e-3)


@pytest.fixture(scope="module")
def alone(prepared, tmp_path_factory):
    place = Place(prepared, tmp_path_factory.mktemp("alone"))
    ended(place.start())
    return place.report()


def test_two_processes_stopped_and_one_that_goes_on_make_the_model_of_one(prepared, alone, tmp_path):
    place = Place(prepared, tmp_path)
    process, until = place.start(AUT_PROCS="2"), time.monotonic() + 200
    while not place.checkpoints() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 143, said[-3000:]
    assert "checkpoint written" in said
    assert "resumes at step" in ended(place.start())  # by one
    same(place.report(), alone)
    assert (place.copy / "models/adapted-0/model.safetensors").exists()
    assert not place.checkpoints()


def test_two_starts_meet_and_make_the_model_of_one(prepared, alone, tmp_path):
    place = Place(prepared, tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"AUT_HOSTS": "2", "AUT_PROCS": "1", "AUT_RDZV": f"127.0.0.1:{port}"}
    hosts = [place.start(**where), place.start(**where)]
    for process in hosts:
        ended(process)
    same(place.report(), alone)
    assert (place.copy / "models/adapted-0/model.safetensors").exists()
    assert not place.checkpoints()
