"""Crowd: an index in which real clips lie among millions that are made up.

In    fingerprints of real clips, how many clips there should be
Out   an `Index` of that many, with all that it holds: the real ones, and others with as many keys as they, from keys
      like theirs, each with words of its own, which are those of a real clip
Why   nobody has 20M recordings at hand, and what a look-up costs, and whether a copy still stands out, depends on
      how often each of its keys occurs elsewhere. Keys drawn evenly would be far too rare: real sounds are alike.
      So a made-up key is a real one, of whose doubtful signs some were drawn anew and of which, now and then, one sign
      was turned. `met` says how many postings share the keys of a query, in the crowd and, counted up to as many
      clips, among the real clips it was made up from. The crowd is the thinner one by a fifth (688 and 876 a frame of
      a query, of which it reads 32): real keys as they are would meet as often, but leave nearly all keys to nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from aut.audio.keys import SIGNS, Keys, Words, few, keys, variants
from aut.audio.match import STEP, Index
from aut.audio.postings import Postings, bits_of, bucket_of, laid, starts, unit_of
from benchmarks._common import say

TURNED = 0.05  # of the made-up keys have one sign the other way
CHUNK = 100_000_000  # keys made up at once

U32 = NDArray[np.uint32]


class Crowd(Index):
    """Clip c has the words of real clip `c % len(real)`; from `len(real)` on it is made up.

    `like` are the real clips of whose keys others are made up: none that is asked for, or its own keys, which in
    truth are its alone, would be among the commonest.
    """

    def __init__(self, real: Sequence[Words], like: Sequence[Words], clips: int, a_frame: float) -> None:
        rng = np.random.default_rng(7)
        kept = [few(keys(words), len(words), a_frame) for words in real]
        self.real, self.clips = len(real), clips
        self.like = [few(keys(words), len(words), a_frame) for words in like]
        frames = [len(words) for words in real]
        line = laid(np.resize(frames, clips))
        key = np.concatenate([k.key for k in kept])
        more = len(key) * (clips - self.real) // self.real
        bits, unit = bits_of(len(key) + more), unit_of(int(line[-1]))
        bucket = bucket_of(key, bits)
        count = np.bincount(bucket, minlength=1 << bits)
        for made in _made_up(self.like, more, rng):
            count += np.bincount(bucket_of(made, bits), minlength=1 << bits)
            say(f"  an index of {count.sum():,} keys")
        start = starts(count)
        place = rng.integers(line[self.real] // unit + 1, line[-1] // unit, len(key) + more, dtype=np.uint32)
        order = np.argsort(bucket, kind="stable")
        rank = np.arange(len(order)) - np.searchsorted(bucket[order], bucket[order])
        at = np.concatenate([k.at + first for k, first in zip(kept, line, strict=False)])
        place[start[bucket[order]].astype(np.int64) + rank] = at[order] // unit  # ahead of the others in its bucket
        self.postings = Postings(start, place, line, unit)
        stepped = [words[::STEP] for words in real]
        self.first = np.concatenate([[0], np.cumsum(np.resize([len(w) for w in stepped], clips))])
        self.words = np.resize(np.concatenate(stepped), int(self.first[-1]))  # each clip's lie at a place of their own

    def met(self, queries: Sequence[Words]) -> tuple[float, float]:
        """Postings of the keys of a query, a frame: (in the crowd, expected of as many clips like the real ones)."""
        bits, seen = (
            (len(self.postings.start) - 1).bit_length() - 1,
            np.sort(np.concatenate([k.key for k in self.like])),
        )
        there, expected, frames = 0, 0, 0
        for words in queries:
            key, _ = variants(keys(words))
            bucket = bucket_of(key, bits)
            there += int((self.postings.start[bucket + 1] - self.postings.start[bucket]).sum())
            expected += int((np.searchsorted(seen, key, "right") - np.searchsorted(seen, key)).sum())
            frames += len(words)
        return there / frames, expected / frames * self.clips / len(self.like)


def _made_up(kept: Sequence[Keys], count: int, rng: np.random.Generator) -> Iterator[U32]:
    key, doubtful = np.concatenate([k.key for k in kept]), np.concatenate([k.doubtful for k in kept])
    for at in range(0, count, CHUNK):
        n = min(CHUNK, count - at)
        some = rng.integers(0, len(key), n, dtype=np.int32)
        anew = rng.integers(0, 1 << 32, n, np.uint32) & rng.integers(0, 1 << 32, n, np.uint32) & doubtful[some]
        turned = np.where(rng.random(n, np.float32) < TURNED, np.uint32(1) << rng.integers(0, SIGNS, n, np.uint32), 0)
        yield key[some] ^ anew ^ turned.astype(np.uint32)
