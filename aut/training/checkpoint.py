"""Checkpoints: whole or not there, the last N and the best kept, the newest sound one found again.

In    an Engine, the loop's State
Out   <work>/step-00000200/: weights.pt, optimizer.pt, state.json, and digests.json over them, written last
Why   a folder is written beside and renamed, so a kill leaves the one before. A disk can still cut a renamed file
      short: the digests tell, and the checkpoint before it is used, said aloud.
      Price: every checkpoint is read once more to digest it.

The random state is not among the files: the loop seeds each step by (seed, step), so there is none to lose.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from aut.errors import DataError
from aut.files import digest_file, read_json, replacing, write_json

DIGESTS = "digests.json"


@dataclass
class State:
    """What the loop knows beside weights and optimiser; all of it JSON, floats kept exactly.

    step       optimiser steps done
    window     sums since the last logged row
    log        metrics rows so far: a resumed run has them all
    """

    identity: str
    step: int = 0
    clips: int = 0
    valid_s: float = 0.0
    padded_s: float = 0.0
    tokens: int = 0
    replaced: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    loss_mean: float = 0.0
    loss_square: float = 0.0
    ids_digest: str = ""
    window: dict[str, float] = field(default_factory=dict)
    log: list[dict[str, float]] = field(default_factory=list)
    evals: list[dict[str, float]] = field(default_factory=list)
    spikes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def eval_loss(self) -> float:
        return self.evals[-1]["eval_loss"] if self.evals else float("inf")


def checkpoints(work: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(p for p in work.glob("step-*") if p.is_dir())


def clean(draft: Path) -> None:
    """An empty folder, and none of those that a kill left half written."""
    for left in draft.parent.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)
    draft.mkdir(parents=True)


def finish(work: Path, draft: Path, state: State, keep: int) -> Path:
    """Makes `draft`, which holds the tensors, a checkpoint; keeps the last `keep` and the best by eval loss."""
    target = work / f"step-{state.step:08d}"
    with replacing(target, draft):
        write_json(draft / "state.json", asdict(state))
        write_json(draft / DIGESTS, _digests(draft))
    kept = checkpoints(work)
    best = min(kept, key=lambda p: (_eval_loss(p), p.name))
    for old in kept[:-keep]:
        if old != best:
            shutil.rmtree(old)
    return target


def discard(work: Path) -> None:
    """Removes a finished job's checkpoints and drafts; its lock stays."""
    for folder in (*checkpoints(work), *work.glob(".step-*"), *work.glob("out-*")):
        shutil.rmtree(folder, ignore_errors=True)


def read_state(folder: Path) -> State:
    values = read_json(folder / "state.json")
    return State(**{f.name: values[f.name] for f in fields(State)})


def newest(work: Path, identity: str) -> tuple[Path, State] | None:
    """The newest checkpoint whose files are whole. DataError where it belongs to other inputs."""
    for folder in reversed(checkpoints(work)):
        if not _whole(folder):
            print(f"{folder} was cut short: the checkpoint before it is used", file=sys.stderr)  # noqa: T201
            continue
        state = read_state(folder)
        if state.identity != identity:
            raise DataError(
                f"{folder} belongs to inputs {state.identity}, this run has {identity}", f"move {work} away"
            )
        return folder, state
    return None


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != DIGESTS)
    return {p.relative_to(folder).as_posix(): digest_file(p) for p in files}


def _whole(folder: Path) -> bool:
    try:
        return bool(read_json(folder / DIGESTS) == _digests(folder))
    except Exception:  # whatever is wrong with it, it is not whole
        return False


def _eval_loss(folder: Path) -> float:
    try:
        evals = read_json(folder / "state.json")["evals"]
    except Exception:
        return float("inf")
    return float(evals[-1]["eval_loss"]) if evals else float("inf")
