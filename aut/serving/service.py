"""Service: one request's way from bytes to results. Decoding in threads, computing in batches, all within a deadline.

In    files of a request, what is asked, the version that answers now
Out   `Answered`: results, seconds of each clip, and the version that computed them
Why   a request is bound to one version at its start, so that a swap cannot mix two in one answer
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from aut.serving.batcher import Ask, Batcher, Compute, Result, compute
from aut.serving.limits import Limits, Refused, Slots
from aut.serving.metrics import Metrics
from aut.serving.versions import Served
from aut.serving.watcher import Source, Watcher
from aut.units import RATE_HZ

log = logging.getLogger("aut.serving")
T = TypeVar("T")
Array = NDArray[np.float32]
SWITCH_S = 0.0005  # a thread waits so long for the interpreter: 5 ms, the default, stalls each of a pass's 100 kernels


@dataclass(frozen=True)
class Answered:
    served: Served
    results: list[Result]
    seconds: list[float]


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
        run: Compute = compute,
    ) -> None:
        self.limits, self.key = limits or Limits(), key
        self.slots = Slots(self.limits)
        self.metrics = Metrics(self.slots)
        self.watcher = Watcher(source, device, poll_s, self.metrics.serving)
        self.batcher = Batcher(self.limits, self.slots, run)
        self.batcher.batched = self.metrics.batched
        self.threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="aut-decode")

    def start(self) -> None:
        sys.setswitchinterval(SWITCH_S)
        # Torch takes seconds to import: beside the registry's client, not after it.
        threading.Thread(target=import_module, args=("aut.encoders.tower",), daemon=True).start()
        self.batcher.start()
        self.watcher.start()

    async def stop(self) -> None:
        await asyncio.to_thread(self.watcher.stop)
        await self.batcher.stop()
        self.threads.shutdown(wait=False, cancel_futures=True)

    async def answer(self, files: Sequence[bytes], ask: Ask) -> Answered:
        """Results of all files, or Refused: 422 names the file that is no audio, 504 the deadline."""
        served = self.watcher.served
        _check_layer(ask, served)
        deadline = asyncio.get_running_loop().time() + self.limits.request_s
        with self.slots.hold(len(files)):
            try:
                async with asyncio.timeout_at(deadline):
                    clips = await self.decoded(files)
                    rated = await self._in_thread(lambda: [_at_rate(c, served.encoder.rate_hz) for c in clips])
                    results = await self.batcher.submit(rated, ask, served, deadline)
            except TimeoutError:
                limit = f"no answer within {self.limits.request_s:g} s"
                raise Refused(504, "deadline", limit, self.slots.wait_s()) from None
        return Answered(served, results, [len(c) / RATE_HZ for c in clips])

    async def decoded(self, files: Sequence[bytes]) -> list[Array]:
        """Each file as 16 kHz mono. Refused 422 with the reason of the first that cannot be read."""
        clips = list(await asyncio.gather(*(self._in_thread(self._decode, data, i) for i, data in enumerate(files))))
        total = sum(len(c) for c in clips) / RATE_HZ
        if total > self.limits.audio_s:
            raise Refused(
                413, "too_long", f"{total:.0f} s of audio, the limit of a request is {self.limits.audio_s:g} s"
            )
        return clips

    def _decode(self, data: bytes, position: int) -> Array:
        from aut.audio.decode import Unreadable, decode

        try:
            return decode(data, max_s=self.limits.clip_s).pcm_T
        except Unreadable as error:
            raise Refused(422, error.reason, f"clip {position}: {error.detail}") from None
        except Exception as error:  # a decoder that trips over hostile bytes is no fault of the server
            log.warning("decoding raised %s", type(error).__name__)
            raise Refused(422, "corrupt", f"clip {position} cannot be decoded") from None

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *args)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The work's result; cancelled when the client goes away, so that nobody's clips are not computed."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refused(400, "gone", "the client went away")
        return task.result()
    finally:
        for waiting in (task, gone):
            waiting.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _at_rate(clip: Array, rate_hz: int) -> Array:
    if rate_hz == RATE_HZ:
        return clip
    import soxr

    return np.asarray(soxr.resample(clip, RATE_HZ, rate_hz), np.float32)


def _check_layer(ask: Ask, served: Served) -> None:
    if ask.layer is not None and not 0 <= ask.layer < served.layers:
        raise Refused(400, "layer", f"layer {ask.layer}, this version has 0 to {served.layers - 1}")
