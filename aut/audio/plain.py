"""Plain: samples that need no decoder, for they lie in the file as they are wanted.

In    bytes of a file
Out   int16 samples where they lie, of a WAV of 16 kHz, one channel and 16 bits without notes; None for everything else
Why   it is what speech is kept and sent in, and a decoder in another process costs five times what it computes: two
      wake-ups, cold caches, and the samples there and back. The header must be this one, byte for byte, with the
      lengths that the file has: nothing is left to be understood in two ways. Nothing is refused here, all else is for
      libsndfile to read or to refuse (decode.py). Tried: notes before the samples; it reads some of them askew
Run   `plain(body)`
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from aut.units import RATE_HZ

HEADER = struct.Struct("<4sI8sIHHIIHH4sI")
FULL_SCALE = np.float32(1 / 32_768)

Samples = NDArray[np.float32] | NDArray[np.int16]
"""Of one clip: in [-1, 1], or as they lie in a file."""


def plain(data: bytes) -> NDArray[np.int16] | None:
    """pcm_T, a view of `data`; `floats` of it is what `decode` makes of the same bytes."""
    length = len(data) - HEADER.size
    if length <= 0 or length % 2 or data[: HEADER.size] != _header(length):
        return None
    return np.frombuffer(data, "<i2", length // 2, HEADER.size)


def _header(length: int) -> bytes:
    """Of PCM (1) with so many bytes of samples: channels, rate, bytes a second and a frame, bits."""
    if length > 0xFFFFFFFF - HEADER.size:
        return b""
    told = 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16
    return HEADER.pack(b"RIFF", length + HEADER.size - 8, b"WAVEfmt ", 16, *told, b"data", length)


def floats(samples: Samples) -> NDArray[np.float32]:
    """In [-1, 1], of any shape; those of a file as libsndfile scales them."""
    return np.asarray(samples * FULL_SCALE if samples.dtype == np.int16 else samples, np.float32)
