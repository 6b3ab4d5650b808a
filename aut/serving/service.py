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
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from aut.serving.batcher import Batcher, Compute, compute
from aut.serving.decoding import Decoders
from aut.serving.engine import Ask, Result
from aut.serving.limits import Limits, Refused, Slots
from aut.serving.metrics import Metrics
from aut.serving.versions import Served
from aut.serving.watcher import Source, Watcher

log = logging.getLogger("aut.serving")
T = TypeVar("T")
Array = NDArray[np.float32]
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
        self.decoders = Decoders(count, self.limits.clip_s)
        self.metrics.lost.labels("decoder").set_function(lambda: self.decoders.lost)
        self.metrics.lost.labels("engine").set_function(self.watcher.lost)
        self.threads = ThreadPoolExecutor(count, thread_name_prefix="aut-decode")

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
        with self.slots.hold(len(files)):
            async with self._until(deadline):
                with self.slots.keep(files):
                    clips, seconds = await self._decoded(files, served.encoder.rate_hz)
                if check:
                    check(served, seconds)
                with self.slots.lasting(seconds):
                    results = await self.batcher.submit(clips, ask, served, deadline, came)
        return Answered(served, results, seconds)

    async def heard(self, files: list[bytes], deadline: float) -> dict[str, Any]:
        """Waveform and log-mel of the first file, for a picture. Refused 422, 504. Empties `files` once decoded."""
        with self.slots.hold(1), self.slots.keep(files):
            async with self._until(deadline):
                calls = self._each([(self.decoders.heard, files[0], self.limits.request_s)])
                (told,) = [answer async for answer in calls]
        return cast(dict[str, Any], told)

    @asynccontextmanager
    async def _until(self, deadline: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(deadline):
                yield
        except TimeoutError:
            limit = f"no answer within {self.limits.request_s:g} s"
            raise Refused(504, "deadline", limit, self.slots.wait_s()) from None

    async def _decoded(self, files: Sequence[bytes], rate_hz: int) -> tuple[list[Array], list[float]]:
        """Each file as mono samples, and its seconds. Refused: 422 with the reason of one that cannot be read, 413 as
        soon as what is decoded passes the limit of a request: the rest is not decoded."""
        clips: dict[int, tuple[Array, float]] = {}
        total, limit = 0.0, self.limits.audio_s
        asked = [(self._numbered, data, i, rate_hz) for i, data in enumerate(files)]
        async with aclosing(self._each(asked)) as decoded:
            async for position, clip, seconds in decoded:
                clips[position] = clip, seconds
                total += seconds
                if total > limit:
                    told = f"at least {total:.0f} s of audio, the limit of a request is {limit:g} s"
                    raise Refused(413, "too_long", told)
        return [clips[i][0] for i in range(len(files))], [clips[i][1] for i in range(len(files))]

    def _numbered(self, data: bytes, position: int, rate_hz: int) -> tuple[int, Array, float]:
        return position, *self._decode(data, position, rate_hz)

    def _decode(self, data: bytes, position: int, rate_hz: int) -> tuple[Array, float]:
        return self.decoders.decoded(data, position, rate_hz, self.limits.request_s)

    async def _each(self, calls: Sequence[tuple[Any, ...]]) -> AsyncGenerator[Any, None]:
        """What calls in the decoders' threads return, as they end. When one fails, or nobody waits any more, those not
        begun are dropped, and those that run keep a slot each until they have ended: the machine is still busy."""
        begun = [self.threads.submit(*call) for call in calls]
        waited = [asyncio.wrap_future(future) for future in begun]
        try:
            for ended in asyncio.as_completed(waited) if len(waited) > 1 else waited:
                yield await ended
        finally:
            for future, waiting in zip(begun, waited, strict=True):
                if not future.cancel() and not future.done():
                    self.slots.busy_until(future)
                if not waiting.cancel() and not waiting.cancelled():
                    waiting.exception()  # seen: of several that failed one is told

    def _in_thread(self, function: Callable[..., T], *args: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self.threads, function, *args)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The work's result; cancelled when the client goes away, so that nobody's clips are not computed."""
    task, gone = asyncio.current_task(), False
    assert task

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if gone and not task.uncancel():
            raise Refused(400, "gone", "the client went away") from None
        raise
    finally:
        watcher.cancel()


def _check_layer(ask: Ask, served: Served) -> None:
    if ask.layer is not None and not 0 <= ask.layer < served.encoder.layers:
        raise Refused(400, "layer", f"layer {ask.layer}, this version has 0 to {served.encoder.layers - 1}")
