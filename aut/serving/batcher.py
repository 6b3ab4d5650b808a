"""Batcher: clips of many requests computed together, by duration, in the order they came.

In    decoded clips, each with what is asked of it, the version it is bound to, and a deadline
Out   a result a clip; a clip alone and in any batch give the same numbers to 1e-5 (the encoder's own promise)
Why   where a batch is padded to its longest clip, clips of about one length go together: the oldest waiting clip is
      always in the next batch, its company comes from its bucket. Where clips are packed (a CPU) they go in the order
      they came. A pass of several clips that fails is computed again clip by clip: one that the encoder cannot take
      fails alone. While the model is busy the queue fills by itself; only an idle model lingers. Price: `linger_s` of
      waiting for a lone request.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from aut.audio.plain import Samples
from aut.errors import DataError
from aut.serving.engine import Ask, Result
from aut.serving.limits import Limits, Refused, Slots
from aut.serving.versions import Served
from aut.serving.workers import Lost

RATIO = 1.5  # between the edges of neighbouring buckets: at most a third of a batch is padding


Compute = Callable[[Served, Ask, Sequence[Samples]], list[Result]]


def compute(served: Served, ask: Ask, clips: Sequence[Samples]) -> list[Result]:
    """One pass for clips of one version and ask."""
    try:
        return served.encoder.compute(ask, clips)
    except Lost:
        raise Refused(503, "worker_lost", "the process that computed ended: try again", 1.0) from None


def apart(run: Compute, served: Served, ask: Ask, clips: Sequence[Samples]) -> list[Result | Exception]:
    """One pass, a result or an error a clip. Where it fails for several clips, each alone: the others are no part of
    the fault. Not where the process died, or it was refused: that is no clip's fault, or costs a process each."""
    try:
        return list(run(served, ask, clips))
    except Refused as refused:
        return [refused] * len(clips)
    except Exception as error:
        if len(clips) == 1:
            unfit = isinstance(error, DataError)
            return [Refused(422, "unfit", f"the encoder cannot take the clip: {error}") if unfit else error]
    return [apart(run, served, ask, [clip])[0] for clip in clips]


@dataclass(eq=False, slots=True)
class Turn:
    """A request's: since when it waits, and whether one of its clips has been taken."""

    came: float = math.inf
    begun: bool = False


@dataclass(eq=False, slots=True)
class Job:
    clip: Samples
    seconds: float
    key: tuple[int, Ask, int | None]  # version, ask, bucket (None: packed): what may share a batch
    served: Served
    ask: Ask
    deadline: float
    future: asyncio.Future[Result]
    turn: Turn = field(default_factory=Turn)


def bucket(seconds: float) -> int:
    """Clips of one bucket differ in length by at most `RATIO`."""
    return math.ceil(math.log(max(seconds, 0.1), RATIO))


