"""Match: which indexed clips share sound with a clip, found by equal words and proved frame by frame.

In    fingerprints (aut/audio/fingerprint.py): the few clips that are indexed, and a stream of others
Out   for each clip of the stream the indexed clips it shares sound with, a score in [0, 1] and the offset
Why   a key is the 8 low or the 8 high signs of three frames 128 ms apart: a sound that fills half of the bands, and
      a noise that fills the other half, leave keys alone. Equal keys vote for (indexed clip, offset), and the best few
      are compared trit by trit at three playing speeds. The mean of each band's trits is taken away first:
      two different notes of one pitch decay alike, a copy also wavers alike.
Price an indexed second costs 31 keys times 2 ** FLIPS postings of 12 bytes; memory grows with the indexed side only.
Run   python -m benchmarks.screen --quick
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aut.audio.fingerprint import BITS, HOP_S, trits

Words = NDArray[np.uint32]

HALF = 8  # signs of a frame in a key: half of the bands, because noise seldom spares all of them
FRAMES = 3  # of a key
GAP = 4  # hops between its frames
SPAN = GAP * (FRAMES - 1)
FLIPS = 5  # untrusted signs of an indexed key that are tried both ways
MIN_TRUSTED = 6  # of a key's 24 signs: fewer say too little to vote
COMMON = 2048  # postings: a key more frequent than this is a stop word
DIAGONAL = 4  # offsets closer than this many hops vote together
CANDIDATES = 12  # proved for each clip of the stream, or one a second where it is longer: it may hold that many others
RATES = (1.0, 0.98, 1.02)  # playing speeds tried
GIVE_UP = 0.05  # at normal speed: a chance vote scores less, a copy 2 % off still 0.1
COARSE = (-2, 0, 2)  # hops around the voted offset; the best is refined by one
STEADY = 0.4  # share of each band's mean trit that is taken away; the rest still tells two steady notes apart


@dataclass(frozen=True, slots=True)
class Match:
    """A clip shares sound with indexed clip `probe`: its start lies at `offset_s` of the indexed clip."""

    probe: int
    score: float
    offset_s: float


def keys(words: Words, flips: int = 0, one_in: int = 1) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """Keys of a clip and the frame each starts at; `flips` untrusted signs are tried both ways.

    A key that repeats its predecessor is left out, so a steady tone votes once. `one_in` keeps the keys whose hash
    says so, the same on both sides: what an index of a very large pool can afford.
    """
    low, high = _half(words, 0, flips), _half(words, HALF, flips)
    key, at = np.concatenate([low[0], high[0]]), np.concatenate([low[1], high[1]])
    if one_in == 1:
        return key, at
    kept = (key * np.uint32(2654435761) >> np.uint32(8)) % np.uint32(one_in) == 0  # Knuth's multiplicative hash
    return key[kept], at[kept]


def _half(words: Words, band: int, flips: int) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    count = max(len(words) - SPAN, 0)
    key, trusted = np.zeros(count, np.uint32), np.zeros(count, np.uint32)
    for f in range(0, SPAN + 1, GAP):
        frame = words[f : f + count] >> np.uint32(band)
        key = key << np.uint32(HALF) | frame & np.uint32(0xFF)
        trusted = trusted << np.uint32(HALF) | frame >> np.uint32(BITS) & np.uint32(0xFF)
    telling: NDArray[np.bool_] = np.bitwise_count(trusted) >= MIN_TRUSTED
    telling[1:] &= key[1:] != key[:-1]
    at = np.flatnonzero(telling).astype(np.int32)
    doubtful = trusted[at] ^ np.uint32((1 << HALF * FRAMES) - 1)
    found, where = _flipped(key[at], doubtful.astype(np.uint32), at, flips)
    return found | np.uint32(band // HALF << HALF * FRAMES), where


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


def proved(words: Words) -> int:
    """How many candidates of a clip are proved: an hour may hold every clip of a set, ten seconds hold few."""
    return max(CANDIDATES, math.ceil(len(words) * HOP_S))


@dataclass(frozen=True, slots=True)
class Postings:
    """Where each key occurs: three columns sorted by key."""

    key: NDArray[np.uint32]
    clip: NDArray[np.int32]
    frame: NDArray[Any]  # integers; 16 bits do for clips under half an hour
    one_in: int = 1

    @property
    def nbytes(self) -> int:
        return int(self.key.nbytes + self.clip.nbytes + self.frame.nbytes)

    def candidates(self, words: Words, flips: int = 0) -> NDArray[np.int64]:
        """[up to `proved`, (indexed clip, frame of `words`, frame of the indexed clip)], most voted first."""
        key, at = keys(words, flips, self.one_in)
        low, high = np.searchsorted(self.key, key, "left"), np.searchsorted(self.key, key, "right")
        count = high - low
        count[count > COMMON] = 0
        total = int(count.sum())
        if not total:
            return np.zeros((0, 3), np.int64)
        posting = np.repeat(low - np.cumsum(count) + count, count) + np.arange(total)
        mine = np.repeat(at, count).astype(np.int64)
        clip, frame = self.clip[posting].astype(np.int64), self.frame[posting].astype(np.int64)
        cell = clip << 32 | (frame - mine + (1 << 30)) // DIAGONAL
        order = np.argsort(cell, kind="stable")
        starts = np.flatnonzero(np.diff(cell[order], prepend=-1))
        votes = np.diff(starts, append=total)
        top = np.argsort(-votes, kind="stable")[: proved(words)]
        middle = order[starts[top] + votes[top] // 2]
        return np.stack([clip[middle], mine[middle], frame[middle]], axis=1)


class Index:
    """The indexed clips: postings, and their trits for the proof."""

    def __init__(self, clips: Sequence[Words], flips: int = FLIPS, one_in: int = 1) -> None:
        found = [keys(words, flips, one_in) for words in clips]
        key = np.concatenate([k for k, _ in found] or [np.zeros(0, np.uint32)])
        frame = np.concatenate([at for _, at in found] or [np.zeros(0, np.int32)])
        order = np.argsort(key, kind="stable")
        clip = np.repeat(np.arange(len(found), dtype=np.int32), [len(k) for k, _ in found])
        self.postings = Postings(key[order], clip[order], frame[order], one_in)
        self.profiles = [Profile.of(words) for words in clips]

    def matches(self, words: Words, threshold: float, min_match_s: float) -> list[Match]:
        """Indexed clips whose score with `words` reaches `threshold`, best first, each once."""
        voted = self.postings.candidates(words)
        best: dict[int, Match] = {}
        mine = Profile.of(words if len(voted) else words[:0])
        for probe, at, frame in voted.tolist():
            score, offset = proof(mine, self.profiles[probe], at, frame, min_match_s)
            if score >= threshold and (probe not in best or score > best[probe].score):
                best[probe] = Match(probe, round(score, 4), round(offset * HOP_S, 3))
        return sorted(best.values(), key=lambda m: (-m.score, m.probe))


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
    best = (0.0, 0.0, 1.0, 0)
    for rate in RATES:
        tried = [(*_agreement(mine, theirs, frame + shift - at * rate, rate, k), rate, shift) for shift in COARSE]
        best = max([best, *tried], key=lambda found: found[0])
        if best[0] < GIVE_UP:
            return 0.0, 0.0
    _, _, rate, shift = best
    fine = [_agreement(mine, theirs, frame + s - at * rate, rate, k) for s in (shift - 1, shift + 1)]
    return max([best[:2], *fine], key=lambda found: found[0])


def _agreement(mine: Profile, theirs: Profile, first: float, rate: float, k: float) -> tuple[float, float]:
    """(score, first): frame i of mine against frame `first + rate * i` of theirs."""
    start = max(0, math.ceil(-first / rate))
    stop = min(len(mine.moves), int((len(theirs.moves) - 1 - first) // rate) + 1)
    if stop <= start:
        return 0.0, first
    low, high = _row(theirs, first + start * rate), _row(theirs, first + (stop - 1) * rate)
    rows: Any = slice(low, high + 1)  # at their own speed a view: nine in ten calls
    if rate != 1.0:
        rows = np.rint(first + np.arange(start, stop) * rate).astype(np.int64)
        rows[0], rows[-1] = low, high
    c = float(np.vdot(mine.moves[start:stop], theirs.moves[rows]))
    energy = (mine.energy.item(stop) - mine.energy.item(start)) * (
        theirs.energy.item(high + 1) - theirs.energy.item(low)
    )
    g = max(energy, 1.0) ** 0.5
    return min(max(c / (g * (g + k)) ** 0.5, 0.0), 1.0), first


def _row(profile: Profile, at: float) -> int:
    """The frame nearest to `at`; ends round inwards."""
    return min(max(round(at), 0), len(profile.moves) - 1)
