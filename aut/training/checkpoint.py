"""Checkpoints: whole or not there, the last N and the best kept, the newest sound one found again.

In    an Engine's tensors (engine.snapshot), the loop's State
Out   <work>/step-00000200/: weights.pt, optimizer.pt, state.json, and digests.json over them, written last
Why   a folder is written beside and renamed, so a kill leaves the one before. A disk can still cut a renamed file
      short: the digests tell, and the one before it is used, said aloud. They are taken of what is written, on its way.
      Price: a start reads the whole checkpoint that it goes on from, to compare.

AUT_ANEW=1   begins anew beside an interrupted training of the same name, on other rows or from another model

The random state is not among the files: the loop seeds each step by (seed, step), so there is none to lose.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from aut.errors import DataError
from aut.files import Digesting, digest_file, is_locked, read_json, replacing, write_json
from aut.training.sizes import LEARNT

DIGESTS, STATE = "digests.json", "state.json"
SHORT, TOLD = 8, 3  # characters of a digest, folders in a sentence
RUN = "run.json"  # which tracked run made the checkpoints beside it
LOCK = "lock"  # held by the training at work
PLACE = "place"  # in an origin: the working copy that asked for it
STARTS = ("model", "mixture")  # of an origin, what a training started from


@dataclass
class State:
    """What the loop knows beside weights and optimiser; all of it JSON, floats kept exactly.

    step       optimiser steps done
    window     sums since the last logged row
    log        metrics rows so far: a resumed run has them all
    origin     the checkpoint's name; digests of the model it started from, of the rows, of params and code; the
               working copy
    lost       steps in a row that were not finite, with their rows
    captions   samples of every evaluation (aut/training/captions.py)
    """

    identity: str
    origin: dict[str, str] = field(default_factory=dict)
    step: int = 0
    clips: int = 0
    valid_s: float = 0.0
    padded_s: float = 0.0
    tokens: int = 0
    replaced: int = 0
    skipped: int = 0
    loss_mean: float = 0.0
    loss_square: float = 0.0
    ids_digest: str = ""
    window: dict[str, float] = field(default_factory=dict)
    log: list[dict[str, float]] = field(default_factory=list)
    evals: list[dict[str, float]] = field(default_factory=list)
    spikes: list[dict[str, Any]] = field(default_factory=list)
    lost: list[dict[str, Any]] = field(default_factory=list)
    captions: list[list[Any]] = field(default_factory=list)

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


def write(work: Path, files: Mapping[str, Any], state: State, keep: int) -> Path:
    """A checkpoint of `files`, by name what torch saves there; keeps the last `keep` and the best by eval loss."""
    target = work / f"step-{state.step:08d}"
    draft = target.with_name(f".{target.name}")
    clean(draft)
    with replacing(target, draft):
        digests = {name: _save(draft / name, value) for name, value in files.items()}
        write_json(draft / STATE, asdict(state))
        write_json(draft / DIGESTS, digests | {STATE: digest_file(draft / STATE)})
    for ahead in [p for p in checkpoints(work) if p.name > target.name]:
        shutil.rmtree(ahead)  # it was cut short, or this step would not have been done again
    kept = checkpoints(work)
    best = min(kept, key=lambda p: (_eval_loss(p), p.name))
    for old in kept[:-keep]:
        if old != best:
            shutil.rmtree(old)
    return target


def _save(path: Path, value: Any) -> str:
    """Digest of the file."""
    import torch

    with path.open("wb") as f:
        digested: Any = Digesting(f)  # torch asks of a file no more than this
        torch.save(value, digested)
    return str(digested.digest)


def discard(work: Path) -> None:
    """Removes a finished job's checkpoints and drafts, who made them, and what was learnt; its lock stays."""
    for folder in (*checkpoints(work), *work.glob(".step-*"), *work.glob(".up-*"), *work.glob("out-*")):
        shutil.rmtree(folder, ignore_errors=True)
    for name in (RUN, LEARNT):
        (work / name).unlink(missing_ok=True)


def read_state(folder: Path) -> State:
    """Another version of aut may have known less or more: its identity is another, and what it knew tells so."""
    values = read_json(folder / STATE)
    return State(**{f.name: values[f.name] for f in fields(State) if f.name in values})


