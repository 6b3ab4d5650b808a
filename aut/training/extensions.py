"""Extensions: the folder in which torch compiles what DeepSpeed asks for, without locks of processes that are gone.

In    TORCH_EXTENSIONS_DIR where the user named a folder, else ~/.cache/aut/extensions (XDG_CACHE_HOME)
Out   TORCH_EXTENSIONS_DIR, for this process
Why   torch's lock is a file: a process killed while it compiles leaves it, and every later start waits for ever and
      says nothing. In a folder of our own each process holds a kernel's lock for as long as it lives; the first one
      there knows that nobody compiles, and removes what is left.
      Price: compiled once more (half a minute) on each host, though torch's own folder may have had it.
"""

from __future__ import annotations

import fcntl
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

NAMED = "TORCH_EXTENSIONS_DIR"
LATE_S = 300.0  # no extension takes as long


def hold_extensions() -> None:
    """To be called before DeepSpeed is imported; old locks that may not be removed are named."""
    if NAMED not in os.environ:
        folder = _own()
        os.environ[NAMED] = str(folder)
        _hold(folder)
    for lock in _locks(Path(os.environ[NAMED])):
        age_s = time.time() - lock.stat().st_mtime
        if age_s > LATE_S:
            print(  # noqa: T201
                f"{lock} is {age_s / 60:.0f} minutes old: where nothing compiles any more, remove it, "
                "or this start waits for ever",
                file=sys.stderr,
            )


def _own() -> Path:
    """A folder a version, which torch tells apart in its default one only, and a host: hosts that share a home see each
    other's files, but not each other's locks, and their processors may differ."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    made_by = f"py{sys.version_info.major}{sys.version_info.minor}-torch{version('torch')}"
    folder = cache / "aut/extensions" / f"{made_by}-{platform.node()}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _hold(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)  # never closed: the kernel lets go when this process ends, however it does
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass  # others live, and the first of them has removed what was left
    else:
        for lock in _locks(folder):
            lock.unlink()
    fcntl.flock(handle, fcntl.LOCK_SH)


def _locks(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/lock"))
