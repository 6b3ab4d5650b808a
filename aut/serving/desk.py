"""Desk: a crew's workers asked from an event loop, without a thread that waits for each.

In    calls: a head with parts
Out   their answers as workers end; Lost and errors as `Crew.call` raises them
Why   a thread that waits for a decoder wakes, takes the interpreter, and wakes the loop, for every clip.
      A call that nobody waits for any more is dropped before it begins; one that has begun is told of, for the machine
      is still busy
Price a worker that must start first, and parts that do not fit into the shared memory, take a thread all the same
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from aut.serving.lines import Head, fits
from aut.serving.workers import Answer, Crew, Lost, Worker, answer_of


@dataclass(eq=False, slots=True)
class Call:
    head: Head
    parts: Sequence[Any]
    timeout_s: float
    answer: asyncio.Future[Answer]
    begun: bool = False
    ended: bool = False
    free: Callable[[], None] = lambda: None  # called when the worker has ended


class Desk:
    """Belongs to the loop that asks. `left` is called for a call that has begun and that nobody waits for any more;
    what it returns is called when the worker has ended."""

    def __init__(self, crew: Crew, threads: Executor) -> None:
        self._crew, self.threads = crew, threads
        self.left: Callable[[], Callable[[], None]] = lambda: lambda: None
        self._seats = [_Seat(self, worker) for worker in crew.workers]
        self._idle = list(self._seats)
        self._waiting: deque[Call] = deque()

    async def ask(self, head: Head, parts: Sequence[Any], timeout_s: float) -> Answer:
        """Lost: the worker died, or took over `timeout_s`; the next call finds another."""
        call = Call(head, parts, timeout_s, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        self._begin()
        try:
            return await call.answer
        except asyncio.CancelledError:
            if not call.begun:
                self._waiting.remove(call)
            elif not call.ended:
                call.free = self.left()
            elif not call.answer.cancelled():
                call.answer.exception()  # seen
            raise

    def ended(self, seat: _Seat, call: Call, answer: Answer | Exception) -> None:
        self._crew.lost += isinstance(answer, Lost)
        self._idle.append(seat)
        call.ended = True
        call.free()
        if not call.answer.done():
            if isinstance(answer, Exception):
                call.answer.set_exception(answer)
            else:
                call.answer.set_result(answer)
        self._begin()

    def close(self) -> None:
        """Ends the workers; whoever waits is told Lost."""
        while self._waiting:
            call = self._waiting.popleft()
            call.begun = call.ended = True
            call.answer.set_exception(Lost("closed"))
        for seat in self._seats:
            seat.close()
        self._crew.close()

    def _begin(self) -> None:
        while self._idle and self._waiting:
            call = self._waiting.popleft()
            call.begun = True
            self._idle.pop().begin(call)


class _Seat:
    """A worker as the loop sees it: its line is watched from its first call until it is lost."""

    def __init__(self, desk: Desk, worker: Worker) -> None:
        self._desk, self._worker = desk, worker
        self._call: Call | None = None
        self._watched: int | None = None  # descriptor of the line
        self._until = 0.0  # when the call's time is over
        self._timer: asyncio.TimerHandle | None = None
        self._aside: asyncio.Task[None] | None = None  # held: the loop itself keeps tasks weakly

    def begin(self, call: Call) -> None:
        self._call = call
        if not self._worker.stands() or not fits(call.parts):
            self._unwatch()  # its line may be closed in the thread
            self._aside = asyncio.get_running_loop().create_task(self._begin_aside(call))
            return
        try:
            self._worker.send(call.head, call.parts)
        except Lost as lost:
            self._end(call, lost)
        else:
            self._await_end(call)

    async def _begin_aside(self, call: Call) -> None:
        """In threads: a worker's start, and a message that waits until it has been read."""
        loop, threads = asyncio.get_running_loop(), self._desk.threads
        try:
            await loop.run_in_executor(threads, self._worker.prepare)
            self._await_end(call)
            await loop.run_in_executor(threads, self._worker.send, call.head, call.parts)
        except Exception as error:
            self._end(call, error)

    def _await_end(self, call: Call) -> None:
        """Until the call's limit; a worker that is ended there ends its line, too. One timer serves many calls."""
        loop = asyncio.get_running_loop()
        self._until = loop.time() + call.timeout_s
        if self._timer is None or self._timer.when() > self._until:
            self._stop_timer()
            self._timer = loop.call_at(self._until, self._look)
        if self._watched is None:
            self._watched = self._worker.fileno()
            loop.add_reader(self._watched, self._readable)

    def _readable(self) -> None:
        call = self._call
        if call is None:  # it died idle
            self._unwatch()
            return
        answer: Answer | Exception
        try:
            message = self._worker.arrived()
            if message is None:
                return
            answer = answer_of(message)
        except Exception as error:
            answer = error
        self._end(call, answer)

    def _end(self, call: Call, answer: Answer | Exception) -> None:
        if self._call is not call:  # its end has been seen already, from the other side
            return
        self._call = None
        if isinstance(answer, Lost):
            self._unwatch()
            self._worker.drop()
        self._desk.ended(self, call, answer)

    def _look(self) -> None:
        self._timer, loop = None, asyncio.get_running_loop()
        if self._call and loop.time() < self._until:
            self._timer = loop.call_at(self._until, self._look)
        elif self._call:
            self._worker.kill()

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _unwatch(self) -> None:
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = None

    def close(self) -> None:
        if self._call:
            self._end(self._call, Lost("closed"))
        self._unwatch()
        self._stop_timer()
