"""Two processes take the same rows a step as one, and make the same losses but for the order of sums."""

import os
import subprocess
import sys

import pytest

from aut.contracts import Silent
from aut.training import checkpoint
from aut.training.job import execute
from tests.unit.training_case import job_of, whisper_of, write_case

START = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]  # fmt: skip  # noqa: E501


@pytest.mark.slow
def test_two_processes_make_the_same_steps(tmp_path):
    case = write_case(tmp_path)
    alone = execute(job_of(case, 6), whisper_of(case), case, {"noise": case}, tmp_path / "one", Silent())
    command = [*START, "-m", "tests.unit.training_case", str(case), str(tmp_path / "two")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    job = job_of(case, 6)
    found = checkpoint.newest(tmp_path / "two", job.identity)
    assert found is not None
    both = found[1]
    assert (both.step, both.clips, both.tokens) == (alone.step, alone.clips, alone.tokens)
    assert both.valid_s == pytest.approx(alone.valid_s, rel=1e-12)
    for ours, theirs in zip(both.evals + both.log, alone.evals + alone.log, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)  # float32 sums in another order, six steps long
