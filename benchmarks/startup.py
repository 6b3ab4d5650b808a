"""How long a person waits for nothing: `aut --help`, and `dvc repro` when nothing changed.

Figures  help_s        median wall seconds of `aut --help`
         noop_repro_s  median wall seconds of `dvc repro` in a finished working copy
--quick  uses a finished working copy (of any profile) where there is one; otherwise runs profile tiny first
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from aut.layout import Layout
from aut.workcopy import checkout_root, tool_env
from benchmarks._common import arguments, finish, machine, say


def wall(args: list[str], cwd: Path, times: int) -> float:
    """Median seconds of a command that must succeed, after one run that is not counted."""
    took = []
    for n in range(times + 1):
        start = time.perf_counter()
        subprocess.run(args, cwd=cwd, env=tool_env(), check=True, capture_output=True)
        took.append(time.perf_counter() - start)
        say(f"{' '.join(args[1:4])}: {took[-1]:.2f} s{' (warm-up)' if n == 0 else ''}")
    return statistics.median(took[1:])


def finished_copy(work: Path) -> Path | None:
    """The newest working copy that reached `register`."""
    done = [p for p in (work / "copies").glob("*") if (p / "reports/register/registered.json").exists()]
    return max(done, key=lambda p: p.stat().st_mtime, default=None)


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    checkout = checkout_root()
    help_s = wall([sys.executable, "-m", "aut", "--help"], checkout, 5 if options.quick else 15)
    with tempfile.TemporaryDirectory() as scratch:
        copy = finished_copy(Layout(checkout).work) if options.quick else None
        if copy is None:
            say("no finished working copy: running profile tiny")
            os.environ["AUT_WORK"] = scratch
            run = [sys.executable, "-m", "aut", "run", "--profile", "tiny"]
            subprocess.run(run, cwd=checkout, env=tool_env(), check=True, stdout=sys.stderr)
            copy = Path(scratch) / "copies/tiny"
        os.environ["AUT_WORK"] = str(copy.parents[1])
        noop_s = wall([sys.executable, "-m", "dvc", "repro"], copy, 2 if options.quick else 5)
        figures = {"help_s": help_s, "noop_repro_s": noop_s}
        finish("startup", figures, options.keep, {"machine": machine("dvc", "typer"), "copy": copy.name})


if __name__ == "__main__":
    main()
