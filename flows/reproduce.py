"""One stage as a child process: `dvc --wait-for-lock repro --single-item --pull <stage>`, warm (aut/warm.py).

In    a working copy, a stage's name, the environment that ties it to the run
Out   whether it ran or was cached, its seconds; its whole output in $AUT_WORK/logs/<copy>/<stage>.log
Why   DVC keeps state per process and per working copy; two stages in one process would share it.
      Without --wait-for-lock two stages at once lose finished work.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from aut.errors import AutError
from aut.files import tail_lines
from aut.warm import ADDRESS, PR_SET_PDEATHSIG, serving
from aut.workcopy import tool_env

CORES = os.cpu_count() or 1
JOBS = int(os.environ.get("AUT_JOBS", CORES))
LIBC = ctypes.CDLL(None)  # loaded before the fork: a child of many threads may take no lock
TOLD = re.compile(r"^(aut: |WARNING: aut|[\w.@-]+[\w .@/-]*: (done|[\d.]+(/|\s|$)))")
"""Lines of a stage worth repeating: its progress, its errors."""
USER_ERRORS = re.compile(r"exited with ([2-7])$", re.MULTILINE)


class StageFailed(AutError):
    """A stage exited with an error; `hopeless` when running it again cannot help (bad params, bad data, a gate)."""

    def __init__(self, stage: str, log: Path, sentence: str, hopeless: bool) -> None:
        super().__init__(f"stage {stage} failed: {sentence}", f"its whole output is in {log}")
        self.stage, self.hopeless = stage, hopeless


@dataclass(frozen=True)
class Outcome:
    """`ran`, or `cached` where DVC had the result; wall seconds."""

    stage: str
    how: str
    seconds: float


class Children:
    """The stage processes of one run. A stop reaches them all, and no further one starts."""

    def __init__(self) -> None:
        self._live: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self.stopped = False

    @contextmanager
    def started(self, args: Sequence[str], root: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
        """A child whose output is piped to us. ChildProcessError after a stop."""
        with self._lock:
            if self.stopped:
                raise ChildProcessError("the run was stopped")
            child = subprocess.Popen(
                args,
                cwd=root,
                env=tool_env() | dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                preexec_fn=die_with_parent,
            )
            self._live.add(child)
        try:
            yield child
        except BaseException:
            child.terminate()
            raise
        finally:
            with self._lock:
                self._live.discard(child)

    def stop(self) -> None:
        """SIGTERM to every child: a fine-tune writes a checkpoint (aut/guard.py), the rest just ends."""
        with self._lock:
            self.stopped = True
            for child in self._live:
                child.terminate()


def has_gpu() -> bool:
    """Whether this host has NVIDIA's driver, whatever a process of it may see."""
    return Path("/proc/driver/nvidia/version").exists()


def stage_limits() -> dict[str, str]:
    """The threads of a stage. A fair share of the cores: small models gain nothing from a second thread."""
    threads = str(max(1, CORES // JOBS))
    # Passive: a thread that spins while it waits takes the core from the stage beside it.
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}


def warm_server(checkout: Path, env: Mapping[str, str]) -> AbstractContextManager[dict[str, str]]:
    """What makes stages start warm, as their environment; nothing on a host with a GPU (aut/warm.py says why)."""
    if has_gpu() or ADDRESS in os.environ:  # the command line started one
        return nullcontext({})
    return serving(checkout, tool_env() | dict(env))


def reproduce_stage(
    root: Path,
    stage: str,
    env: Mapping[str, str],
    log: Path,
    tell: Callable[[str], None],
    children: Children | None = None,
) -> Outcome:
    """Runs the stage to its end. StageFailed carries the stage's own sentence; after a stop it is hopeless."""
    children = children or Children()
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    args = [
        sys.executable,
        "-m",
        "aut.warm",
        "flows.quick_dvc",
        "--wait-for-lock",
        "repro",
        "--single-item",
        "--pull",
        stage,
    ]
    try:
        with log.open("w") as out, children.started(args, root, env) as child, cast("IO[str]", child.stdout) as told:
            for line in told:
                out.write(line)
                out.flush()
                if TOLD.match(line):
                    tell(line.rstrip())
            code = child.wait()
    except ChildProcessError as error:
        raise StageFailed(stage, log, str(error), hopeless=True) from None
    text = log.read_text(errors="replace")
    if code:
        sentence = _sentence(log)
        _put_back(root, stage, env, log)
        raise StageFailed(stage, log, sentence, children.stopped or bool(USER_ERRORS.search(text)))
    return Outcome(stage, "ran" if "Running stage" in text else "cached", time.monotonic() - start)


def _put_back(root: Path, stage: str, env: Mapping[str, str], log: Path) -> None:
    """Once more from outside: DVC and the stage may have been killed, or DVC failed with what the stage had made."""
    with log.open("a") as out:
        args = [sys.executable, "-m", "aut.warm", "aut.outs", stage]
        subprocess.run(args, cwd=root, env=tool_env() | dict(env), stdout=out, stderr=out, check=False)


def changed_stages(root: Path) -> set[str]:
    """Names of the stages that `dvc status` finds changed, by themselves (not by what they wait for)."""
    import json

    done = subprocess.run(
        [sys.executable, "-m", "dvc", "--wait-for-lock", "status", "--json"],
        cwd=root,
        env=tool_env(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise AutError(f"`dvc status` failed in {root}: {done.stderr.strip().splitlines()[-1:]}")
    return set(json.loads(done.stdout or "{}"))


def die_with_parent() -> None:
    # A flow that is killed -9 must not leave its stages behind; DVC's own child watches DVC (aut/guard.py).
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _sentence(log: Path) -> str:
    lines = list(tail_lines(log, 60))
    ours = [line.removeprefix("aut: ") for line in lines if line.startswith("aut: ")]
    return ours[-1] if ours else next((line for line in reversed(lines) if line.strip()), "it printed nothing")