def newest(work: Path, identity: str, origin: Mapping[str, str] | None = None) -> tuple[Path, State] | None:
    """The newest checkpoint whose files are whole; what is passed over for it is said.

    DataError where it belongs to another model or other rows.
    """
    cut: list[str] = []
    for folder in reversed(checkpoints(work)):
        if not whole(folder):
            cut.append(folder.name)
            continue
        state = read_state(folder)
        if state.identity != identity:
            raise DataError(
                f"{folder} belongs to another training: {_differences(state, identity, origin or {})}",
                f"move {work} away",
            )
        if cut:
            print(f"{work}: {', '.join(cut)} cut short: {folder.name}, from before, is used", file=sys.stderr)  # noqa: T201
        return folder, state
    return None


def elsewhere(work: Path, origin: Mapping[str, str]) -> str:
    """One sentence on the checkpoints that lie beside `work`, of the same name and other inputs; "" without any.

    DataError where one of them is this working copy's own, of another model or other rows, unless AUT_ANEW=1: what
    it has cost would be lost by a mistake upstream. Nobody may be at work there.
    """
    left = _left(work, origin["name"])
    for folder, theirs in left if os.environ.get("AUT_ANEW") != "1" else ():
        ours = {name: origin[name] for name in STARTS}
        if origin.get(PLACE) and theirs.get(PLACE) == origin[PLACE] and _told(theirs, ours):
            raise DataError(
                f"{origin['name']} was interrupted at {folder}, with other inputs: {'; '.join(_told(theirs, ours))}",
                f"give back its inputs to go on from it; to begin anew set AUT_ANEW=1 once, or remove {folder.parent}",
            )
    told = [f"{folder.parent.name[:SHORT]} ({folder.name}: {_shortly(theirs, origin)})" for folder, theirs in left]
    if not told:
        return ""
    more = f" and {len(told) - TOLD} more" if len(told) > TOLD else ""
    return (
        f"checkpoints of other inputs lie in {work.parent}, and are not used: {', '.join(told[:TOLD])}{more}; "
        "give back the inputs of one to go on from it, or remove its folder"
    )


def _left(work: Path, name: str) -> list[tuple[Path, dict[str, str]]]:
    """The newest checkpoint, by its state.json, of each training of that name beside `work` that nobody is at."""
    found = []
    for sibling in sorted(p for p in work.parent.glob("*") if p != work):
        with suppress(Exception):  # whatever is wrong with it, it is none of ours
            folder = checkpoints(sibling)[-1]
            theirs = read_state(folder).origin
            if theirs["name"] == name and not is_locked(sibling / LOCK):
                found.append((folder, theirs))
    return found


def _shortly(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    differing = [name for name in ours if name != PLACE and theirs.get(name) != ours[name]]
    told = [f"its {name} {theirs.get(name, 'unknown')[:SHORT]}, here {ours[name][:SHORT]}" for name in differing]
    return "; ".join(told) or "of another version of aut"


def _differences(state: State, identity: str, origin: Mapping[str, str]) -> str:
    """What differs, both sides named."""
    ours = {name: value for name, value in origin.items() if name != PLACE}
    return "; ".join(
        _told(state.origin, ours) or [f"its inputs (params, code) are {state.identity}, this run's are {identity}"]
    )


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != DIGESTS)
    return {p.relative_to(folder).as_posix(): digest_file(p) for p in files}


def _told(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    named = [(name, theirs.get(name, "unknown"), ours[name]) for name in ours]
    return [f"its {name} is {other}, this run's is {own}" for name, other, own in named if other != own]


def whole(folder: Path) -> bool:
    """Whether every file is as it was when the checkpoint was finished."""
    try:
        return bool(read_json(folder / DIGESTS) == _digests(folder))
    except Exception:  # whatever is wrong with it, it is not whole
        return False


def _eval_loss(folder: Path) -> float:
    try:
        evals = read_json(folder / STATE)["evals"]
    except Exception:
        return float("inf")
    return float(evals[-1]["eval_loss"]) if evals else float("inf")
