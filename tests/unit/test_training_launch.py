"""Starting a training's processes: contradictions together, exit codes, and nobody left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from aut.contracts import Silent
from aut.errors import ConfigError
from aut.training import launch, placement
from aut.training.job import execute
from aut.training.plan import Plan
from tests.unit.test_training_plan import schedule
from tests.unit.training_case import settings
from tests.waiting import wait_for

CHILD = """
import os, pathlib, sys, time
from aut.guard import end_with_parent
end_with_parent(every_s=0.05)
folder = pathlib.Path(sys.argv[1])
(folder / f".{os.environ['RANK']}").write_text(str(os.getpid()))
(folder / f".{os.environ['RANK']}").rename(folder / os.environ["RANK"])
time.sleep(120)
"""
LAUNCHER = (
    "import sys; from aut.training.launch import _run; sys.exit(_run([sys.executable, '-c', *sys.argv[1:]], 2, 1))"
)


def test_contradictions_with_the_machine_are_listed_together(monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as raised:
        launch.check("finetune", schedule(batch=2), settings(deepspeed_stage=2), 4)
    for told in ("4 processes share steps of schedule.batch=2", "needs accelerate and deepspeed", "need accelerate"):
        assert told in str(raised.value)
    monkeypatch.undo()
    launch.check("finetune", schedule(), settings(), 4)


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,97,98,99,100,101,102,103,104")
    with pytest.raises(ConfigError, match="names 9 GPUs"):
        launch.processes()


@pytest.fixture
def blind(monkeypatch):
    """Torch sees no GPU, and nobody said that it should not."""
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("AUT_DEVICE", raising=False)
    monkeypatch.setattr(launch, "DRIVER", Path("/nowhere"))


@pytest.mark.parametrize(("name", "value"), [("CUDA_VISIBLE_DEVICES", ""), ("AUT_DEVICE", "cpu")])
def test_a_gpu_that_torch_does_not_see_is_said_unless_the_cpu_is_meant(monkeypatch, tmp_path, blind, name, value):
    monkeypatch.setattr(launch, "DRIVER", tmp_path)
    monkeypatch.setenv("AUT_PROCS", "2")
    with pytest.raises(ConfigError, match=r"torch sees no GPU.*AUT_DEVICE=cpu"):
        launch.processes()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is put back, for AUT_DEVICE writes it
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv(name, value)
    assert launch.processes() == 2
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_processes_for_gpus_that_are_not_there_are_said_on_a_host_without_any(monkeypatch, blind):
    cores = os.cpu_count() or 1
    monkeypatch.setenv("AUT_PROCS", str(cores + 6))
    with pytest.raises(ConfigError, match=rf"AUT_PROCS={cores + 6}, but no GPU is visible.*AUT_DEVICE=cpu"):
        launch.processes()
    monkeypatch.setenv("AUT_PROCS", str(cores))
    assert launch.processes() == cores


def test_a_step_of_fewer_clips_than_processes_is_said_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    job = SimpleNamespace(stage="finetune", name="control-0", plan=Plan(10, 25))
    with pytest.raises(ConfigError, match="finetune control-0: 3 processes share steps of 2 clips"):
        execute(job, None, tmp_path, {}, tmp_path, Silent())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("AUT_PROCS", value) for value in ("two", "0", "-1")),
        ("AUT_HOSTS", "1.5"),
        ("AUT_LOADERS", "some"),
        ("AUT_THREADS", "abc"),
        *(("AUT_MICRO_S", value) for value in ("much", "0", "-3", "nan", "inf")),
    ],
)
def test_wrong_placement_is_named_before_anything_loads(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}={value} is no positive"):
        launch.launch("finetune", None, "adapted-0")


def test_placement_that_is_empty_is_not_set(monkeypatch):
    for name in (*placement.COUNTS, placement.MICRO):
        monkeypatch.setenv(name, "")
    placement.check()
    assert placement.count("AUT_LOADERS") is placement.micro_s() is None
    monkeypatch.setenv("AUT_MICRO_S", "7.5")
    assert placement.micro_s() == 7.5


def test_a_wrong_address_is_named(monkeypatch):
    monkeypatch.setenv("AUT_RDZV", "nowhere")
    with pytest.raises(ConfigError, match="AUT_RDZV=nowhere"):
        launch._address(1)


def test_several_hosts_need_an_address(monkeypatch):
    monkeypatch.delenv("AUT_RDZV", raising=False)
    with pytest.raises(ConfigError, match="AUT_HOSTS=2 without AUT_RDZV"):
        launch._address(2)


@pytest.mark.slow
def test_the_exit_code_is_the_first_that_failed():
    code = "import os, sys, time; time.sleep(0 if os.environ['RANK'] == '1' else 60); sys.exit(3)"
    done = subprocess.run([sys.executable, "-c", LAUNCHER, code], capture_output=True, timeout=120, check=False)
    assert done.returncode == 3, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_survives_a_stop(tmp_path, how):
    starter = subprocess.Popen([sys.executable, "-c", LAUNCHER, CHILD, str(tmp_path)], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not all((tmp_path / rank).exists() for rank in "01") and time.monotonic() < end:
        time.sleep(0.05)
    children = [psutil.Process(int((tmp_path / rank).read_text())) for rank in "01"]
    os.kill(starter.pid, how)
    assert starter.wait(timeout=60) == (143 if how == signal.SIGTERM else -9)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not [c for c in alive if c.status() != psutil.STATUS_ZOMBIE]


def test_a_busy_port_is_a_clear_error(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("AUT_RDZV", f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ConfigError, match="is taken by another program"):
            launch._address(2)


@pytest.mark.slow
def test_a_host_that_does_not_come_is_one_sentence(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AUT_RDZV", f"127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setattr(launch, "MEET_S", 4)
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1")  # so that it is put back, and the next one
    monkeypatch.setenv("AUT_RECALLED", "")
    with pytest.raises(ConfigError, match=r"the processes cannot meet at 127.0.0.1:\d+.*or a host missing"):
        launch._run([sys.executable, "-c", "pass"], 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("signalled", "code"), [(False, 0), (True, 143)])
def test_recalled_processes_are_started_again_unless_all_were_told_to_stop(tmp_path, signalled, code):
    """Each start but the third recalls all; where it is told to stop meanwhile, the launcher does."""
    child = "import os, pathlib, sys, time; from aut.training.recall import AGAIN, RECALLED\n"
    child += "n = len(list(pathlib.Path(sys.argv[1]).iterdir())); (pathlib.Path(sys.argv[1]) / str(n)).touch()\n"
    child += "n < 2 and pathlib.Path(os.environ[RECALLED]).touch()\n"
    child += "time.sleep(60 if len(sys.argv) > 2 else 0); sys.exit(AGAIN if n < 2 else 0)"
    launcher = LAUNCHER.replace("2, 1", "1, 1")
    command = [sys.executable, "-c", launcher, child, str(tmp_path), *(["wait"] if signalled else [])]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    if signalled:
        wait_for(lambda: any(tmp_path.iterdir()))
        process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == code, said[-2000:]
    assert len(list(tmp_path.iterdir())) == (1 if signalled else 3)
    assert said.count("are started again") == (0 if signalled else 2)


@pytest.mark.parametrize(("seen", "left"), [("3,4", "3"), ("", ""), (None, "0")])
def test_the_benchmark_sees_one_gpu_before_it_imports_torch(seen, left):
    code = "import os, runpy, sys; sys.modules['torch'] = None\n"
    code += "try: runpy.run_module('benchmarks.train', run_name='__main__')\n"
    code += "except ImportError: print(os.environ.get('CUDA_VISIBLE_DEVICES'))"
    env = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    env |= {} if seen is None else {"CUDA_VISIBLE_DEVICES": seen}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{left}\n"
