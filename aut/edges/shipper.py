"""Shipper: sends spooled events to MLflow, each exactly once, whenever the server is there.

In    <spool>/<stage>[@item].<n>/events.jsonl, written by live or dead stage processes
Out   nested MLflow runs; beside the events: run.json (the run's id), shipped.json (how far it got), rejected.jsonl
Why   the offset is saved after a batch is accepted and MLflow ignores a point it has (same key, step, time, value), so
      a crash between the two repeats a batch without doubling it. A run is found again by a key saved beforehand.
Price up to POLL_S before a point is visible; one request a kind of event and folder.
Run   under a flow as a thread (`with Shipper(...)`); at the end of a stage on its own (`send_folder`)
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from aut.edges.parent import METRICS_A_CALL, PARAMS_A_CALL, TEXT_MAX, find_or_open_parent, find_runs, parts
from aut.edges.spool import ALIVE, AWAY, EVENTS, RUN
from aut.edges.store import check_server, client, experiment_id, mlflow_module, plain
from aut.errors import AutError, Busy, TrackingError
from aut.files import locked, read_json, write_json
from aut.layout import Layout

SHIPPED = "shipped.json"  # {"offset": bytes accepted by MLflow, "key": ..., "ended": bool, "done": bool}
POLL_S = 0.3
BACKOFF_MAX_S = 15.0
CHUNK_B = 1 << 20  # of events read at once
TABLES = "mlflow.loggedArtifacts"
FINAL = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE")  # asking again does not help


@dataclass
class _Chunk:
    """Events between two offsets of a spool."""

    events: list[dict[str, Any]]
    end_b: int
    last: bool  # nothing complete lies behind it


class Folder:
    """One stage's spool and its run in MLflow."""

    def __init__(self, uri: str, folder: Path, parent: Callable[[Mapping[str, Any]], str]) -> None:
        self.uri, self.folder, self._parent = uri, folder, parent
        self.state: dict[str, Any] = {"offset": 0, "key": "", "ended": False, "done": False}
        with suppress(AutError):
            self.state |= read_json(folder / SHIPPED)

    def send(self) -> None:
        """Sends everything that is there. A dead stage without an end is closed as KILLED."""
        dead = not _held(self.folder / ALIVE)  # asked first: what is read next is then all there will be
        run_id = self._run_id()
        if run_id is None:
            return
        while True:
            chunk = self._read()
            ended = self._send_chunk(run_id, chunk.events)
            if chunk.end_b > self.state["offset"]:
                self._save(offset=chunk.end_b, ended=ended or self.state["ended"])
            if chunk.last:
                break
        if dead and not self.state["ended"]:
            client(self.uri).set_terminated(run_id, "KILLED")
        if dead or self.state["ended"]:
            self._save(done=True)
            shutil.rmtree(self.folder / "files", ignore_errors=True)

    def left(self) -> int:
        """Events not yet accepted by MLflow."""
        with suppress(FileNotFoundError), (self.folder / EVENTS).open("rb") as f:
            f.seek(self.state["offset"])
            return sum(1 for _ in f)
        return 0

    def _run_id(self) -> str | None:
        """The stage's run: known, found by its key, or made. None while the start is not written."""
        if (self.folder / RUN).exists():
            return str(read_json(self.folder / RUN)["run_id"])
        start = next((e for e in _lines(self.folder / EVENTS) if e.get("kind") == "start"), None)
        if start is None:
            return None
        run_id = self._find() or self._create(start)
        write_json(self.folder / RUN, {"run_id": run_id})
        return run_id

    def _find(self) -> str | None:
        if not self.state["key"]:
            self._save(key=uuid.uuid4().hex)
            return None
        found = find_runs(self.uri, {"aut.key": self.state["key"]}, limit=1)
        return str(found[0].info.run_id) if found else None

    def _create(self, start: Mapping[str, Any]) -> str:
        tags = {
            **start["tags"],
            "aut.key": self.state["key"],
            "mlflow.parentRunId": start.get("parent_run_id") or self._parent(start),
            "mlflow.source.git.commit": str(start["revision"])[:40],
        }
        run = client(self.uri).create_run(experiment_id(self.uri, None), start["t_ms"], tags, start["name"])
        return str(run.info.run_id)

    def _read(self) -> _Chunk:
        """Complete lines behind the offset. A line torn by a full disk is passed over."""
        with (self.folder / EVENTS).open("rb") as f:
            f.seek(self.state["offset"])
            block = f.read(CHUNK_B)
            if block and b"\n" not in block:
                block += f.readline()
            more = bool(f.read(1))
        whole = block[: block.rfind(b"\n") + 1]
        events = []
        for line in whole.splitlines():
            with suppress(ValueError):
                events.append(json.loads(line))
        return _Chunk(events, self.state["offset"] + len(whole), last=not more or not whole)

    def _send_chunk(self, run_id: str, events: list[dict[str, Any]]) -> bool:
        """Sends events in few calls; True when the stage's end was among them."""
        entities = mlflow_module().entities
        metrics: list[Any] = []
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        end = None
        for event in events:
            match event["kind"]:
                case "metrics":
                    step, t_ms = int(event["step"]), int(event["t_ms"])
                    metrics += [entities.Metric(k, v, t_ms, step) for k, v in event["values"].items()]
                case "params":
                    params |= event["values"]
                case "tags":
                    tags |= event["values"]
                case "artifact":
                    self._artifact(run_id, event)
                case "table":
                    self._table(run_id, event)
                case "goes_on":
                    self._goes_on(run_id, Path(event["marker"]))
                case "dataset":
                    self._dataset(run_id, event)
                case "end":
                    end = event
        self._batches(run_id, "params", [entities.Param(k, v[:TEXT_MAX]) for k, v in params.items()], PARAMS_A_CALL)
        self._batches(run_id, "tags", [entities.RunTag(k, v) for k, v in tags.items()], PARAMS_A_CALL)
        self._batches(run_id, "metrics", metrics, METRICS_A_CALL)
        if end:
            client(self.uri).set_terminated(run_id, end["status"], end["t_ms"])
        return end is not None

    def _batches(self, run_id: str, kind: str, rows: list[Any], size: int) -> None:
        for part in parts(rows, size):
            try:
                client(self.uri).log_batch(run_id, **{kind: part})
            except mlflow_module().MlflowException as error:
                if error.error_code not in FINAL:
                    raise
                if len(part) > 1:  # one bad name must not cost the others
                    self._batches(run_id, kind, part, 1)
                else:
                    self._reject(part[0], error)

    def _reject(self, what: Any, error: Exception) -> None:
        """MLflow will never take it: kept beside the events, said once, so that the rest can go on."""
        with (self.folder / "rejected.jsonl").open("a") as f:
            f.write(json.dumps({"what": dict(what), "why": str(error)[:500]}, default=str) + "\n")
        _say(f"tracking of {self.folder.name}: MLflow refused {what.key!r} ({str(error).splitlines()[0][:200]})")

    def _artifact(self, run_id: str, event: Mapping[str, Any]) -> None:
        path = self.folder / event["path"]
        target = event["folder"] or None
        if path.is_dir():
            client(self.uri).log_artifacts(run_id, str(path), "/".join(filter(None, (target, path.name))))
        elif path.exists():
            client(self.uri).log_artifact(run_id, str(path), target)

    def _table(self, run_id: str, event: Mapping[str, Any]) -> None:
        """The file, and the tag by which MLflow's pages know it for a table."""
        self._artifact(run_id, {"path": event["path"], "folder": ""})
        known = json.loads(client(self.uri).get_run(run_id).data.tags.get(TABLES, "[]"))
        entry = {"path": Path(event["path"]).name, "type": "table"}
        if entry not in known:
            client(self.uri).set_tag(run_id, TABLES, json.dumps([*known, entry]))

    def _goes_on(self, run_id: str, marker: Path) -> None:
        """Names the run whose work this one goes on with. A finished training has removed its folder's marker."""
        with suppress(AutError):
            before = read_json(marker)["run_id"]
            if before != run_id:
                client(self.uri).set_tag(run_id, "aut.resumes", before)
        if marker.parent.exists():
            write_json(marker, {"run_id": run_id})

    def _dataset(self, run_id: str, event: Mapping[str, Any]) -> None:
        entities = mlflow_module().entities
        dataset = entities.Dataset(
            name=event["name"],
            digest=event["digest"][:36],  # MLflow's limit; ours has 32
            source_type="local",
            source=json.dumps({"uri": event["path"]}),
            profile=json.dumps({"rows": event["rows"]}),
        )
        context = entities.InputTag("mlflow.data.context", "input")
        client(self.uri).log_inputs(run_id, [entities.DatasetInput(dataset, [context])])

    def _save(self, **changes: Any) -> None:
        self.state |= changes
        write_json(self.folder / SHIPPED, self.state)


