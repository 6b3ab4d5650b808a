"""Watcher: follows an alias. A new version is loaded and warmed beside the old one, then takes its place at once.

In    a `Source`: which version is meant now, and its folder
Out   `served`, replaced in one assignment; `status()` for /health/ready
Why   a request keeps the version it began with, so a swap loses nothing. A version that does not load, or fails on
      its own example, is refused and the old one stays. Price: two versions in memory while one is loaded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aut.errors import AutError, DataError, MissingInput, TrackingError
from aut.serving.engine import Passing
from aut.serving.limits import Refused
from aut.serving.versions import Pointer, Served, open_version

log = logging.getLogger("aut.serving")
RETRY_S = 60.0  # before a version that could not be loaded for a passing reason (memory, disk) is tried again
PATIENCE_S = 5.0  # a source that has not answered by then is away, until it answers


class Source(Protocol):
    """Where versions come from. `current` is cheap; it and `fetch` raise TrackingError while the registry is away."""

    command: str  # what makes a version where there is none

    def warm(self) -> None:
        """What takes time and asks nobody, as imports do."""

    def current(self) -> Pointer | None: ...

    def fetch(self, pointer: Pointer) -> Path: ...

    def local(self) -> tuple[Pointer, Path] | None:
        """The version fetched last, as it lies on this machine; None where it is not whole."""


@dataclass
class Folder:
    """A source that never changes: an encoder folder, or the package of a version."""

    folder: Path
    command: str = "aut export ENCODER"

    def warm(self) -> None:
        pass

    def current(self) -> Pointer | None:
        return Pointer(self.folder.name, "0", alias="folder")

    def fetch(self, pointer: Pointer) -> Path:
        return self.folder

    def local(self) -> tuple[Pointer, Path] | None:
        return None


class Watcher:
    """Polls the source in a thread of its own."""

    def __init__(
        self,
        source: Source,
        device: str | None = None,
        poll_s: float = 5.0,
        changed: Callable[[Served], None] | None = None,
        workers: int = 2,
    ) -> None:
        self.source, self.device, self.poll_s, self.changed = source, device, poll_s, changed
        self.workers, self.patience_s = workers, PATIENCE_S
        self._served: Served | None = None
        self.away: str | None = None  # why the registry does not answer
        self.refused: dict[str, str] = {}  # version -> why it is not served
        self._tried: dict[str, float] = {}
        self.looked = False  # at least once
        self.swaps = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aut-watch", daemon=True)

    @property
    def served(self) -> Served:
        """The version that answers. Refused 503 while there is none, with what to do."""
        if self._served is not None:
            return self._served
        if not self.looked:
            raise Refused(503, "starting", "the model is being loaded", 2.0)
        if self.refused:
            number, why = next(reversed(self.refused.items()))
            raise Refused(503, "refused", f"version {number} cannot be served: {why}", 30.0)
        if self.away:
            raise Refused(503, "registry_away", f"{self.away}, and no version lies on this machine", 10.0)
        raise Refused(503, "no_version", f"there is no version to serve yet: make one with `{self.source.command}`", 30)

    @property
    def answering(self) -> Served | None:
        return self._served

    def lost(self) -> int:
        """Processes of the answering version that died."""
        return self._served.encoder.lost if self._served else 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        if self._served:
            self._served.encoder.close()

    def look(self) -> None:
        """Asks the source once and follows it."""
        try:
            pointer = self._asked()
            if self._stop.is_set():
                return
            self._follow(pointer)
            self.away = None
        except TrackingError as error:
            self._went_away(error)
        finally:
            self.looked = True

    def _asked(self) -> Pointer | None:
        """What the source says. One that accepts and never answers is waited for, without holding up a start from the
        copy that lies here, or a stop; its thread is nobody's to join."""
        self.source.warm()  # its time is no sign of a registry that does not answer
        answer: Future[Pointer | None] = Future()

        def ask() -> None:
            try:
                answer.set_result(self.source.current())
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=ask, name="aut-ask", daemon=True).start()
        if not wait([answer], self.patience_s).done:
            self._went_away(TrackingError(f"the registry has not answered for {self.patience_s:g} s"))
            self.looked = True
        while not self._stop.is_set():
            if wait([answer], 0.1).done:
                return answer.result()
        return None

    def status(self) -> dict[str, Any]:
        """Body of /health/ready."""
        folder = isinstance(self.source, Folder)
        told: dict[str, Any] = {"ready": self._served is not None, "registry": self.away or "answers"}
        if folder:
            told["registry"] = "none"
        if self._served:
            told |= {"version": self._served.pointer.address, "alias": self._served.pointer.alias}
            told |= {"weights": self._served.encoder.digest, "from": "local copy" if self.away else "registry"}
            told |= {"from": "folder"} if folder else {}
        if self.refused:
            told["refused"] = dict(self.refused)
        return told

    def _follow(self, pointer: Pointer | None) -> None:
        if pointer is not None and not self._is_served(pointer):
            self._load(pointer, pointer.number, self.source.fetch)

    def _load(self, pointer: Pointer, name: str, fetch: Callable[[Pointer], Path]) -> None:
        """Opens it and lets it take over, unless what goes by this name was refused."""
        if name in self.refused and time.monotonic() < self._tried[name]:
            return
        try:
            served = open_version(fetch(pointer), pointer, self.device, self.workers)
        except TrackingError:
            raise
        except Exception as error:
            why = str(error) if isinstance(error, AutError) else f"{type(error).__name__}: {error}"
            lasting = isinstance(error, DataError | MissingInput) and not isinstance(error, Passing)
            self.refused[name] = why
            self._tried[name] = float("inf") if lasting else time.monotonic() + RETRY_S
            log.error("version %s is refused: %s", name, why)
            return
        for told in (pointer.number, _copy_of(pointer)):
            self.refused.pop(told, None)
        self._served, before = served, self._served
        self.swaps += before is not None
        if self.changed:
            self.changed(served)
        log.info("serving %s", pointer.address)

    def _is_served(self, pointer: Pointer) -> bool:
        return self._served is not None and self._served.pointer == pointer

    def _went_away(self, error: TrackingError) -> None:
        if self.away is None:
            log.warning("the registry is away: %s", error)
        self.away = error.what
        kept = self.source.local() if self._served is None else None
        if kept:
            self._load(kept[0], _copy_of(kept[0]), lambda _: kept[1])

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Exception:  # the watch goes on whatever a source does
                log.exception("looking for a version failed")
            self._stop.wait(self.poll_s)


def _copy_of(pointer: Pointer) -> str:
    """A copy has a name of its own: what is wrong with it says nothing of the version in the registry."""
    return f"{pointer.number} (local copy)"
