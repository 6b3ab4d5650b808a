"""Service: one request's way from bytes to results: decoded, computed in batches, all within a deadline.

In    files of a request, what is asked, the version that answers now
Out   `Answered`: results, seconds of each clip, and the version that computed them
Why   a request is bound to one version at its start, so that a swap cannot mix two in one answer
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from aut.audio.plain import Samples
from aut.serving.batcher import Batcher, Compute, compute
from aut.serving.connections import GONE, Gone
from aut.serving.decoding import Decoders
from aut.serving.engine import Ask, Result
from aut.serving.limits import Limits, Refused, Slots
from aut.serving.metrics import Metrics
from aut.serving.versions import Served
from aut.serving.watcher import Source, Watcher

log = logging.getLogger("aut.serving")
T = TypeVar("T")
SWITCH_S = 0.0005  # a thread waits so long for the interpreter: 5 ms, the default, stalls each of a pass's 100 kernels


@dataclass(frozen=True)
class Answered:
    served: Served
    results: list[Result]
    seconds: list[float]


Check = Callable[[Served, Sequence[float]], None]


class Service:
    """What a server holds: limits, queue, threads, and the watcher that says which version answers."""

    def __init__(
        self,
        source: Source,
        limits: Limits | None = None,
        *,
        device: str | None = None,
        poll_s: float = 5.0,
        key: str | None = None,
        hosts: frozenset[str] | None = None,
        run: Compute = compute,
    ) -> None:
        self.limits, self.key, self.hosts = limits or Limits(), key, hosts  # hosts None: any name is answered
        self.slots = Slots(self.limits)
        self.metrics = Metrics(self.slots)
        self.watcher = Watcher(source, device, poll_s, self._took_over, self.limits.workers)
        self.batcher = Batcher(self.limits, self.slots, run)
        self.batcher.batched = self.metrics.batched
        count = min(4, os.cpu_count() or 1)
        self.threads = ThreadPoolExecutor(count, thread_name_prefix="aut-aside")
        self.decoders = Decoders(count, self.limits.clip_s, self.threads)
        self.decoders.desk.left = self.slots.busy
        self.metrics.lost.labels("decoder").set_function(lambda: self.decoders.lost)
        self.metrics.lost.labels("engine").set_function(self.watcher.lost)

    def start(self) -> None:
        sys.setswitchinterval(SWITCH_S)
        self.batcher.start()
        self.watcher.start()

    async def stop(self) -> None:
        await asyncio.to_thread(self.watcher.stop)
        await self.batcher.stop()
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.decoders.close()

    def _took_over(self, served: Served) -> None:
        self.metrics.serving(served)
        gc.collect()
        gc.freeze()  # modules and weights stay: looking through them for garbage stalls all requests for 150 ms

    async def answer(
        self, served: Served, files: list[bytes], ask: Ask, deadline: float, check: Check | None = None
    ) -> Answered:
        """Results of all files by the version given, or Refused: 422 names the file that is no audio, 504 the deadline.

        `check` may refuse what the clips' seconds would make, before it is computed. Empties `files` once decoded.
        """
        _check_layer(ask, served)
        came = asyncio.get_running_loop().time()
        try:
            with self.slots.hold(len(files)):
                async with asyncio.timeout_at(deadline):
                    with self.slots.keep(files):
                        clips, seconds = await self._decoded(files, served.encoder.rate_hz)
                    if check:
                        check(served, seconds)
                    with self.slots.lasting(seconds):
                        results = await self.batcher.submit(clips, ask, served, deadline, came)
        except TimeoutError:
            raise self._late() from None
        return Answered(served, results, seconds)

    async def heard(self, files: list[bytes], deadline: float) -> dict[str, Any]:
        """Waveform and log-mel of the first file, for a picture. Refused 422, 504. Empties `files` once decoded."""
        try:
            with self.slots.hold(1), self.slots.keep(files):
                async with asyncio.timeout_at(deadline):
                    return await self.decoders.heard(files[0], self.limits.request_s)
        except TimeoutError:
            raise self._late() from None

    def _late(self) -> Refused:
        return Refused(504, "deadline", f"no answer within {self.limits.request_s:g} s", self.slots.wait_s())

    async def _decoded(self, files: Sequence[bytes], rate_hz: int) -> tuple[list[Samples], list[float]]:
        """Each file as mono samples, and its seconds. Refused: 422 with the reason of one that cannot be read, 413 as
        soon as what is decoded passes the limit of a request: the rest is not decoded."""
        if len(files) == 1:
            _, clip, clip_s = await self._decode(files[0], 0, rate_hz)
            self._check_sum(clip_s)
            return [clip], [clip_s]
        clips: dict[int, tuple[Samples, float]] = {}
        total = 0.0
        async with aclosing(self._each(files, rate_hz)) as decoded:
            async for position, clip, seconds in decoded:
                clips[position] = clip, seconds
                total += seconds
                self._check_sum(total)
        return [clips[i][0] for i in range(len(files))], [clips[i][1] for i in range(len(files))]

    def _check_sum(self, total: float) -> None:
        if total > (limit := self.limits.audio_s):
            raise Refused(413, "too_long", f"at least {total:.0f} s of audio, the limit of a request is {limit:g} s")

    async def _decode(self, data: bytes, position: int, rate_hz: int) -> tuple[int, Samples, float]:
        return position, *await self.decoders.decoded(data, position, rate_hz, self.limits.request_s)

    async def _each(self, files: Sequence[bytes], rate_hz: int) -> AsyncGenerator[tuple[int, Samples, float], None]:
        """(position, samples, seconds) as files are decoded. When one fails, or nobody waits any more, those not
        begun are dropped, and those that run keep a slot each until they have ended: the machine is still busy."""
        begun = [asyncio.ensure_future(self._decode(data, i, rate_hz)) for i, data in enumerate(files)]
        try:
            for ended in asyncio.as_completed(begun):
                yield await ended
        finally:
            for waiting in begun:
                waiting.cancel()
            await asyncio.gather(*begun, return_exceptions=True)

    def _in_thread(self, function: Callable[..., T], *args: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self.threads, function, *args)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The work's result; cancelled when the client goes away, so that nobody's clips are not computed.

    A connection of ours says so itself; another server's is asked, by a task of its own.
    """
    task = asyncio.current_task()
    assert task
    gone: Gone = request.scope.get(GONE) or Gone()
    gone.then.append(task.cancel)
    watcher = None if GONE in request.scope else asyncio.ensure_future(_watch(request, gone))
    try:
        if gone.true:  # while its body was taken apart
            task.cancel()
        return await work
    except asyncio.CancelledError:
        if gone.true and not task.uncancel():
            raise Refused(400, "gone", "the client went away") from None
        raise
    finally:
        gone.then.clear()
        if watcher:
            watcher.cancel()


async def _watch(request: Request, gone: Gone) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.tell()


def _check_layer(ask: Ask, served: Served) -> None:
    if ask.layer is not None and not 0 <= ask.layer < served.encoder.layers:
        raise Refused(400, "layer", f"layer {ask.layer}, this version has 0 to {served.encoder.layers - 1}")
