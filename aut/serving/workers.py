"""Workers: child processes that answer one call at a time each. One that dies is replaced, and only its call is lost.

In    a function that opens a worker in its process, and calls: a head (JSON) with parts (raw bytes)
Out   the same back, or the error that was raised there
Why   a decoder that crashes on hostile bytes, or a model that meets the end of memory, must not end the server; and
      Python runs one thread at a time, so that a pass of a hundred kernels waits for HTTP in its own process.
      Nothing is pickled or unpickled on the way (lines.py). Price: 15 ms for a new process: it is forked from one that
      has imported torch already, and shares its memory.
Run   Crew(opened, (args,), count=2).call({"op": "decode"}, [data]); from an event loop, desk.py
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aut import errors
from aut.errors import AutError
from aut.serving.lines import Head as Head
from aut.serving.lines import Line, Message, pair

if TYPE_CHECKING:
    from socket import socket

Answer = tuple[Head, list[bytes]]
Handler = Callable[[Head, list[memoryview]], tuple[Head, Sequence[Any]]]
Opened = Callable[..., tuple[Handler, Head]]
"""Runs in the child: what answers its calls, and its greeting."""

PRELOADED = ("aut.encoders.tower", "aut.audio.decode", "aut.serving.engine", "aut.serving.decoding")
START_S = 300.0  # to open the largest encoder from a cold disk
AGAIN_S = 0.5  # between two starts of a worker that dies as it starts


class Lost(Exception):
    """The process ended, or was ended at its time limit, before it answered."""


class Failed(Exception):
    """The call raised something that is no error of ours."""


class Crew:
    """`count` workers of one kind. `call` is for threads: as many at a time as there are workers, others wait."""

    def __init__(self, opened: Opened, args: tuple[Any, ...], count: int) -> None:
        self._make = (opened, args)
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        self.workers: list[Worker] = []
        self.lost = 0
        self.add(count)

    def add(self, count: int) -> None:
        """More workers; they start at once and are not waited for."""
        for _ in range(count):
            worker = Worker(*self._make)
            worker.start()
            self.workers.append(worker)
            self._idle.put(worker)

    def greetings(self) -> list[Head]:
        """What each worker said when it had opened. Raises what opening raised, or Lost."""
        return [worker.greeting() for worker in self.workers]

    def call(self, head: Head, parts: Sequence[Any] = (), timeout_s: float = 60.0) -> Answer:
        """The answer of an idle worker. Lost: it died or took over `timeout_s`; the next call finds another."""
        worker = self._idle.get()
        try:
            return worker.call(head, parts, timeout_s)
        except Lost:
            self.lost += 1
            raise
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        for worker in self.workers:
            worker.end()


class Worker:
    """One process and our end of its line. `call` is for threads, what it is made of for a loop, too."""

    def __init__(self, opened: Opened, args: tuple[Any, ...]) -> None:
        self._make = (opened, args)
        self._process: Any = None
        self._line: Line | None = None
        self._greeting: Head | None = None
        self._started = 0.0
        self._closed = False

    def start(self) -> None:
        time.sleep(max(0.0, self._started + AGAIN_S - time.monotonic()) if self._started else 0.0)
        self._started = time.monotonic()
        context = _context()
        self._line, theirs = pair()
        self._process = context.Process(target=_work, args=(theirs, *self._make), daemon=True)
        self._process.start()
        theirs.close()

    def greeting(self) -> Head:
        if self._line is None:
            self.start()
        if self._greeting is None:
            self._greeting, _ = self._answer(START_S)
        return self._greeting

    def call(self, head: Head, parts: Sequence[Any], timeout_s: float) -> Answer:
        self.prepare()
        try:
            self.send(head, parts)
        except Lost:
            self.drop()
            raise
        return self._answer(timeout_s)

    def stands(self) -> bool:
        """It has opened, and lives. Nothing was asked, so what can be read is its end: cheaper than to ask for it."""
        return self._line is not None and self._greeting is not None and not self._line.poll(0)

    def prepare(self) -> None:
        """Waits until it stands; one that died idle is replaced, and nothing is lost."""
        if self._closed:
            raise Lost("closed")
        if not self.stands():
            if self._greeting is not None or (self._process is not None and not self._process.is_alive()):
                self.drop()
            self.greeting()

    def send(self, head: Head, parts: Sequence[Any]) -> None:
        """To one that stands. Waits where the parts do not fit into the shared memory."""
        assert self._line
        try:
            self._line.send(head, parts)
        except (OSError, ValueError) as error:  # ValueError: the other end has been closed
            raise Lost(type(error).__name__) from None

    def fileno(self) -> int:
        """Readable when more of an answer has come, or the process is gone."""
        assert self._line
        return self._line.fileno()

    def arrived(self) -> Message | None:
        """Its answer, good until the next is asked for; None while some of it has not come. Never waits."""
        assert self._line
        try:
            return self._line.arrived()
        except (OSError, EOFError, ValueError) as error:
            raise Lost(type(error).__name__) from None

    def kill(self) -> None:
        if self._process is not None:
            with suppress(Exception):
                self._process.kill()

    def end(self) -> None:
        self._closed = True
        self.drop()

    def drop(self) -> None:
        self.kill()
        line = self._line
        self._line = self._process = self._greeting = None
        if line is not None:
            line.close()

    def _answer(self, timeout_s: float) -> Answer:
        assert self._line
        try:
            if not self._line.poll(timeout_s):
                raise TimeoutError
            message = self._line.receive()
        except (OSError, EOFError, ValueError) as error:  # TimeoutError is an OSError
            self.drop()
            raise Lost(type(error).__name__) from None
        return answer_of(message)


def answer_of(message: Message) -> Answer:
    """The worker's, its parts copied out of the line; raises the error that was raised there."""
    head, parts = message
    if "error" in head:
        raise _raised(head["error"])
    return head, [bytes(part) for part in parts]


def _work(end: socket, opened: Opened, args: tuple[Any, ...]) -> None:
    """The child: greets, then answers until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    line = Line(end)
    try:
        handler, greeting = opened(*args)
        line.send(greeting)
    except Exception as error:
        line.send({"error": _told(error)})
        return
    with suppress(EOFError, OSError):
        while True:
            head, parts = line.receive()
            try:
                answer = handler(head, parts)
            except Exception as error:
                answer = {"error": _told(error)}, ()
            del head, parts
            line.send(*answer)


def _told(error: Exception) -> Head:
    said = error.__reduce__()[1] if isinstance(error, AutError) else (str(error)[:500],)
    words = [str(word).encode(errors="backslashreplace").decode() for word in said]  # JSON has no half of a pair
    return {"kind": type(error).__name__, "args": words}


def _raised(told: Head) -> Exception:
    """The error of a child: ours as it was, others by name."""
    from aut.audio.decode import Unreadable

    kind = {"Unreadable": Unreadable}.get(told["kind"]) or getattr(errors, told["kind"], None)
    if isinstance(kind, type) and issubclass(kind, AutError):
        return kind(*told["args"])
    return Failed(f"{told['kind']}: {told['args'][0]}")


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context
