"""Match: which indexed clips share sound with a clip, found by equal words and proved frame by frame.

In    fingerprints (aut/audio/fingerprint.py): the few clips that are indexed, and a stream of others
Out   for each clip of the stream the indexed clips it shares sound with, a score in [0, 1] and the offset
Why   equal keys (aut/audio/keys.py) vote for a place (aut/audio/postings.py), and the best few are compared trit by
      trit at three playing speeds. The mean of each band's trits is taken away first: two different notes of one
      pitch decay alike, a copy also wavers alike.
      Only every second word of an indexed clip is kept: neighbours share seven eighths of their samples.
Price an indexed second holds 16 words of 4 bytes, and 62 keys at most; memory grows with the indexed side only.
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
from aut.audio.keys import Words, few, keys, variants
from aut.audio.postings import Postings

EVERY = 2.0  # keys a frame: its low and its high half
FEW = 0.5  # keys a frame, for an index of many millions of clips
CANDIDATES = 12  # proved for each clip of the stream, or one a second where it is longer: it may hold that many others
OTHER_RATES = (0.98, 1.02)  # playing speeds tried beside the normal one
GIVE_UP = 0.08  # as voted for, at normal speed: 19 in 20 chance votes score less, a copy 2 % off still 0.1
SURE = 0.6  # as voted for: a copy at another speed scores less, so none is tried
COARSE = (-2, 2)  # hops around the place voted for
FINE = (-1, 1)  # hops around the best of these
STEP = 2  # hops from one indexed word to the next
STEADY = 0.4  # share of each band's mean trit that is taken away; the rest still tells two steady notes apart

Place = tuple[int, int, int]
"""(indexed clip, frame of the asked clip, frame of the indexed clip) that keys agree on."""


@dataclass(frozen=True, slots=True)
class Match:
    """A clip shares sound with indexed clip `probe`: its start lies at `offset_s` of the indexed clip."""

    probe: int
    score: float
    offset_s: float


def proved(words: Words) -> int:
    """How many candidates of a clip are proved: an hour may hold every clip of a set, ten seconds hold few."""
    return max(CANDIDATES, math.ceil(len(words) * HOP_S))


class Index:
    """The indexed clips: postings, and the words of the proof. `a_frame` keys of each frame are kept, at most 2."""

    def __init__(self, clips: Sequence[Words], a_frame: float = EVERY) -> None:
        self.postings = Postings.of([few(keys(w), len(w), a_frame) for w in clips], [len(w) for w in clips])
        kept = [w[::STEP] for w in clips]
        self.words = np.concatenate([np.zeros(0, np.uint32), *kept])
        self.first = np.concatenate([[0], np.cumsum([len(w) for w in kept], dtype=np.int64)])

    @property
    def nbytes(self) -> int:
        """Memory of all that a look-up reads."""
        return int(self.postings.nbytes + self.words.nbytes + self.first.nbytes)

    def matches(self, words: Words, threshold: float, min_match_s: float) -> list[Match]:
        """Indexed clips whose score with `words` reaches `threshold`, best first, each once."""
        found = self._promising(words, self.candidates(words), min_match_s)
        mine = moves(words if found else words[:0])
        best: dict[int, Match] = {}
        for probe, at, frame in found:
            score, offset = proof(mine, moves(self.kept(probe)), at, frame, min_match_s)
            if score >= threshold and (probe not in best or score > best[probe].score):
                best[probe] = Match(probe, round(score, 4), round(offset * HOP_S, 3))
        return sorted(best.values(), key=lambda m: (-m.score, m.probe))

    def kept(self, clip: int) -> Words:
        """Each STEP-th word of an indexed clip."""
        return self.words[self.first.item(clip) : self.first.item(clip + 1)]

    def candidates(self, words: Words) -> list[Place]:
        """Most agreed on first."""
        key, at = variants(keys(words))
        clip, frame, mine = self.postings.agreed(key, at, len(words), proved(words))
        return list(zip(clip.tolist(), mine.tolist(), frame.tolist(), strict=True))

    def _promising(self, words: Words, found: list[Place], min_match_s: float) -> list[Place]:
        """Those whose words agree where they lie. Trits are counted in all at once: most are there by chance."""
        if not found:
            return []
        places = np.array(found)
        probe, shift = places[:, 0], places[:, 2] - places[:, 1]
        start = np.maximum(0, -(-shift // STEP))  # as _overlap, of all at once
        stop = np.minimum(self.first[probe + 1] - self.first[probe], (shift + len(words) - 1) // STEP + 1)
        lying = np.flatnonzero(stop > start)
        start, count, shift, at = start[lying], (stop - start)[lying], shift[lying], self.first[probe[lying]]
        if not len(lying):
            return []
        first = np.cumsum(count) - count
        row_N = np.arange(count.sum()) + np.repeat(start - first, count)
        own_N, kept_N = words[STEP * row_N - np.repeat(shift, count)], self.words[row_N + np.repeat(at, count)]
        own_trusted, trusted = own_N >> np.uint32(BITS), kept_N >> np.uint32(BITS)
        both = own_trusted & trusted
        apart = (own_N ^ kept_N) & both
        c, d, e, f = (
            np.add.reduceat(np.bitwise_count(w), first, dtype=np.int64) for w in (both, apart, own_trusted, trusted)
        )
        score = _score(c - 2 * d, np.maximum(e * f, 1), min_match_s)
        return [found[i] for i in lying[score >= GIVE_UP].tolist()]


def moves(words: Words) -> NDArray[np.float32]:
    """[words, 16]: trits less most of their mean."""
    values = trits(words).astype(np.float32)
    heard = (words != 0).astype(np.float32)
    values -= (STEADY / max(float(heard.sum()), 1.0) * values.sum(axis=0)) * heard[:, None]
    return values


def proof(
    mine: NDArray[np.float32], theirs: NDArray[np.float32], at: int, frame: int, min_match_s: float
) -> tuple[float, float]:
    """Best score and offset (in hops) of two clips aligned at frame `at` of mine and `frame` of theirs.

    `mine` are the moves of all frames, `theirs` of each STEP-th.
    """

    def tried(rate: float, shift: int) -> tuple[float, float, float, int]:
        return *_agreement(mine, theirs, frame + shift - at * rate, rate, min_match_s), rate, shift

    best = tried(1.0, 0)
    if best[0] < GIVE_UP:
        return 0.0, 0.0
    around = [(1.0, s) for s in COARSE] + [(r, s) for r in OTHER_RATES for s in (0, *COARSE) if best[0] < SURE]
    best = max([best, *(tried(*a) for a in around)], key=lambda found: found[0])
    _, _, rate, shift = best
    return max([best, *(tried(rate, shift + s) for s in FINE)], key=lambda found: found[0])[:2]


def _agreement(
    mine: NDArray[np.float32], theirs: NDArray[np.float32], first: float, rate: float, min_match_s: float
) -> tuple[float, float]:
    """(score, first): frame i of mine against frame `first + rate * i` of theirs."""
    start, stop = _overlap(len(mine), len(theirs), first, rate)
    if stop <= start:
        return 0.0, first
    kept = theirs[start:stop]
    if rate == 1.0:  # whole frames, and a view of mine: nine in ten calls
        own = np.ascontiguousarray(mine[STEP * start - int(first) :: STEP][: stop - start])
    else:
        own = mine[np.rint((np.arange(STEP * start, STEP * stop, STEP) - first) / rate).astype(np.int64)]
    energies = float(np.vdot(own, own)) * float(np.vdot(kept, kept))
    score: float = _score(float(np.vdot(own, kept)), max(energies, 1.0), min_match_s)
    return min(max(score, 0.0), 1.0), first


def _overlap(frames: int, kept: int, first: float, rate: float) -> tuple[int, int]:
    """The words of theirs, from and to, that frames of mine lie on: frame i on frame `first + rate * i` of theirs."""
    return max(0, math.ceil(first / STEP)), min(kept, int((first + rate * (frames - 1)) // STEP) + 1)


def _score(c: Any, energies: Any, min_match_s: float) -> Any:
    """c / sqrt(g (g + k)): c sums the products of aligned trits, g is the geometric mean of their energies over
    the overlap, k what `min_match_s` of full trust would give. So a long match scores its agreement, and one as short
    as `min_match_s` 0.71 of it."""
    g = energies**0.5
    return c / (g * (g + min_match_s / HOP_S * BITS / STEP)) ** 0.5
