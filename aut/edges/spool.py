"""Spool: what a stage reports, as JSON lines on disk, so that no stage waits for (or imports) MLflow.

In    calls of contracts.Tracker from a stage, from any thread or forked worker
Out   <spool>/<stage>[@item].<n>/events.jsonl, files/ (copies of artifacts); run.json is written beside by the shipper
Why   MLflow takes 2 s to import and a server may be away for hours: a stage does neither wait nor lose a point.
      One `write` a call into a file opened for appending: a kill -9 loses nothing that was reported.
Price a copy of each artifact until it is shipped; no fsync, so a power cut may cost the last seconds.

AUT_SPOOL       folder a flow's shipper watches; without it the stage ships its own events when it ends
AUT_PARENT_RUN  MLflow run under which the stage's run is nested
AUT_FLOW_RUN    Prefect flow run, kept as a tag
AUT_TRACK=off   reports nothing
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from aut.contracts import Silent
from aut.edges.system import watched
from aut.errors import AutError, Busy
from aut.files import digest_file, locked, read_json, write_json
from aut.layout import Layout

EVENTS = "events.jsonl"
RUN = "run.json"  # {"run_id": ...}: written by the shipper once MLflow has the run
AWAY = "away"  # in the spool's root while the server does not answer
ALIVE = "alive.lock"  # held by the stage process
RUN_ID_WAIT_S = 10.0
LIVE_AFTER_S = 30.0  # a stage on its own that runs longer is shipped while it runs
ALONE_LIMIT_S = 20.0  # for sending at the end of a stage on its own


class Spool:
    """A contracts.Tracker that appends to `<folder>/events.jsonl`. Opening one that exists continues it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._fd = os.open(folder / EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._lock = threading.Lock()
        self._copies = 0
        self._failed = False

    def params(self, values: Mapping[str, Any]) -> None:
        self.write("params", values=flat(values))

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        self.write("metrics", values={k: _number(v) for k, v in values.items()}, step=step or 0)

    def tags(self, values: Mapping[str, str]) -> None:
        self.write("tags", values={k: str(v) for k, v in values.items()})

    def artifact(self, path: Path, folder: str = "") -> None:
        """Copies the file or folder at once: an output may be replaced before it is shipped."""
        path.stat()  # one that is missing is the caller's error
        with self._lock:
            self._copies += 1
            copy = self.folder / "files" / f"{os.getpid()}-{self._copies}" / path.name
        with self._kept(copy):
            if path.is_dir():
                shutil.copytree(path, copy)
            else:
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy)
            self.write("artifact", path=copy.relative_to(self.folder).as_posix(), folder=folder)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Kept as JSON in the layout that MLflow shows as a table; the newest of a name is the one that is shown."""
        path = self.folder / "files" / f"{os.getpid()}-{name}" / f"{name}.json"
        with self._kept(path):
            write_json(path, {"columns": list(columns), "data": [list(row) for row in rows]})
            self.write("table", path=path.relative_to(self.folder).as_posix())

    def goes_on(self, marker: Path) -> None:
        self.write("goes_on", marker=str(marker))

    def dataset(self, name: str, digest: str, rows: int, path: Path) -> None:
        self.write("dataset", name=name, digest=digest, rows=rows, path=str(path))

    def write(self, kind: str, **event: Any) -> None:
        """One line, one system call: lines of threads and processes do not mix."""
        line = json.dumps({"kind": kind, "t_ms": time.time_ns() // 1_000_000, **event}, default=str) + "\n"
        with self._kept(self.folder / EVENTS):
            os.write(self._fd, line.encode())

    @contextmanager
    def _kept(self, path: Path) -> Iterator[None]:
        """A full disk must not stop a training that could still finish: said once, and what was to be kept is not."""
        try:
            yield
        except OSError as error:
            if not self._failed:
                _say(f"tracking has gaps from now on, {path} cannot be written: {error}")
            self._failed = True

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class StageTracker(Spool):
    """A stage's spool, with what its run record needs. `ship` sends what is there; it returns the run's id."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], ship: Callable[[], str | None] | None) -> None:
        super().__init__(folder)
        self._identity, self._ship = dict(identity), ship
        self._datasets: dict[str, str] = {}

    def dataset(self, name: str, digest: str, rows: int, path: Path) -> None:
        self._datasets[name] = digest
        super().dataset(name, digest, rows, path)

    def run_id(self) -> str | None:
        """The MLflow run's id; None when the server is away (the events are sent later)."""
        return self._ship() if self._ship else wait_for_run(self.folder)

    def record(self) -> dict[str, Any]:
        """What `data/runs/<stage>.json` keeps: the run that made the stage's outputs."""
        return {**self._identity, "datasets": self._datasets, "run_id": self.run_id()}


class SilentTracker(Silent):
    """AUT_TRACK=off: nothing is kept but the record of where the outputs come from."""

    def __init__(self, identity: Mapping[str, Any]) -> None:
        self._identity = dict(identity)

    def run_id(self) -> None:
        return None

    def record(self) -> dict[str, Any]:
        return {**self._identity, "datasets": {}, "run_id": None}


