"""Several processes take the same rows a step as one; losses and weights differ by the order of sums only."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from aut.contracts import Silent
from aut.errors import ConfigError
from aut.training import checkpoint
from aut.training.engine import WAIT, Engine
from aut.training.job import execute
from tests.unit.training_case import changes_of, job_of, lose, whisper_of, write_case

START = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
LAUNCH = [
    sys.executable, "-c",
    "import sys; from aut.training.launch import _run; sys.exit(_run([sys.executable, *sys.argv[1:]], 2, 1))",
]  # fmt: skip
ASK = """
import json, sys
from pathlib import Path
import torch
from aut.training.augment import Augment
from aut.training.engine import open_engine
from aut.training.model import Captioner
from aut.training.trial import silence
from tests.unit.training_case import changes_of, job_of, whisper_of

case, stage = Path(sys.argv[1]), sys.argv[2]
job = job_of(case, 6, **changes_of(stage))
model = Captioner(whisper_of(case), job.training, Augment(job.training, 0))
engine = open_engine(model, job.schedule, job.training)
engine.start(None)
group = torch.distributed.distributed_c10d._get_default_group()
told = [group._get_backend(torch.device("cpu")).options._timeout.total_seconds()]
if stage != "0":
    seen = []
    layer = model.whisper.model.encoder.layers[0].fc1
    layer.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
    engine.accumulate([silence(2, 0.2)], 1.0, 0)
    told += [str(dtype) for dtype in (seen[0], *engine._zero.ipg_buckets)]
if engine.rank == 0:
    print("told", json.dumps(told), flush=True)
engine.close()
"""
SUMS = 1e-3  # float32 sums in another order, six steps long
BF16 = 2e-2  # bfloat16's products in other micro-batches
COMPILES = pytest.mark.skipif(
    shutil.which("c++") is None, reason="DeepSpeed compiles its communication for the CPU: no c++ here"
)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return write_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def alone(case, tmp_path_factory):
    """Stage -> state and weights of one process."""
    made = {}
    for stage in ("0", "0bf16"):
        whisper, work = whisper_of(case), tmp_path_factory.mktemp("one")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "accumulate", Engine.accumulate)  # so that it is put back
            lose()
            state = execute(job_of(case, 6, **changes_of(stage)), whisper, case, {"noise": case}, work, Silent())
        made[stage[1:]] = state, whisper.state_dict()
    return made


def start(processes, case, work, *stages, stop=0, by=START, **extra):
    command = [*by, *([] if by is LAUNCH else [f"--nproc-per-node={processes}"]), "-m", "tests.unit.training_case"]
    command += [str(case), str(work), str(stop), *(f"{stage}:{free_port()}" for stage in stages)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "AUT_MICRO_S": "0.5"} | extra
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def finished(case, tmp_path_factory):
    """Stages 1 and 2 by two processes, 3 by three; all stopped before, in step 3, when they were two."""
    pytest.importorskip("deepspeed")
    work = tmp_path_factory.mktemp("zero")
    of_two = (1, 2, "2bf16", "2compiled")
    stopped = start(2, case, work, *of_two, 3, stop=3)
    assert stopped.returncode != 0
    for stage in (*of_two, 3):
        newest = checkpoint.checkpoints(work / f"stage-{stage}")[-1]
        assert newest.name == "step-00000003", stopped.stderr[-3000:]
    for processes, stages in ((2, of_two), (3, (3,))):
        done = start(processes, case, work, *stages)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stderr.count("resumes at step 3") == len(stages)
    return work


def compare(case, work, stage, alone):
    """Asserts the same rows exactly, sums and weights to the arithmetic's order; returns the step reached."""
    found = checkpoint.newest(work / f"stage-{stage}", job_of(case, 6, **changes_of(str(stage))).identity)
    assert found is not None
    both, (one, weights) = found[1], alone[str(stage)[1:].removesuffix("compiled")]
    assert both.ids_digest == one.ids_digest  # the very same rows in every step
    assert (both.step, both.clips, both.tokens) == (one.step, one.clips, one.tokens)
    assert both.skipped == one.skipped == 1  # where the loss was not finite
    assert both.valid_s == pytest.approx(one.valid_s, rel=1e-12)
    tolerance = BF16 if str(stage).endswith("bf16") else SUMS
    for ours, theirs in zip(both.evals + both.log, one.evals + one.log, strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)
    final = torch.load(work / f"stage-{stage}" / "final.pt", weights_only=True)
    assert set(final) == set(weights)
    for name, ours in final.items():  # Adam moves each weight by lr a step, however small its gradient
        torch.testing.assert_close(
            ours, weights[name], rtol=0, atol=2 * tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )
    return both.step


