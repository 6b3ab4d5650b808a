"""Limits: what a request may cost, and the refusal that says which limit it met.

In    options of `aut serve`
Out   `Limits`, `Refused` (a status, one word to count by, a sentence), `Slots` (what is admitted at once)
Why   everything is bounded before it is allocated: bytes, clips, seconds, samples, answers, waiting time. Price: honest
      large requests must be cut by the client. Not counted: what parsing and writing JSON hold for a moment beside the
      body or the answer, and answers under 64 KB (gate.py).
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from aut.serving.pressure import Pressure

PATIENCE = 0.5  # of the time alone: waiting and a pass slowed by others then stay within twice that time
UNMEASURED_S = 0.2  # the time alone before a request has been
BUDGET_S = 1.0  # a newcomer's wait while the server keeps up, and at least
CROWD = 64  # usual clips' computing: with a slow model, 1 s is less than a few clips


@dataclass(frozen=True)
class Limits:
    """Of one server. `budget_s` is the latency budget: a request that would wait longer is answered 429 at once.

    None: `BUDGET_S`, or `CROWD` clips' time, while the server keeps up; under overload as 0, `PATIENCE` of the time
    that nearly every request takes alone.
    """

    request_bytes: int = 32 << 20
    held_bytes: int = 256 << 20  # bodies of all requests at once, while they come and are parsed; then their files
    connections: int = 2048  # each is a descriptor; those that say nothing are closed by themselves
    clips: int = 64  # of one request
    clip_s: float = 300.0
    audio_s: float = 600.0  # of one request
    answer_bytes: int = 80 << 20  # 300 s in frames of the widest encoder, 1,280, fit as float32
    held_answers: int = 256 << 20  # of all requests at once, from before they are computed until they have been read
    request_s: float = 30.0  # from the first byte to the answer
    queue: int = 128  # clips admitted: being decoded, waiting, or computed
    queue_s: float = 1_800.0  # seconds of decoded audio that wait: 115 MB
    budget_s: float | None = None
    free: int = 2  # clips that are admitted whatever the estimate says: one a worker
    batch_clips: int = 32
    batch_s: float = 32.0  # seconds, padding included, of one pass: more is no faster on a CPU; a GPU wants 1,000
    workers: int = 2  # batches computed at once, each with its share of the cores
    linger_s: float = 0.002  # an idle model waits so long for company


class Refused(Exception):
    """A request that is not answered as asked. `reason` is one word, `detail` a sentence for a person."""

    def __init__(self, status: int, reason: str, detail: str, retry_s: float | None = None) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail, self.retry_s = status, reason, detail, retry_s

    def body(self) -> dict[str, dict[str, str]]:
        return {"error": {"reason": self.reason, "message": self.detail}}

    def json(self) -> bytes:
        return json.dumps(self.body()).encode()

    def headers(self) -> dict[str, str]:
        return {} if self.retry_s is None else {"Retry-After": str(max(1, round(self.retry_s)))}


def raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """As ASGI has them."""
    return [(k.lower().encode("latin-1"), v.encode("latin-1", "replace")) for k, v in headers.items()]


class Slots:
    """Clips and bytes admitted now. The waiting time of a newcomer is estimated from the pace of the last batches."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.clips = self.bytes = self.answers = 0
        self.pace = 0.0  # seconds of computing a second of audio, a moving average
        self._usual_s = 0.0  # of a clip, likewise: what one counts that is not decoded yet
        self._decoded, self._decoded_s = 0, 0.0  # clips of those admitted whose length is known
        self._came = 0
        self._alone: deque[float] = deque(maxlen=200)  # seconds of requests that met nobody
        self.alone_s = UNMEASURED_S  # within which nearly every request that meets nobody is answered
        self._pressure = Pressure(CROWD, max(2 * CROWD, limits.queue))
        self.relief: Callable[[], None] = lambda: None  # called at each refusal under overload

    def wait_s(self) -> float:
        return self.pace * (self._decoded_s + (self.clips - self._decoded) * self._usual_s)

    @property
    def pressed(self) -> bool:
        """Whether waiting is kept short: always, or because more comes than can be computed."""
        if self.limits.budget_s is not None:
            return self.limits.budget_s == 0
        return self._pressure.on(self._crowd_s(), self.clips)

    @property
    def budget_s(self) -> float:
        """What a newcomer may wait."""
        if self.pressed:
            return PATIENCE * self.alone_s
        if self.limits.budget_s is not None:
            return self.limits.budget_s
        return min(max(BUDGET_S, self._crowd_s()), self.limits.request_s / 2)

    def check(self, clips: int = 1) -> None:
        """Refused 429 where `clips` more do not fit, in number or in waiting time; 413 where they never would."""
        if clips > self.limits.queue:
            raise Refused(413, "too_many", f"{clips} clips, this server takes {self.limits.queue} at once")
        full = self.clips + clips > self.limits.queue
        late = self.clips >= self.limits.free and self.wait_s() > self.budget_s
        if full or late:
            self._pressure.refused()
            if self.pressed:
                self.relief()
            what = f"{self.clips} clips are being worked on, about {self.wait_s():.1f} s"
            raise Refused(429, "busy", f"{what}: try again later", self.wait_s())

    def dropped(self, clips: int) -> None:
        """Refused while they waited: they come again like those that were never let in."""
        self._pressure.refused(clips)

    def _crowd_s(self) -> float:
        return CROWD * self._usual_s * self.pace

    @contextmanager
    def hold(self, clips: int) -> Iterator[None]:
        self.check(clips)
        alone, started = self.clips == 0, time.monotonic()
        self.clips += clips
        self._came += 1
        came = self._came
        try:
            yield
            if alone and came == self._came:
                self._alone.append(time.monotonic() - started)
                self.alone_s = float(np.quantile(self._alone, 0.99))
        finally:
            self.clips -= clips

    @contextmanager
    def lasting(self, seconds: Sequence[float]) -> Iterator[None]:
        """Clips that are held already, now that they are decoded: a newcomer waits longer for long ones."""
        for clip_s in seconds:
            self._usual_s = _moved(self._usual_s, clip_s, 0.05)
        clips, total = len(seconds), sum(seconds)
        self._decoded, self._decoded_s = self._decoded + clips, self._decoded_s + total
        try:
            yield
        finally:
            self._decoded -= clips
            self._decoded_s = self._decoded_s - total if self._decoded else 0.0  # sums of floats drift

    def busy(self) -> Callable[[], None]:
        """A slot for work that goes on though nobody waits for it; what is returned frees it."""
        self.clips += 1
        return self._freed

    def _freed(self) -> None:
        self.clips -= 1

    def take_bytes(self, count: int) -> None:
        """Counts bytes; the caller gives them back. Refused 429 where memory for bodies is used up."""
        if self.bytes + count > self.limits.held_bytes:
            raise Refused(429, "busy", "bodies of other requests fill the memory set aside: try again later", 1.0)
        self.bytes += count

    @contextmanager
    def reading(self) -> Iterator[Callable[[int], int]]:
        """Counts the bytes of a body until the block ends: gives what takes so many more and tells how many it has."""
        taken = 0

        def count(more: int) -> int:
            nonlocal taken
            self.take_bytes(more)
            taken += more
            return taken

        try:
            yield count
        finally:
            self.bytes -= taken

    @contextmanager
    def keep(self, files: list[bytes]) -> Iterator[None]:
        """Counts files until they are decoded; the list is emptied then, so that nobody holds them any longer."""
        total = sum(map(len, files))
        self.take_bytes(total)
        try:
            yield
        finally:
            self.bytes -= total
            files.clear()

    def take_answer(self, count: int) -> None:
        """Counts bytes of an answer; the caller gives them back. Refused 429 where memory for answers is used up."""
        if count > 0 and self.answers + count > self.limits.held_answers:
            raise Refused(429, "busy", "answers that others have not read yet fill the memory: try again later", 1.0)
        self.answers += count

    def computed(self, seconds: float, took_s: float) -> None:
        self.pace = _moved(self.pace, took_s / max(seconds, 0.1), 0.2)


def _moved(average: float, new: float, weight: float) -> float:
    return (1 - weight) * average + weight * new if average else new
