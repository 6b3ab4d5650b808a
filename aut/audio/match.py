"""Match: which indexed clips share sound with a clip, found by equal words and proved frame by frame.

In    fingerprints (aut/audio/fingerprint.py): the few clips that are indexed, and a stream of others
Out   for each clip of the stream the indexed clips it shares sound with, a score in [0, 1] and the offset
Why   equal keys (aut/audio/keys.py) vote for a place (aut/audio/postings.py), and the best few are compared trit by
      trit at three playing speeds. The mean of each band's trits is taken away first: two different notes of one
      pitch decay alike, a copy also wavers alike.
Price an indexed second holds 31 words, and 62 keys at most; memory grows with the indexed side only.
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
GIVE_UP = 0.08  # as voted for, at normal speed: a chance vote scores less, a copy 2 % off still 0.1
SURE = 0.6  # as voted for: a copy at another speed scores less, so none is tried
COARSE = (-2, 2)  # hops around the place voted for
FINE = (-1, 1)  # hops around the best of these
STEADY = 0.4  # share of each band's mean trit that is taken away; the rest still tells two steady notes apart


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
    """The indexed clips: postings, and their trits for the proof. `a_frame` keys of each frame are kept, at most 2."""

    def __init__(self, clips: Sequence[Words], a_frame: float = EVERY) -> None:
        self.postings = Postings.of([few(keys(w), len(w), a_frame) for w in clips], [len(w) for w in clips])
        self.profiles = [Profile.of(words) for words in clips]

    def matches(self, words: Words, threshold: float, min_match_s: float) -> list[Match]:
        """Indexed clips whose score with `words` reaches `threshold`, best first, each once."""
        found = self.candidates(words)
        mine = Profile.of(words if found else words[:0])
        best: dict[int, Match] = {}
        for probe, at, frame in found:
            score, offset = proof(mine, self.profiles[probe], at, frame, min_match_s)
            if score >= threshold and (probe not in best or score > best[probe].score):
                best[probe] = Match(probe, round(score, 4), round(offset * HOP_S, 3))
        return sorted(best.values(), key=lambda m: (-m.score, m.probe))

    def candidates(self, words: Words) -> list[tuple[int, int, int]]:
        """(indexed clip, frame of `words`, frame of the indexed clip), most agreed on first."""
        key, at = variants(keys(words))
        clip, frame, mine = self.postings.agreed(key, at, len(words), proved(words))
        return list(zip(clip.tolist(), mine.tolist(), frame.tolist(), strict=True))


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
        energy = np.zeros(len(values) + 1)
        np.cumsum(np.einsum("fb,fb->f", values, values), out=energy[1:])
        return cls(values, energy)


def proof(mine: Profile, theirs: Profile, at: int, frame: int, min_match_s: float) -> tuple[float, float]:
    """Best score and offset (in hops) of two clips aligned at frame `at` of mine and `frame` of theirs.

    score = c / sqrt(g (g + k)): c sums the products of aligned trits, g is the geometric mean of their energies
    over the overlap, k what `min_match_s` of full trust would give. So a long match scores its agreement, and
    one as short as `min_match_s` 0.71 of it.
    """
    k = min_match_s / HOP_S * BITS

    def tried(rate: float, shift: int) -> tuple[float, float, float, int]:
        return *_agreement(mine, theirs, frame + shift - at * rate, rate, k), rate, shift

    best = tried(1.0, 0)
    if best[0] < GIVE_UP:
        return 0.0, 0.0
    around = [(1.0, s) for s in COARSE] + [(r, s) for r in OTHER_RATES for s in (0, *COARSE) if best[0] < SURE]
    best = max([best, *(tried(*a) for a in around)], key=lambda found: found[0])
    _, _, rate, shift = best
    return max([best, *(tried(rate, shift + s) for s in FINE)], key=lambda found: found[0])[:2]


def _agreement(mine: Profile, theirs: Profile, first: float, rate: float, k: float) -> tuple[float, float]:
    """(score, first): frame i of mine against frame `first + rate * i` of theirs."""
    start = max(0, math.ceil(-first / rate))
    stop = min(len(mine.moves), int((len(theirs.moves) - 1 - first) // rate) + 1)
    if stop <= start:
        return 0.0, first
    rows: Any
    if rate == 1.0:  # whole frames, and a view of theirs: nine in ten calls
        low, high = int(first) + start, int(first) + stop - 1
        rows = slice(low, high + 1)
    else:
        rows = np.rint(first + np.arange(start, stop) * rate).astype(np.int64)  # start and stop keep them inside
        low, high = int(rows[0]), int(rows[-1])
    c = float(np.vdot(mine.moves[start:stop], theirs.moves[rows]))
    energy = (mine.energy.item(stop) - mine.energy.item(start)) * (
        theirs.energy.item(high + 1) - theirs.energy.item(low)
    )
    g = max(energy, 1.0) ** 0.5
    return min(max(c / (g * (g + k)) ** 0.5, 0.0), 1.0), first
