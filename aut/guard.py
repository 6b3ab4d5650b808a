"""Guard: ends this process when the one that started it is gone.

In    the ancestors at the time of the call: the parent and, where that is a shell, the grandparent
Out   SIGTERM to ourselves when one of them dies, SIGKILL when that did not help in AUT_GRACE_S
Why   DVC runs a stage as dvc -> sh -> python and leaves the child alive when it is killed itself: an orphan would
      hold the work's lock and the GPU. PR_SET_PDEATHSIG would only watch the shell, which outlives dvc.
      Price: a thread that wakes once a second.
Run   `end_with_parent()`

AUT_GRACE_S   seconds that a process told to stop has for its checkpoint (default 300)
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

from aut.errors import ConfigError

EVERY_S = 1.0
GRACE_S = 300.0  # 19 GB of a large model's checkpoint, to a slow disk
SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "busybox"}


def end_with_parent(every_s: float = EVERY_S) -> None:
    """Starts the watch, as a daemon thread. A process is its pid *and* start time: pids are used again."""
    watched = ancestors()
    threading.Thread(target=_watch, args=(watched, every_s, grace_s()), name="end-with-parent", daemon=True).start()


def grace_s() -> float:
    """Seconds between being told to stop and being killed."""
    text = os.environ.get("AUT_GRACE_S") or str(GRACE_S)
    try:
        return max(0.0, float(text))
    except ValueError:
        raise ConfigError(f"AUT_GRACE_S={text} is no number of seconds", f"unset it; default {GRACE_S:g}") from None


def ancestors() -> list[Any]:
    """The parent, and above each shell its own parent, as psutil processes."""
    import psutil

    chain: list[Any] = []
    try:
        process = psutil.Process().parent()
        while process is not None and process.pid > 1:
            chain.append(process)
            if process.name() not in SHELLS:
                break
            process = process.parent()
    except psutil.Error:  # an ancestor died while we looked: what was found is watched
        pass
    return chain


def _watch(watched: list[Any], every_s: float, grace_s: float) -> None:
    while all(_alive(process) for process in watched):
        time.sleep(every_s)
    print("the process that started this one is gone: ending", file=sys.stderr, flush=True)  # noqa: T201
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os.kill(os.getpid(), signal.SIGKILL)


def _alive(process: Any) -> bool:
    """psutil compares start times; a zombie is dead, its parent has only not collected it."""
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
