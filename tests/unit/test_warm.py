"""A process started warm is the process `python -m` would have started: streams, folder, environment, signals, code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from aut import warm

ROOT = Path(__file__).resolve().parents[2]
TOLD = """
import os, sys
print(os.getcwd(), sys.argv[1:], os.environ.get("COLOUR"), os.environ.get("HOME"), sys.stdin.read())
print("to stderr", file=sys.stderr)
word = sys.argv[1]
sys.exit(int(word) if word.isdigit() else {"none": None, "text": "a sentence"}[word])
"""
WAITS = """
import atexit, os, signal, sys, time
from pathlib import Path
Path("pid").write_text(str(os.getpid()))
atexit.register(lambda: Path("left").write_text("left"))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
print("up", flush=True)
time.sleep(60)
"""


@contextmanager
def light_server(folder: Path) -> Iterator[str]:
    """A server without the heavy libraries: what they cost is no matter here."""
    path = str(folder / "socket")
    code = f"from aut import warm; warm.LIBRARIES = (); warm.listen({path!r})"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=ROOT) as server:
        until = time.monotonic() + 30
        while not Path(path).exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        yield path
        server.terminate()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with light_server(tmp_path_factory.mktemp("server")) as path:
        yield path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "told.py").write_text(TOLD)
    (tmp_path / "waits.py").write_text(WAITS)
    return tmp_path


def start(folder: Path, address: str, *args: str, **options: object) -> subprocess.Popen[str]:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "COLOUR": "green", warm.ADDRESS: address}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "aut.warm", *args], cwd=folder, env=env, **pipes | options)


@pytest.mark.parametrize(("word", "code"), [("none", 0), ("0", 0), ("7", 7), ("text", 1)])
@pytest.mark.parametrize("there", [True, False])
def test_it_is_as_if_started_by_python(address, folder, word, code, there):
    child = start(folder, address if there else str(folder / "nothing"), "told", word, "b")
    out, errors = child.communicate("said to it")
    assert child.returncode == code
    assert out.strip() == f"{folder} ['{word}', 'b'] green None said to it"
    assert "to stderr" in errors
    assert ("a sentence" in errors) == (word == "text")


def waiting(folder: Path, address: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    child = start(folder, address, "waits")
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    fork = psutil.Process(int((folder / "pid").read_text()))
    assert fork.pid != child.pid
    return child, fork


def test_a_signal_reaches_the_fork_and_its_end_is_an_end(address, folder):
    child, fork = waiting(folder, address)
    child.send_signal(signal.SIGTERM)
    child.communicate()
    assert child.returncode == 9
    assert not fork.is_running()
    assert (folder / "left").exists()


def test_a_killed_fork_is_told_as_a_shell_tells_it(address, folder):
    child, fork = waiting(folder, address)
    fork.kill()
    child.communicate()
    assert child.returncode == 128 + signal.SIGKILL


def test_a_fork_ends_when_who_waits_for_it_is_killed(address, folder):
    child, fork = waiting(folder, address)
    child.kill()
    child.communicate()
    gone, _ = psutil.wait_procs([fork], 10)
    assert gone
    assert (folder / "left").exists()


def test_forks_end_with_a_server_that_is_killed(folder):
    with light_server(folder) as path:
        child, fork = waiting(folder, path)
        server = fork.parent()
        assert server is not None
        server.kill()
        child.communicate()
        assert child.returncode == warm.UNKNOWN
        assert psutil.wait_procs([fork], 10)[0]


def test_the_server_lives_by_its_starter():
    """A flow that is killed -9 leaves nothing: its end of the pipe closes."""
    code = "import time; from aut import warm\n"
    code += f"with warm.serving({str(ROOT)!r}, {{}}): print('up', flush=True); time.sleep(60)"
    flow = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert flow.stdout is not None
    assert flow.stdout.readline() == "up\n"
    (server,) = psutil.Process(flow.pid).children()
    flow.kill()
    flow.communicate()
    assert psutil.wait_procs([server], 30)[0]


def test_the_libraries_start_no_thread():
    """A fork has only the thread that forked: what another thread held stays held."""
    code = "from importlib import import_module; import os; from aut.warm import LIBRARIES\n"
    code += "[import_module(name) for name in LIBRARIES]; print(len(os.listdir('/proc/self/task')))"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env, check=True)
    assert done.stdout.strip() == "1"
