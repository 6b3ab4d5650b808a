"""A stop, then kill -9 of everything in the middle of a fine-tune; the same command again resumes, nothing lost."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
import yaml

from tests.flow.conftest import Place, make_place

pytestmark = [pytest.mark.flow, pytest.mark.slow]
LONG = (
    "finetune.arms=[adapted]",
    "compare.against=[base]",
    "finetune.schedule.steps=60",
    "finetune.training.eval_every=60",
)


def trainers(place: Place) -> list[psutil.Process]:
    """Live stage processes `python -m aut finetune` of this place."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        if words[1:4] == ["-m", "aut", "finetune"] and str(process.info["cwd"] or "").startswith(str(place.work)):
            found.append(process)
    return found


def checkpoints(place: Place) -> set[str]:
    return {p.name for p in (place.work / "finetune").glob("**/step-*") if p.is_dir()}


def wait_for(what, seconds: float = 400):
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.05)
    return found


def start(place: Place) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "aut", "run", "--profile", "tiny", *LONG]
    return subprocess.Popen(
        command, cwd=place.checkout, env=place.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    top = psutil.Process(process.pid)
    return [top, *top.children(recursive=True)]


def test_stopped_and_killed_in_the_middle_it_resumes(tmp_path):
    place = make_place(tmp_path)
    first = start(place)
    wait_for(lambda: trainers(place))
    wait_for(lambda: checkpoints(place))
    started = family(first)
    first.terminate()
    first.wait(60)
    wait_for(lambda: not [p for p in started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], 60)

    second = start(place)
    wait_for(lambda: trainers(place))
    for process in family(second):  # everything at once, no chance to say goodbye
        with suppress(psutil.NoSuchProcess):
            process.kill()
    second.wait()
    wait_for(lambda: not trainers(place), 30)

    output = place.run(*LONG)
    assert "registered: models:/whisper-aut/1" in output
    log = (place.work / "logs/tiny/finetune@adapted-0.log").read_text()
    assert "resum" in log, log[-2000:]
    facts = yaml.safe_load((place.copy / "models/adapted-0/training.json").read_text())
    assert facts["steps"] == 60
