"""Match: which indexed clips share sound with a clip, found by equal words and proved frame by frame.

In    fingerprints (aut/audio/fingerprint.py): the few clips that are indexed, and a stream of others
Out   for each clip of the stream the indexed clips it shares sound with, a score in [0, 1] and the offset
Why   a key is the 16 signs of two frames 192 ms apart; equal keys vote for (indexed clip, offset), and the best
      few are compared trit by trit at three playing speeds. The mean of each band's trits is taken away first:
      two different notes of one pitch decay alike, a copy also wavers alike.
Price an indexed second costs 31 keys times 2 ** FLIPS postings of 12 bytes; memory grows with the indexed side only.
Run   python -m benchmarks.screen --quick
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from aut.audio.fingerprint import BITS, HOP_S, trits

Words = NDArray[np.uint32]

GAP = 6  # hops between the two frames of a key: further apart than their windows overlap much
FLIPS = 4  # untrusted signs of an indexed key that are tried both ways
MIN_TRUSTED = 8  # of a key's 32 signs: fewer say too little to vote
COMMON = 2048  # postings: a key more frequent than this is a stop word
DIAGONAL = 4  # offsets closer than this many hops vote together
CANDIDATES = 8  # proved for each clip of the stream
RATES = (1.0, 0.98, 1.02)  # playing speeds tried
JITTER = 3  # hops around the voted offset
STEADY = 0.8  # share of each band's mean trit that is taken away; the rest still tells two steady notes apart


@dataclass(frozen=True, slots=True)
class Match:
    """`clip` shares sound with indexed clip `probe`: its start lies at `offset_s` of the indexed clip."""

    clip: int
    probe: int
    score: float
    offset_s: float


def keys(words: Words, flips: int = 0) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """Keys of a clip and the frame each starts at; `flips` untrusted signs are tried both ways.

    A key that repeats its predecessor is left out, so a steady tone votes once.
    """
    if len(words) <= GAP:
        return np.zeros(0, np.uint32), np.zeros(0, np.int32)
    first, second = words[:-GAP], words[GAP:]
    key = (first & 0xFFFF) << np.uint32(BITS) | (second & 0xFFFF)
    trusted = (first >> np.uint32(BITS)) << np.uint32(BITS) | (second >> np.uint32(BITS))
    telling: NDArray[np.bool_] = np.bitwise_count(trusted) >= MIN_TRUSTED
    telling[1:] &= key[1:] != key[:-1]
    at = np.flatnonzero(telling).astype(np.int32)
    return _flipped(key[at], trusted[at] ^ np.uint32(0xFFFFFFFF), at, flips)


def _flipped(
    key: NDArray[np.uint32], doubtful: NDArray[np.uint32], at: NDArray[np.int32], flips: int
) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    masks = np.zeros((flips, len(key)), np.uint32)
    for f in range(flips):
        masks[f] = doubtful & (~doubtful + np.uint32(1))  # the lowest bit that is set
        doubtful = doubtful & ~masks[f]
    tried = [key]
    for mask in masks:
        tried += [k ^ mask for k in tried]
    every, where = np.concatenate(tried), np.tile(at, len(tried))
    if not flips:
        return every, where
    pair = np.unique(every.astype(np.uint64) << np.uint64(32) | where.astype(np.uint64))
    return (pair >> np.uint64(32)).astype(np.uint32), (pair & np.uint64(0xFFFFFFFF)).astype(np.int32)


class Index:
    """The indexed clips: postings sorted by key, and their trits for the proof."""

    def __init__(self, clips: Sequence[Words], flips: int = FLIPS) -> None:
        found = [keys(words, flips) for words in clips]
        key = np.concatenate([k for k, _ in found] or [np.zeros(0, np.uint32)])
        order = np.argsort(key, kind="stable")
        self.key = key[order]
        self.clip = np.repeat(np.arange(len(found), dtype=np.int32), [len(k) for k, _ in found])[order]
        self.frame = np.concatenate([at for _, at in found] or [np.zeros(0, np.int32)])[order]
        self.size = len(clips)
        self.profiles = [Profile.of(words) for words in clips]

    @property
    def nbytes(self) -> int:
        return int(self.key.nbytes + self.clip.nbytes + self.frame.nbytes)

    def matches(self, words: Words, threshold: float, min_match_s: float, clip: int = 0) -> list[Match]:
        """Indexed clips whose score with `words` reaches `threshold`, best first."""
        voted = self.candidates(words)
        if not len(voted):
            return []
        mine = Profile.of(words)
        out = []
        for probe, at, frame in voted.tolist():
            score, offset = proof(mine, self.profiles[probe], at, frame, min_match_s)
            if score >= threshold:
                out.append(Match(clip, probe, round(score, 4), round(offset * HOP_S, 3)))
        best: dict[int, Match] = {}
        for match in out:
            if match.probe not in best or match.score > best[match.probe].score:
                best[match.probe] = match
        return sorted(best.values(), key=lambda m: (-m.score, m.probe))

    def candidates(self, words: Words) -> NDArray[np.int64]:
        """[up to CANDIDATES, (indexed clip, frame of `words`, frame of the indexed clip)], most voted first."""
        key, at = keys(words)
        low, high = np.searchsorted(self.key, key, "left"), np.searchsorted(self.key, key, "right")
        count = high - low
        count[count > COMMON] = 0
        total = int(count.sum())
        if not total:
            return np.zeros((0, 3), np.int64)
        start = np.repeat(low - np.cumsum(count) + count, count)
        posting = start + np.arange(total)
        mine = np.repeat(at, count).astype(np.int64)
        clip, frame = self.clip[posting].astype(np.int64), self.frame[posting].astype(np.int64)
        cell = clip << 32 | (frame - mine + (1 << 30)) // DIAGONAL
        order = np.argsort(cell, kind="stable")
        starts = np.flatnonzero(np.diff(cell[order], prepend=-1))
        votes = np.diff(starts, append=total)
        top = np.argsort(-votes, kind="stable")[:CANDIDATES]
        middle = order[starts[top] + votes[top] // 2]
        return np.stack([clip[middle], mine[middle], frame[middle]], axis=1)


@dataclass(frozen=True, slots=True)
class Profile:
    """Trits of a clip less most of their mean, and the running sum of their squares."""

    moves: NDArray[np.float32]  # [frames, 16]
    energy: NDArray[np.float64]  # [frames + 1]

    @classmethod
    def of(cls, words: Words) -> Profile:
        values = trits(words).astype(np.float32)
        heard = (words != 0)[:, None]
        mean = values.sum(axis=0) / max(int(heard.sum()), 1)
        values -= STEADY * mean * heard
        return cls(values, np.concatenate([[0.0], np.cumsum((values**2).sum(axis=1), dtype=np.float64)]))


def proof(mine: Profile, theirs: Profile, at: int, frame: int, min_match_s: float) -> tuple[float, float]:
    """Best score and offset (in hops) of two clips aligned at frame `at` of mine and `frame` of theirs.

    score = c / sqrt(g (g + k)): c sums the products of aligned trits, g is the geometric mean of their energies
    over the overlap, k what `min_match_s` of full trust would give. So a long match scores its agreement, and
    one as short as `min_match_s` 0.71 of it.
    """
    k = min_match_s / HOP_S * BITS
    best, offset = 0.0, 0.0
    n = len(mine.moves)
    for rate, shift in product(RATES, range(-JITTER, JITTER + 1)):
        first = frame + shift - at * rate
        i0 = max(0, int(np.ceil(-first / rate)))
        i1 = min(n, int(np.floor((len(theirs.moves) - 1 - first) / rate)) + 1)
        if i1 <= i0:
            continue
        rows = np.rint(first + np.arange(i0, i1) * rate).astype(np.int64)
        rows = rows[(rows >= 0) & (rows < len(theirs.moves))][: i1 - i0]
        i1 = i0 + len(rows)
        c = float(np.vdot(mine.moves[i0:i1], theirs.moves[rows]))
        if c <= 0:
            continue
        energy = (mine.energy[i1] - mine.energy[i0]) * float(theirs.energy[rows[-1] + 1] - theirs.energy[rows[0]])
        g = np.sqrt(max(energy, 1.0))
        score = float(c / np.sqrt(g * (g + k)))
        if score > best:
            best, offset = min(score, 1.0), first
    return best, offset
