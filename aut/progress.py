"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere, both on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

QUIET_S = 2.0  # shorter work says nothing
LINE_EVERY_S = 10.0


class Advance(Protocol):
    def __call__(self, steps: float = 1.0, note: str = "") -> None: ...


@contextmanager
def progress(what: str, total: float | None) -> Iterator[Advance]:
    """`with progress("index toy_words", 6000) as advance: ... advance(1)`; `total` None if not known."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)

            def advance(steps: float = 1.0, note: str = "") -> None:
                bar.update(task, advance=steps, description=f"{what} {note}".rstrip())

            yield advance
        return

    start = last = time.monotonic()
    done = 0.0

    def line(steps: float = 1.0, note: str = "") -> None:
        nonlocal last, done
        done += steps
        now = time.monotonic()
        if now - last >= LINE_EVERY_S:
            last = now
            of = f"/{total:g}" if total else ""
            print(f"{what}: {done:g}{of} {note}".rstrip(), file=sys.stderr, flush=True)  # noqa: T201

    yield line
    if (took := time.monotonic() - start) >= QUIET_S:
        print(f"{what}: done, {done:g} in {took:.1f} s", file=sys.stderr, flush=True)  # noqa: T201
