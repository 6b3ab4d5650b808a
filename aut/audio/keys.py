"""Keys: what of a fingerprint is looked up, 27 signs in three frames at a time.

In    words of a clip (aut/audio/fingerprint.py)
Out   keys: the 9 low or the 9 high signs of three frames 128 ms apart, where each starts, and which of its signs are
      doubtful; `few` chooses those an index keeps, `variants` those a query asks for
Why   a sound that fills half of the bands, and a noise that fills the other half, leave keys alone. An index need
      not keep all: keys a frame apart share most of their samples, and the most trusted ones are what a copy still
      has. So each stretch of a clip gives its most trusted keys first, and a clip of one bark in much silence gives
      as many as one that is full. What noise turned over is made good by the query, which asks with doubtful signs
      both ways: that costs time by the query and no memory.
Price a frame kept costs 4 bytes for each of its keys (aut/audio/postings.py)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aut.audio.fingerprint import BITS

Words = NDArray[np.uint32]

HALF = 9  # signs of a frame in a key: the lower or the upper bands, because noise seldom spares all of them
HALVES = (0, BITS - HALF)  # first sign of each
FRAMES = 3  # of a key
GAP = 4  # hops between its frames
SPAN = GAP * (FRAMES - 1)
SIGNS = HALF * FRAMES
BITS_OF_KEY = SIGNS + 1  # and which half
MIN_TRUSTED = 6  # of its signs: fewer say too little
FLIPS = 3  # doubtful signs that a query tries both ways
STRETCH = 8  # frames, which are served alike before one gets more


class Keys(NamedTuple):
    """Of one clip, or of several that lie end to end; equal lengths."""

    key: NDArray[np.uint32]  # below 2 ** BITS_OF_KEY
    at: NDArray[np.int64]  # its first frame
    doubtful: NDArray[np.uint32]  # its signs that are not trusted, as a mask

    def taken(self, which: NDArray[np.int64]) -> Keys:
        return Keys(self.key[which], self.at[which], self.doubtful[which])


def keys(words: Words, frames: Sequence[int] | NDArray[np.int64] | None = None) -> Keys:
    """Every key that says enough; one that repeats its predecessor is left out, so a steady tone votes once.

    Clips may lie end to end, of so many `frames` each: no key reaches from one into the next. Keys come by frame.
    """
    count = max(len(words) - SPAN, 0)
    shift, mask = np.array(HALVES, np.uint32)[:, None], np.uint32((1 << HALF) - 1)
    signs, trusts = words >> shift & mask, words >> shift + np.uint32(BITS) & mask  # [halves, frames]
    key, trusted = np.zeros((2, len(HALVES), count), np.uint32)
    for f in range(0, SPAN + 1, GAP):
        key = key << np.uint32(HALF) | signs[:, f : f + count]
        trusted = trusted << np.uint32(HALF) | trusts[:, f : f + count]
    telling: NDArray[np.bool_] = np.bitwise_count(trusted) >= MIN_TRUSTED
    new = key[:, 1:] != key[:, :-1]
    if frames is not None:
        clip = np.repeat(np.arange(len(frames)), frames)
        telling &= clip[:count] == clip[SPAN:]
        new |= np.diff(clip[:count]) != 0
    telling[:, 1:] &= new
    at, half = np.nonzero(telling.T)
    doubtful = trusted[half, at] ^ np.uint32((1 << SIGNS) - 1)
    return Keys(key[half, at] | half.astype(np.uint32) << np.uint32(SIGNS), at, doubtful)


def few(found: Keys, frames: int, a_frame: float) -> Keys:
    """The `a_frame * frames` keys that an index keeps: of each stretch its most trusted, then its next, and so on."""
    kept = math.ceil(a_frame * frames)
    if kept >= len(found.key):
        return found
    doubts = np.bitwise_count(found.doubtful).astype(np.int64)
    stretch = found.at // STRETCH << 2 | found.key.astype(np.int64) >> SIGNS
    order = np.lexsort((found.at, doubts, stretch))
    first = np.flatnonzero(np.diff(stretch[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    return found.taken(order[np.lexsort((doubts[order], rank))[:kept]])


def variants(found: Keys, flips: int = FLIPS) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """(key, at): every key, and again with its first `flips` doubtful signs the other way, alone and together."""
    left = found.doubtful
    turned, real = np.zeros((len(left), 1), np.uint32), np.ones((len(left), 1), np.bool_)
    for _ in range(flips):
        lowest = (left & (~left + np.uint32(1)))[:, None]
        left = left ^ lowest[:, 0]
        turned = np.concatenate([turned, turned ^ lowest], axis=1)
        real = np.concatenate([real, real & (lowest != 0)], axis=1)
    return (found.key[:, None] ^ turned)[real], np.repeat(found.at, real.sum(axis=1))
