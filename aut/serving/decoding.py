"""Decoding: files to samples, in processes of their own.

In    the bytes of a file
Out   mono samples at the encoder's rate and seconds; or waveform and log-mel for a picture (features.py)
Why   hostile bytes meet libsndfile where a crash costs one request and 15 ms, and a decoder that does not end is ended.
      What decoding costs is samples over all channels, not seconds: these are limited by the header, too. 16-bit WAV at
      the encoder's 16 kHz is taken as it lies (aut/audio/plain.py), and scaled where it is computed
Price the bytes cross to another process, and the samples back: 0.2 ms for a clip of 5 s
"""

from __future__ import annotations

import resource
from concurrent.futures import Executor
from typing import Any

import numpy as np

from aut.audio.container import CHECKED
from aut.audio.decode import ONE_GO, Unreadable, decode
from aut.audio.plain import Samples, plain
from aut.audio.rate import resampled
from aut.serving.desk import Desk
from aut.serving.limits import Refused
from aut.serving.workers import Answer, Crew, Failed, Handler, Head, Lost
from aut.units import RATE_HZ

MEMORY = 2 << 30  # bytes a decoder may allocate
WIDEST = 2 * 48_000  # samples a second of the longest clip: shorter ones may be as much wider


class Decoders:
    """`count` processes, asked from the event loop; `lost` counts those that died."""

    def __init__(self, count: int, max_s: float, threads: Executor) -> None:
        self._crew, self._longest = Crew(opened, (max_s,), count), round(max_s * RATE_HZ)
        self.desk = Desk(self._crew, threads)

    @property
    def lost(self) -> int:
        return self._crew.lost

    async def decoded(self, data: bytes, position: int, rate_hz: int, timeout_s: float) -> tuple[Samples, float]:
        """Mono samples at `rate_hz`, and seconds. Refused 422 with the reason, naming the clip by its position."""
        pcm_T = plain(data) if rate_hz == RATE_HZ else None
        if pcm_T is not None and len(pcm_T) <= self._longest:  # a longer one is the decoder's to refuse
            return pcm_T, len(pcm_T) / RATE_HZ
        head, parts = await self._asked({"op": "decode", "rate_hz": rate_hz}, data, position, timeout_s)
        return np.frombuffer(parts[0], np.float32), float(head["seconds"])

    async def heard(self, data: bytes, timeout_s: float) -> dict[str, Any]:
        """What features.py makes of a clip. Refused 422."""
        return (await self._asked({"op": "heard"}, data, 0, timeout_s))[0]

    def close(self) -> None:
        self.desk.close()

    async def _asked(self, head: Head, data: bytes, position: int, timeout_s: float) -> Answer:
        try:
            return await self.desk.ask(head, [data], timeout_s)
        except Unreadable as error:
            raise Refused(422, error.reason, f"clip {position}: {error.detail}") from None
        except (Lost, Failed):  # a decoder that trips over hostile bytes is no fault of the server
            raise Refused(422, "corrupt", f"clip {position} cannot be decoded") from None


def opened(max_s: float) -> tuple[Handler, Head]:
    """In the child: `decode` and `heard`."""
    import torch

    torch.set_num_threads(1)
    _limit_memory()
    max_samples = max(ONE_GO, round(max_s * WIDEST))

    def handler(head: Head, parts: list[memoryview]) -> tuple[Head, list[Any]]:
        audio = decode(bytes(parts[0]), max_s=max_s, max_samples=max_samples, formats=CHECKED)
        if head["op"] == "heard":
            from aut.serving.features import heard

            return heard(audio.pcm_T), []
        clip = audio.pcm_T
        if head["rate_hz"] != RATE_HZ:
            clip = resampled(clip, RATE_HZ, head["rate_hz"])
        if not len(clip):
            raise Unreadable("zero_length", f"{len(audio.pcm_T)} samples are none at {head['rate_hz']:,} Hz")
        return {"seconds": len(audio.pcm_T) / RATE_HZ}, [clip]

    return handler, {}


def _limit_memory() -> None:
    """What is mapped already, and `MEMORY` more: beyond, allocating fails here and nowhere else."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, hard))
