"""Chromaprint: AcoustID's fingerprint, through the system's libchromaprint where it is installed.

In    recordings at 16 kHz
Out   a function that names the recordings whose raw fingerprints agree with a clip's, or None without the library
Why   what people reach for first. Aligned as AcoustID does: best offset, share of equal bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes.util import find_library

import numpy as np
from numpy.typing import NDArray

Pcm = NDArray[np.float32]
RATE = 16_000
AGREE = 0.8  # of the bits: unrelated music agrees on about half
OVERLAP = 8  # words, about 1 s


def finder(recordings: Sequence[Pcm]) -> Callable[[Pcm], set[int]] | None:
    name = find_library("chromaprint")
    if name is None:
        return None
    library = _declared(ctypes.CDLL(name))
    indexed = [raw(library, x) for x in recordings]

    def find(x: Pcm) -> set[int]:
        mine = raw(library, x)
        return {n for n, theirs in enumerate(indexed) if agreement(mine, theirs) >= AGREE}

    return find


def agreement(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> float:
    """Largest share of equal bits over the offsets that overlap enough."""
    need = min(OVERLAP, len(a), len(b))
    if need < 2:
        return 0.0
    wrong = np.bitwise_count(a[:, None] ^ b[None, :])
    offset = np.arange(len(a))[:, None] - np.arange(len(b))[None, :] + len(b) - 1  # equal along a diagonal
    total = np.bincount(offset.ravel(), weights=wrong.ravel(), minlength=len(a) + len(b) - 1)
    ramp = np.arange(1, len(total) + 1)
    overlap = np.minimum(np.minimum(ramp, ramp[::-1]), min(len(a), len(b)))
    enough = overlap >= need
    return 1.0 - float((total[enough] / overlap[enough]).min()) / 32


def raw(library: ctypes.CDLL, x: Pcm) -> NDArray[np.uint32]:
    """Raw words, about eight a second."""
    pcm = np.round(np.clip(x, -1, 1) * 32767).astype(np.int16)
    context = ctypes.c_void_p(library.chromaprint_new(1))
    words, size = ctypes.POINTER(ctypes.c_uint32)(), ctypes.c_int()
    try:
        library.chromaprint_start(context, RATE, 1)
        library.chromaprint_feed(context, pcm.ctypes.data_as(ctypes.POINTER(ctypes.c_int16)), len(pcm))
        library.chromaprint_finish(context)
        if not library.chromaprint_get_raw_fingerprint(context, ctypes.byref(words), ctypes.byref(size)):
            return np.zeros(0, np.uint32)
        out = np.array([words[n] for n in range(size.value)], np.uint32)
        library.chromaprint_dealloc(words)
        return out
    finally:
        library.chromaprint_free(context)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    library.chromaprint_new.restype = ctypes.c_void_p
    library.chromaprint_feed.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int16), ctypes.c_int]
    library.chromaprint_dealloc.argtypes = [ctypes.c_void_p]
    return library