class Batcher:
    """One model, a few threads that compute, one queue in order of arrival."""

    def __init__(self, limits: Limits, slots: Slots, run: Compute = compute) -> None:
        self.limits, self.slots, self.run = limits, slots, run
        self.batched: Callable[[int, float, float], None] = lambda clips, seconds, took: None
        self.waiting: deque[Job] = deque()
        self.waiting_s = 0.0
        slots.relief = self.shed
        self._arrived = asyncio.Event()
        self._threads = ThreadPoolExecutor(limits.workers, "aut-model")
        self._idle = limits.workers
        self._ended = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def submit(
        self, clips: Sequence[Samples], ask: Ask, served: Served, deadline: float, came: float = math.inf
    ) -> list[Result]:
        """Results in order. Refused: 429 too much audio waits, 413 more than may ever, 504 past the deadline.

        Cancelling drops the jobs. `came`: since when the request waits, of the loop's clock.
        """
        rate = served.encoder.rate_hz
        total = sum(len(c) for c in clips) / rate
        if total > self.limits.queue_s:
            raise Refused(413, "too_long", f"{total:.0f} s of audio, this server takes {self.limits.queue_s:g} at once")
        if self.waiting_s + total > self.limits.queue_s:
            raise Refused(429, "busy", f"{self.waiting_s:.0f} s of audio wait already", self.slots.wait_s())
        loop = asyncio.get_running_loop()
        jobs, turn = [], Turn(came)
        for clip in clips:
            seconds = len(clip) / rate
            key = (id(served), ask, None if served.encoder.packs else bucket(seconds))
            jobs.append(Job(clip, seconds, key, served, ask, deadline, loop.create_future(), turn))
        self.waiting.extend(jobs)
        self.waiting_s += total
        self._arrived.set()
        try:
            if len(jobs) == 1:  # most requests: gathering one costs as much as all else here
                return [await jobs[0].future]
            return list(await asyncio.gather(*(job.future for job in jobs)))
        finally:
            for job in jobs:
                job.future.cancel()

    def take(self, now: float, idle: int = 1) -> list[Job]:
        """The next batch: the oldest live job, and those of its kind, within the limits. Dead jobs fall out.

        Where clips are packed, `idle` workers share what waits: two passes of one clip end before one of two; and a
        pass takes no longer than its first clip has waited, or than a request alone: the first of a flood are not late.
        """
        first: Job | None = None
        share = min(self.limits.batch_clips, math.ceil(len(self.waiting) / idle))
        batch: list[Job] = []
        kept: deque[Job] = deque()
        longest = total = most_s = 0.0
        if self.slots.pressed:
            self._shed(now)
        for job in self.waiting:
            if job.future.done() or job.deadline <= now:
                self._drop(job, Refused(504, "deadline", "the deadline passed while the clip waited", 1.0))
                continue
            if first is None:
                first, most_s = job, self.limits.batch_s
                if job.key[2] is None:
                    most_s = min(most_s, self._fair_s(now - job.turn.came))
            fits = len(batch) < (share if job.key[2] is None else self.limits.batch_clips)
            padded_s = max(longest, job.seconds) * (len(batch) + 1)
            cost_s = total + job.seconds if job.key[2] is None else padded_s
            fits = fits and cost_s <= most_s
            if job is first or (job.key == first.key and fits):
                batch.append(job)
                job.turn.begun = True
                longest, total = max(longest, job.seconds), total + job.seconds
                self.waiting_s -= job.seconds
            else:
                kept.append(job)
        self.waiting = kept
        if not kept:
            self.waiting_s = 0.0  # sums of floats drift
        return batch

    def _fair_s(self, waited_s: float) -> float:
        """Seconds of audio that are computed in the time waited, or that a request alone takes."""
        pace = self.slots.pace * self.limits.workers
        return max(waited_s, self.slots.alone_s) / pace if pace else math.inf

    def shed(self) -> None:
        """Under overload: tells requests that have not begun, and have waited as long as one alone takes."""
        self._shed(asyncio.get_running_loop().time())

    def _shed(self, now: float) -> None:
        latest = now - self.slots.alone_s
        late = {job for job in self.waiting if job.turn.came < latest and not job.turn.begun}
        for job in late:
            self._drop(job, Refused(429, "busy", "more comes than can be computed: try again", self.slots.wait_s()))
        if late:
            self.slots.dropped(len(late))
            self.waiting = deque(job for job in self.waiting if job not in late)

    def _drop(self, job: Job, refused: Refused) -> None:
        self.waiting_s -= job.seconds
        if not job.future.done():
            job.future.set_exception(refused)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self.waiting:
                self._arrived.clear()
                await self._arrived.wait()
                await asyncio.sleep(self.limits.linger_s)
            while not self._idle:
                self._ended.clear()
                await self._ended.wait()
            batch = self.take(loop.time(), self._idle)
            if not batch:
                continue
            self._idle -= 1
            task = loop.create_task(self._compute(batch))
            self._running.add(task)  # the loop itself keeps tasks weakly
            task.add_done_callback(self._running.discard)
            del batch, task  # else the last jobs keep their version, and its processes, until the next request

    async def _compute(self, batch: list[Job]) -> None:
        started = time.monotonic()
        given = self.run, batch[0].served, batch[0].ask, [job.clip for job in batch]
        results = await asyncio.get_running_loop().run_in_executor(self._threads, apart, *given)
        self._idle += 1
        self._ended.set()
        took = time.monotonic() - started
        seconds = sum(job.seconds for job in batch)
        self.slots.computed(seconds, took / self.limits.workers)
        self.batched(len(batch), seconds, took)
        for job, result in zip(batch, results, strict=True):
            if job.future.done():
                continue
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)