@pytest.mark.slow
def test_two_processes_make_the_same_steps(case, alone, tmp_path):
    done = start(2, case, tmp_path, 0)
    assert done.returncode == 0, done.stderr[-3000:]
    assert compare(case, tmp_path, 0, alone) == 6


@pytest.mark.slow
@COMPILES
@pytest.mark.parametrize("stage", [1, 2, "2bf16", "2compiled", 3])
def test_zero_on_two_processes_stopped_and_resumed_by_three(case, alone, finished, stage):
    assert compare(case, finished, stage, alone) == 6


@pytest.mark.slow
@COMPILES
def test_what_does_not_fit_one_of_three_processes_is_split_in_all(case, alone, tmp_path):
    """The first has two clips of each micro-batch where the others have one."""
    done = start(3, case, tmp_path, 0, 2, AUT_TEST_FULL="forward:0:2", AUT_MICRO_S="2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("it is split") == 2, done.stderr[-3000:]  # once a training, and known from then on
    for stage in (0, 2):
        assert compare(case, tmp_path, stage, alone) == 6


@pytest.mark.slow
@COMPILES
def test_where_the_others_wait_all_are_started_again_with_half(case, alone, tmp_path):
    done = start(2, case, tmp_path, 3, by=LAUNCH, AUT_TEST_FULL="forward:1:2", AUT_MICRO_S="2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("other processes wait for it: all start again") == 1, done.stderr[-3000:]
    assert done.stderr.count("the processes are started again, from the last checkpoint") == 1
    assert compare(case, tmp_path, 3, alone) == 6


@pytest.mark.slow
def test_processes_that_are_told_other_sizes_divide_a_step_alike(case, alone, tmp_path):
    done = start(3, case, tmp_path, 0, AUT_TEST_MICRO="2:0.5:1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert compare(case, tmp_path, 0, alone) == 6


@pytest.mark.slow
@COMPILES
@pytest.mark.parametrize("stage", ["0", "2bf16", "3bf16"])
def test_processes_wait_for_one_another_and_sum_gradients_in_float32(case, tmp_path, stage):
    """They wait longer than NCCL's ten minutes; what is computed is bf16 all the same."""
    (tmp_path / "ask.py").write_text(ASK)
    command = [*START, "--nproc-per-node=2", str(tmp_path / "ask.py"), str(case), stage]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    dtypes = [] if stage == "0" else ["torch.bfloat16", "torch.float32"]
    told = json.loads(done.stdout.split("told ")[1].splitlines()[0])
    assert told == [WAIT.total_seconds(), *dtypes]


@pytest.mark.slow
@COMPILES
def test_a_training_goes_on_under_another_stage(case, alone, tmp_path):
    """Stopped as plain data parallel, and gone on with under ZeRO-2 and 3; stopped under ZeRO-2, and plain again."""
    stopped = start(2, case, tmp_path, 0, 2, stop=3)
    assert stopped.returncode != 0
    shutil.copytree(tmp_path / "stage-0", tmp_path / "stage-3")
    (tmp_path / "stage-0").rename(tmp_path / "swap")
    (tmp_path / "stage-2").rename(tmp_path / "stage-0")
    (tmp_path / "swap").rename(tmp_path / "stage-2")
    done = start(2, case, tmp_path, 0, 2, 3)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("resumes at step 3") == 3
    for stage in (0, 2, 3):
        assert compare(case, tmp_path, stage, alone) == 6


def test_zero_without_torchrun_is_refused(case, tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="deepspeed_stage"):
        execute(job_of(case, 6, deepspeed_stage=2), whisper_of(case), case, {"noise": case}, tmp_path, Silent())