@contextmanager
def stage_tracker(stage: str, item: str, layout: Layout) -> Iterator[StageTracker | SilentTracker]:
    """The tracker of one stage process. Its run ends FINISHED, FAILED, or KILLED with the block."""
    identity = identity_of(stage, item, layout)
    if os.environ.get("AUT_TRACK", "").lower() == "off":
        yield SilentTracker(identity)
        return
    held = os.environ.get("AUT_SPOOL")
    folder = new_folder(Path(held) if held else layout.work / "spool" / "alone", f"{stage}@{item}" if item else stage)
    alone = None if held else _Alone(folder, layout)
    track = StageTracker(folder, identity, alone.send if alone else None)
    with locked(folder / ALIVE, f"stage {stage}"), watched(track):
        track.write("start", name=f"{stage}@{item}" if item else stage, tags=_run_tags(identity), **_parent(identity))
        try:
            yield track
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            track.tags({"aut.error": f"{type(error).__name__}: {error}"[:500]})
            _end(track, status, alone)
            raise
        _end(track, "FINISHED", alone)


def identity_of(stage: str, item: str, layout: Layout) -> dict[str, Any]:
    """Where this stage's outputs come from, as far as it is known before it runs."""
    import yaml

    params = yaml.safe_load(layout.params.read_text()) if layout.params.exists() else {}
    return {
        "stage": stage,
        "item": item,
        "seed": params.get("seed"),
        "profile": params.get("profile"),
        "revision": code_revision(layout),
        "params_digest": params_digest(layout),
        "parent_run_id": os.environ.get("AUT_PARENT_RUN"),
        "flow_run": os.environ.get("AUT_FLOW_RUN"),
    }


def code_revision(layout: Layout) -> str:
    """git HEAD, '-dirty-...' with uncommitted edits; 'unknown' outside a clone."""
    from aut.workcopy import revision

    try:
        return revision(layout.root)
    except (AutError, OSError):
        return "unknown"


def params_digest(layout: Layout) -> str:
    return digest_file(layout.params) if layout.params.exists() else ""


def new_folder(spool: Path, name: str) -> Path:
    """`<spool>/<name>.<n>`, n counting the attempts; made by this call and no other."""
    spool.mkdir(parents=True, exist_ok=True)
    attempt = 1
    while True:
        folder = spool / f"{name}.{attempt}"
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
        attempt += 1


def wait_for_run(folder: Path, limit_s: float = RUN_ID_WAIT_S) -> str | None:
    """The id in run.json once the shipper has written it; None after `limit_s`, or at once while the server is away."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if (folder / RUN).exists():
            return str(read_json(folder / RUN)["run_id"])
        if (folder.parent / AWAY).exists():
            return None
        time.sleep(0.05)
    return None


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys; lists as JSON. MLflow keeps params as text."""
    rows: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows |= flat(value, f"{prefix}{key}.")
        else:
            rows[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return rows


class _Alone:
    """Ships the stage's own folder from inside its process: MLflow is imported late, in `send` or after a while."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self._stop = threading.Event()
        self._one = threading.Lock()
        self._said = False
        self._thread = threading.Thread(target=self._live, daemon=True, name="aut-ship")
        self._thread.start()

    def send(self) -> str | None:
        """Sends what was reported so far. Says it once when the server is away; the stage goes on."""
        from aut.edges.tracking import send_alone

        with self._one:
            try:
                send_alone(self.folder, self.layout, ALONE_LIMIT_S)
            except Busy:
                pass  # another process sends leftovers, this folder among them
            except AutError as error:
                if not self._said:
                    _say(f"{error.what}. The stage goes on; its events wait in {self.folder} for a later run")
                self._said = True
        return wait_for_run(self.folder, limit_s=0.1)

    def finish(self) -> None:
        self._stop.set()
        self._thread.join()
        self.send()

    def _live(self) -> None:
        while not self._stop.wait(LIVE_AFTER_S):
            self.send()


def _end(track: StageTracker, status: str, alone: _Alone | None) -> None:
    track.write("end", status=status)
    track.close()
    if alone:
        alone.finish()


def _run_tags(identity: Mapping[str, Any]) -> dict[str, str]:
    names = ("stage", "item", "profile", "revision", "params_digest", "flow_run")
    return {f"aut.{n}": str(identity[n]) for n in names if identity[n]}


def _parent(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Enough to find or open the parent run later, by a process that knows nothing else."""
    return {k: identity[k] for k in ("parent_run_id", "profile", "revision", "params_digest", "seed")}


def _number(value: Any) -> float:
    number = float(value)
    return number if math.isfinite(number) else math.nan if math.isnan(number) else math.copysign(1.7e308, number)


def _say(message: str) -> None:
    print(f"aut: {message}", file=sys.stderr, flush=True)  # noqa: T201
