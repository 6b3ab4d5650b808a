"""Locks that a killed compiler left are removed, those of a living one never."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aut.training.extensions import LATE_S, NAMED

HOLD = "from aut.training.extensions import hold_extensions; hold_extensions(); print('held', flush=True); "


@pytest.fixture
def cache(tmp_path):
    """Where extensions lie, with a lock in it, minutes old."""
    subprocess.run([sys.executable, "-c", HOLD], env=env(tmp_path), check=True)
    (folder,) = (tmp_path / "aut/extensions").iterdir()
    (folder / "shm").mkdir()
    leave(folder / "shm/lock")
    return tmp_path


def env(cache, **extra):
    return {k: v for k, v in os.environ.items() if k != NAMED} | {"XDG_CACHE_HOME": str(cache)} | extra


def leave(lock):
    lock.touch()
    then = lock.stat().st_mtime - 2 * LATE_S
    os.utime(lock, (then, then))


def start(cache, then, **extra):
    command = [sys.executable, "-c", HOLD + then]
    return subprocess.run(command, env=env(cache, **extra), capture_output=True, text=True, timeout=60, check=True)


def test_a_lock_of_a_process_that_is_gone_is_removed(cache):
    told = start(cache, f"import os; print(os.environ['{NAMED}'])")
    folder = Path(told.stdout.splitlines()[-1])
    assert folder.is_relative_to(cache)
    assert not list(folder.glob("*/lock"))
    assert not told.stderr


def test_while_another_lives_a_lock_stays_and_an_old_one_is_named(cache):
    living = [sys.executable, "-c", HOLD + "import sys; sys.stdin.read()"]
    with subprocess.Popen(living, env=env(cache), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        (folder,) = (cache / "aut/extensions").iterdir()
        leave(folder / "shm/lock")
        told = start(cache, "")
        assert f"{folder}/shm/lock is 10 minutes old" in told.stderr
        assert (folder / "shm/lock").exists()
        other.stdin.close()


def test_a_folder_that_the_user_named_is_used_and_nothing_removed_there(cache, tmp_path):
    leave_in = tmp_path / "own/shm"
    leave_in.mkdir(parents=True)
    leave(leave_in / "lock")
    told = start(cache, "", **{NAMED: str(tmp_path / "own")})
    assert "remove it" in told.stderr
    assert (leave_in / "lock").exists()