def send_folder(uri: str, folder: Path, layout: Layout) -> None:
    """Sends one spool now, in this process. TrackingError: the server is away. Busy: another process sends it."""
    _send(Folder(uri, folder, lambda start: find_or_open_parent(uri, start, layout)))


def unsent(spool: Path) -> list[Path]:
    """Stages' folders anywhere below `spool` that are not wholly in MLflow, oldest first."""
    folders = [p.parent for p in spool.rglob(EVENTS) if not _done(p.parent)]
    return sorted(folders, key=lambda p: p.stat().st_mtime)


def forget_sent(spool: Path) -> None:
    """Removes the folders of ended stages that are wholly in MLflow."""
    for events in list(spool.rglob(EVENTS)):
        if _done(events.parent) and not _held(events.parent / ALIVE):
            shutil.rmtree(events.parent, ignore_errors=True)


class Shipper:
    """A thread that sends every stage spooled below `spool`; leaving the block waits up to `limit_s` for the rest.

    A block that ends by an error waits `failed_s` at most. What is left then stays on disk for
    `tracking.send_leftovers`; `.left` says how many events.
    """

    def __init__(
        self, uri: str, parent_run_id: str, spool: Path, limit_s: float = 60.0, failed_s: float = 20.0
    ) -> None:
        self.uri, self.spool, self.limit_s, self.failed_s = uri, spool, limit_s, failed_s
        self.left = 0
        self._parent_run_id = parent_run_id
        self._stop = threading.Event()
        self._until = float("inf")
        self._said = ""
        self._thread = threading.Thread(target=self._loop, name="aut-ship", daemon=True)

    def __enter__(self) -> Shipper:
        self.spool.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._until = time.monotonic() + (self.limit_s if kind is None else min(self.limit_s, self.failed_s))
        self._stop.set()
        self._thread.join()
        self.left = sum(Folder(self.uri, f, lambda _: "").left() for f in unsent(self.spool))
        if self.left:
            _say(f"tracking: {self.left} events wait in {self.spool}; they are sent by the next run or `aut status`")

    def send(self) -> None:
        """One pass over the spool."""
        if self.uri.startswith("http") and unsent(self.spool):
            check_server(self.uri)
        for folder in unsent(self.spool):
            with suppress(Busy):
                _send(Folder(self.uri, folder, lambda _: self._parent_run_id))

    def _loop(self) -> None:
        pause = POLL_S
        while True:
            last = self._stop.is_set()
            if self._pass():
                pause = POLL_S
                if last:
                    return
            else:
                pause = min(2 * pause, BACKOFF_MAX_S)
            if last and time.monotonic() > self._until:
                return
            if last:
                time.sleep(min(pause, 1.0))
            else:
                self._stop.wait(pause)

    def _pass(self) -> bool:
        """True when everything there was sent; otherwise stages are told not to wait for a run id."""
        try:
            self.send()
        except Exception as error:  # whatever it is, the events are on disk and the next pass tries again
            (self.spool / AWAY).touch()
            message = f"tracking: {_sentence(error)}"
            if message != self._said:
                _say(f"{message} Events wait in {self.spool}.")
            self._said = message
            return False
        if self._said:
            _say(f"tracking: {plain(self.uri)} answers again")
        self._said = ""
        (self.spool / AWAY).unlink(missing_ok=True)
        return True


