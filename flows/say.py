"""What a run tells the person who watches it, from many threads, one line at a time."""

from __future__ import annotations

import sys
import threading

from flows.reproduce import Outcome


class _Say:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.cached = 0

    def line(self, text: str) -> None:
        with self._lock:
            print(f"  {text}", file=sys.stderr, flush=True)  # noqa: T201

    def outcome(self, outcome: Outcome) -> None:
        mark = "+" if outcome.how == "ran" else "="
        self.line(f"{mark} {outcome.stage}  {outcome.how}, {outcome.seconds:.1f} s")


say = _Say()
