"""Recall: where one process cannot go on and the others wait for it, all end at once, to be started again together.

In    MASTER_ADDR, MASTER_PORT and the run's id, as torchrun sets them; AUT_RECALLED, a path that the launcher names
Out   exit code AGAIN of every process, on every host, and a file at that path: the launcher of each host starts them
      again (aut/training/launch.py), whatever else it hears of their end
Why   a process that waits in a collective hears of nothing: NCCL gives up after minutes, and no exception can be
      raised in it from elsewhere. So a thread of each asks the store at which they met, and ends the process.
      Price: one question a second; what the process has not written by then is done again from the last checkpoint.
Run   `recall = Recall(); ...; recall.all()`
"""

from __future__ import annotations

import os
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

RECALLED = "AUT_RECALLED"
AGAIN = 75  # exit code of a process that is to be started again: EX_TEMPFAIL of sysexits.h
EVERY_S = 1.0
LIMIT = timedelta(seconds=30)


class Recall:
    """Ends this process when any of them calls."""

    def __init__(self) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self._key = f"aut/recall/{os.environ.get('TORCHELASTIC_RUN_ID', '')}"
        self._store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=LIMIT, wait_for_workers=False
        )
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="recall", daemon=True).start()

    def all(self) -> NoReturn:
        """Ends every process."""
        self._closed.set()
        self._store.set(self._key, "1")
        _note()
        raise SystemExit(AGAIN)

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(EVERY_S):
            try:
                called = self._store.check([self._key])
            except RuntimeError:  # the store is gone, and whoever held it: aut/guard.py sees to that
                return
            if called:
                _note()
                os._exit(AGAIN)  # the main thread may never come back from where it waits


def _note() -> None:
    """Tells the launcher, and gives the others time to ask: the store ends with the first launcher that ends."""
    if path := os.environ.get(RECALLED):
        Path(path).touch()
    time.sleep(2 * EVERY_S)