def _send(folder: Folder) -> None:
    with locked(folder.folder / "ship.lock", f"sending {folder.folder.name}"):
        folder = Folder(folder.uri, folder.folder, folder._parent)  # another sender may have gone further
        if folder.state["done"]:
            return
        try:
            folder.send()
        except AutError:
            raise
        except Exception as error:
            raise TrackingError(f"MLflow at {plain(folder.uri)}: {_sentence(error)}") from error


def _done(folder: Path) -> bool:
    with suppress(AutError):
        return bool(read_json(folder / SHIPPED)["done"])
    return False


def _held(lock: Path) -> bool:
    """True while a live process holds the lock."""
    if not lock.exists():
        return False
    try:
        with locked_for_reading(lock):
            return False
    except BlockingIOError:
        return True


class locked_for_reading:  # noqa: N801 - used as a statement
    """A shared lock that leaves the holder's pid in the file untouched."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        import fcntl

        self._fd = os.open(self._path, os.O_RDONLY)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with suppress(FileNotFoundError), path.open("rb") as f:
        for line in f:
            with suppress(ValueError):
                yield json.loads(line)


def _sentence(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return first if first.endswith(".") else f"{first}."


def _say(message: str) -> None:
    print(f"aut: {message}", file=sys.stderr, flush=True)  # noqa: T201
