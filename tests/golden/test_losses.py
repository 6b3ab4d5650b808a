"""Five CPU losses in float32 of a two-layer Whisper on generated clips, against a file kept with the code.

A change of arithmetic, order, augmentation or optimiser shows here. `make golden` (pytest --golden) rewrites the file:
read the diff. Other processors sum in another order, hence the tolerance.
"""

import json
import os
from pathlib import Path

import pytest

from aut.contracts import Silent
from tests.unit.training_case import job_of, whisper_of, write_case

FILE = Path(__file__).with_name("losses.json")


class Losses(Silent):
    def __init__(self):
        self.values = []

    def metrics(self, values, step=None):
        if "eval_loss" in values:
            self.values.append(values["eval_loss"])


def five_losses(folder):
    from aut.training.job import execute

    case = write_case(folder / "case")
    track = Losses()
    execute(job_of(case, 5, eval_every=1), whisper_of(case), case, {"noise": case}, folder / "work", track)
    return track.values


def test_five_losses(tmp_path, request):
    (tmp_path / "case").mkdir()
    losses = five_losses(tmp_path)
    assert len(losses) == 5
    if request.config.getoption("--golden", default=False) or os.environ.get("AUT_GOLDEN"):
        FILE.write_text(json.dumps({"losses": losses}, indent=1) + "\n")
    assert losses == pytest.approx(json.loads(FILE.read_text())["losses"], rel=1e-4)
