"""Postings: where in the indexed clips each key occurs, and which places a query's keys agree on.

In    the keys of each indexed clip; then the keys of a query
Out   up to as many places as are asked for, each with the frame of the query that lies there
Why   all clips lie end to end on one line, so a posting is one number, and a copy is many keys whose place less their
      frame is nearly one number: its diagonal. Keys are read from the rarest on until BUDGET postings are read: the
      time of a query does not grow with the commonest of its keys, and those are what tells clips apart least.
Price 4 bytes a posting, and a table of 32 to 64 bytes a posting that ends at 1 GB
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from aut.audio.keys import BITS_OF_KEY, Keys

BUDGET = 32  # postings read for each frame of a query
MOST = (1 << 16) - 1  # postings of a key: of more, none is rarer than another
CELL = 16  # hops: diagonals closer than this vote together; a copy 2 % off drifts by 3 in five seconds
LINE = 1 << 32  # places that a posting can name

Int = NDArray[np.int64]
NONE: Int = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Postings:
    """Places by key. Key k is in bucket b = `bucket_of(k)`, whose places are `place[start[b] : start[b + 1]]`."""

    start: NDArray[np.uint32] | Int
    place: NDArray[np.uint32]  # on the line, in `unit` frames
    first: Int  # [clips + 1]: the frame of the line at which each clip begins, and its end
    unit: int = 1

    @classmethod
    def of(cls, clips: Sequence[Keys], frames: Sequence[int]) -> Postings:
        """Of clips that have so many frames each."""
        first = laid(frames)
        bits, unit = bits_of(sum(len(c.key) for c in clips)), unit_of(int(first[-1]))
        bucket = bucket_of(np.concatenate([np.zeros(0, np.uint32), *(c.key for c in clips)]), bits)
        at = np.concatenate([np.zeros(0, np.int64), *(c.at + f for c, f in zip(clips, first[:-1], strict=True))])
        place = (at[np.argsort(bucket, kind="stable")] // unit).astype(np.uint32)
        return cls(starts(np.bincount(bucket, minlength=1 << bits)), place, first, unit)

    @property
    def nbytes(self) -> int:
        return int(self.start.nbytes + self.place.nbytes + self.first.nbytes)

    def agreed(self, key: NDArray[np.uint32], at: Int, first: Int, most: Int) -> tuple[Int, Int, Int, Int]:
        """(query, clip, frame of the clip, frame of the query) of up to `most` places a query, most agreed on first.

        Queries lie end to end, query q from frame `first[q]` to `first[q + 1]`; `key` and `at` are their keys and
        frames, by frame. All are looked up in one go and each is counted by itself, while it is in the cache.
        """
        bucket = bucket_of(key, (len(self.start) - 1).bit_length() - 1)
        start = self.start[bucket].astype(np.int64)
        count = self.start[bucket + 1] - start
        held = np.flatnonzero(count)
        at, start, count = at[held], start[held], count[held]
        rarity = np.minimum(count, MOST).astype(np.uint16)  # 16 bits are sorted by counting
        line, mine = [NONE], [NONE]
        ends, budget = np.searchsorted(at, first).tolist(), (BUDGET * np.diff(first)).tolist()
        for (a, b), begin, postings, places in zip(
            pairwise(ends), first[:-1].tolist(), budget, most.tolist(), strict=True
        ):
            rare = a + np.argsort(rarity[a:b], kind="stable")
            rare = rare[: np.searchsorted(np.cumsum(count[rare]), postings, "right")]
            there, own = self._places(start[rare], count[rare]), np.repeat(at[rare] - begin, count[rare])
            chosen = _most_voted(there - own, places)
            line.append(there[chosen])
            mine.append(own[chosen])
        query = np.repeat(np.arange(len(most)), [len(x) for x in line[1:]])
        there = np.concatenate(line)
        clip = np.searchsorted(self.first, there, "right") - 1
        return query, clip, there - self.first[clip], np.concatenate(mine)

    def _places(self, start: Int, count: Int) -> Int:
        """Frames of the line that postings from each `start` on name, so many as `count` says."""
        ends = np.cumsum(count)
        posting = np.repeat(start - ends + count, count)
        posting += np.arange(len(posting))
        there = self.place[posting].astype(np.int64)
        return there if self.unit == 1 else there * self.unit


def laid(frames: Sequence[int] | Int) -> Int:
    """[clips + 1]: where on the line clips of so many frames begin, and where the last ends.

    Clips cut from one recording, one after the other, would lie on one diagonal as it does; gaps that no two
    neighbours share part them.
    """
    gap = CELL * (2 + np.arange(len(frames)) % 4)
    return np.concatenate([[0], np.cumsum(np.asarray(frames, np.int64) + gap)])


def unit_of(frames: int) -> int:
    """The smallest power of two in which a line of so many frames has no more than `LINE` places."""
    return 1 << max(0, (max(frames, 1) - 1).bit_length() - LINE.bit_length() + 1)


def bits_of(postings: int) -> int:
    """Buckets for so many postings, as a power of two: eight a posting, so that keys seldom share one."""
    return min(max(postings.bit_length() + 3, 16), BITS_OF_KEY)


def bucket_of(key: NDArray[np.uint32], bits: int) -> Int:
    """Knuth's multiplicative hash (The Art of Computer Programming 3, 6.4): neighbours part."""
    return (key * np.uint32(2654435761) >> np.uint32(32 - bits)).astype(np.int64)


def starts(count: NDArray[np.int64]) -> NDArray[np.uint32] | NDArray[np.int64]:
    """Of each bucket and the end of the last, as narrow as they fit."""
    ends = np.concatenate([[0], np.cumsum(count)])
    return ends.astype(np.uint32) if ends[-1] < LINE else ends


def _most_voted(diagonal: Int, most: int) -> Int:
    """A posting of each of the `most` diagonals that have the most; lone ones, from the rarest key on, fill up.

    Most postings are alone on their diagonal: their neighbours in order tell, and only the others are counted.
    Numbers are sorted with what belongs to them in their low bits, which is twice as fast as sorting by them.
    """
    bits = len(diagonal).bit_length()
    low = (1 << bits) - 1
    packed = np.sort(diagonal << bits | np.arange(len(diagonal)))
    order, diagonal = packed & low, packed >> bits
    crowded = np.zeros(len(order) + 1, bool)
    np.less(diagonal[1:] - diagonal[:-1], CELL, out=crowded[1:-1])
    some = np.flatnonzero(crowded[1:] | crowded[:-1])
    lone = np.ones(len(order), bool)
    lone[order[some]] = False
    order, diagonal = order[some], diagonal[some]
    here = np.arange(len(some))
    votes = np.searchsorted(diagonal, diagonal + CELL) - here
    middle = here + votes // 2  # a stray before many belongs to their cell
    cell = diagonal[middle] // CELL
    first = np.flatnonzero(np.diff(cell, prepend=np.iinfo(np.int64).min))
    best = np.maximum.reduceat(votes << bits | low - here, first) if len(some) else here
    best = np.sort(best[best >> bits > 1])[::-1][:most]
    return np.concatenate([order[middle[low - (best & low)]], np.flatnonzero(lone)[: most - len(best)]])
