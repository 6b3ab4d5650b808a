"""Match: which indexed clips share sound with a clip, found by equal words and proved frame by frame.

In    fingerprints (aut/audio/fingerprint.py): the few clips that are indexed, and a stream of others
Out   for each clip of the stream the indexed clips it shares sound with, a score in [0, 1] and the offset
Why   equal keys (aut/audio/keys.py) vote for a place (aut/audio/postings.py), and the best few are compared trit by
      trit at three playing speeds. The mean of each band's trits is taken away first: two different notes of one
      pitch decay alike, a copy also wavers alike.
      Only every second word of an indexed clip is kept: neighbours share seven eighths of their samples.
      Clips are looked up some fifty at a time: alone, one costs more than twice as much, for the calls.
Price an indexed second holds 16 words of 4 bytes, and 62 keys at most; memory grows with the indexed side only.
Run   python -m benchmarks.screen --quick
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

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
SURE = 0.6  # a copy at another speed scores less, so none is tried
AROUND = np.arange(-3, 4)  # hops around the place voted for
STEP = 2  # hops from one indexed word to the next
STEADY = 0.4  # share of each band's mean trit that is taken away; the rest still tells two steady notes apart
FRAMES = 8192  # of the stream, looked up in one go: what a call costs is shared, and the caches hold it
WORDS = 1 << 16  # of the index, compared in one go

Int = NDArray[np.int64]
Real = NDArray[np.float64]


class Places(NamedTuple):
    """Frame `at` of clip `asked` of the stream lies on `frame` of indexed clip `probe`, so keys say. Equal lengths."""

    asked: Int
    probe: Int
    frame: Int
    at: Int

    def taken(self, which: Any) -> Places:
        return Places(*(x[which] for x in self))


@dataclass(frozen=True, slots=True)
class Match:
    """A clip shares sound with indexed clip `probe`: its start lies at `offset_s` of the indexed clip."""

    probe: int
    score: float
    offset_s: float


class Index:
    """The indexed clips: postings, and the words of the proof. `a_frame` keys of each frame are kept, at most 2."""

    def __init__(self, clips: Sequence[Words], a_frame: float = EVERY) -> None:
        self.postings = Postings.of([few(keys(w), len(w), a_frame) for w in clips], [len(w) for w in clips])
        self.words, self.first = laid_end_to_end([w[::STEP] for w in clips])

    @property
    def nbytes(self) -> int:
        """Memory of all that a look-up reads."""
        return int(self.postings.nbytes + self.words.nbytes + self.first.nbytes)

    def search(self, clips: Sequence[Words], threshold: float, min_match_s: float) -> list[list[Match]]:
        """For each clip the indexed ones whose score with it reaches `threshold`, best first, each once."""
        found: list[list[Match]] = []
        for some in _split([len(words) for words in clips], FRAMES):
            found += self._search(clips[some], threshold, min_match_s)
        return found

    def _search(self, clips: Sequence[Words], threshold: float, min_match_s: float) -> list[list[Match]]:
        words, first = laid_end_to_end(clips)
        candidates = self._candidates(words, first)
        best: list[dict[int, Match]] = [{} for _ in clips]
        for some in _split(self.first[candidates.probe + 1] - self.first[candidates.probe], WORDS):
            places = self._promising(words, first, candidates.taken(some), min_match_s)
            scores, offsets = self._proof(words, first, places, min_match_s)
            for asked, probe, score, offset in zip(
                places.asked.tolist(), places.probe.tolist(), scores.tolist(), offsets.tolist(), strict=True
            ):
                match, before = Match(probe, round(score, 4), round(offset * HOP_S, 3)), best[asked].get(probe)
                if score >= threshold and (before is None or match.score > before.score):
                    best[asked][probe] = match
        return [sorted(found.values(), key=lambda m: (-m.score, m.probe)) for found in best]

    def _candidates(self, words: Words, first: Int) -> Places:
        """Most agreed on first. An hour may hold every clip of a set, ten seconds hold few."""
        frames = np.diff(first)
        key, at = variants(keys(words, frames))
        most = np.maximum(CANDIDATES, np.ceil(frames * HOP_S).astype(np.int64))
        return Places(*self.postings.agreed(key, at, first, most))

    def _promising(self, words: Words, first: Int, places: Places, min_match_s: float) -> Places:
        """Those whose words agree where they lie. Trits are only counted: most places are there by chance."""
        lying, cuts, own_N, kept_N = self._overlaps(first, places, places.frame - places.at, 1.0)
        own, kept = words[own_N], self.words[kept_N]
        own_trusted, trusted = own >> np.uint32(BITS), kept >> np.uint32(BITS)
        both = own_trusted & trusted
        apart = (own ^ kept) & both
        c, d, e, f = (_sums(np.bitwise_count(w), cuts) for w in (both, apart, own_trusted, trusted))
        return places.taken(lying[_score(c - 2 * d, e * f, min_match_s) >= GIVE_UP])

    def _proof(self, words: Words, first: Int, places: Places, min_match_s: float) -> tuple[Real, Real]:
        """Best score of each place, and the frame of the indexed clip on which the asked one's first frame lies."""
        mine = moves(words, first)
        size = self.first[places.probe + 1] - self.first[places.probe]
        begin = np.concatenate([[0], np.cumsum(size)])
        row_N = np.arange(begin[-1]) + np.repeat(self.first[places.probe] - begin[:-1], size)
        theirs = moves(self.words[row_N], begin)
        own_energy, energy = (np.einsum("fb,fb->f", x, x) for x in (mine, theirs))
        best, offset = np.zeros(len(size)), np.zeros(len(size))
        for rate in (1.0, *OTHER_RATES):
            which = np.repeat(np.flatnonzero(best < SURE), len(AROUND))
            tried = places.frame[which] - rate * places.at[which] + np.resize(AROUND, len(which))
            lying, cuts, own_N, kept_N = self._overlaps(first, places.taken(which), tried, rate)
            which, tried = which[lying], tried[lying]
            kept_N += np.repeat(begin[which] - self.first[places.probe[which]], np.diff(cuts, append=len(kept_N)))
            c = _sums(np.einsum("fb,fb->f", mine[own_N], theirs[kept_N]), cuts)
            score = _score(c, _sums(own_energy[own_N], cuts) * _sums(energy[kept_N], cuts), min_match_s)
            order = np.lexsort((score, which))
            top = order[np.flatnonzero(np.diff(which[order], append=-1))]
            top = top[score[top] > best[which[top]]]
            best[which[top]], offset[which[top]] = score[top], tried[top]
        return np.minimum(best, 1.0), offset

    def _overlaps(self, first: Int, places: Places, shift: Any, rate: float) -> tuple[Int, Int, Int, Int]:
        """(places that overlap, where each begins in what follows, frames of the stream, words of the index).

        Frame i of an asked clip lies on frame `shift + rate * i` of the indexed one, of which each STEP-th is kept.
        """
        frames = first[places.asked + 1] - first[places.asked]
        at = self.first[places.probe]
        start = np.maximum(0, np.ceil(shift / STEP)).astype(np.int64)
        stop = np.minimum(self.first[places.probe + 1] - at, (shift + rate * (frames - 1)) // STEP + 1).astype(np.int64)
        lying = np.flatnonzero(stop > start)
        start, count = start[lying], (stop - start)[lying]
        cuts = np.cumsum(count) - count
        row_N = np.arange(count.sum()) + np.repeat(start - cuts, count)
        own_N = np.rint((STEP * row_N - np.repeat(shift[lying], count)) / rate).astype(np.int64)
        return lying, cuts, own_N + np.repeat(first[places.asked[lying]], count), row_N + np.repeat(at[lying], count)


def _split(sizes: Sequence[int] | Int, together: int) -> Iterator[slice]:
    """What goes together: about so much at a time, and at least one."""
    group = np.cumsum(sizes) // together
    cuts = (np.flatnonzero(np.diff(group)) + 1).tolist()
    return (slice(a, b) for a, b in pairwise([0, *cuts, len(sizes)]))


def laid_end_to_end(clips: Sequence[Words]) -> tuple[Words, Int]:
    """All words, and where each clip begins among them, and their end."""
    return np.concatenate([np.zeros(0, np.uint32), *clips]), np.cumsum([0, *(len(words) for words in clips)])


def moves(words: Words, first: Int) -> NDArray[np.float32]:
    """[words, 16]: trits less most of their clip's mean; clip c begins at word `first[c]`."""
    values = trits(words).astype(np.float32)
    heard = (words != 0).astype(np.float32)
    frames = np.diff(first)
    begin, frames = first[:-1][frames > 0], frames[frames > 0]
    if len(begin):
        mean = STEADY / np.maximum(np.add.reduceat(heard, begin), 1)[:, None] * np.add.reduceat(values, begin)
        values -= np.repeat(mean, frames, axis=0) * heard[:, None]
    return values


def _sums(values: NDArray[Any], cuts: Int) -> Any:
    """Of the values from each cut to the next; none is empty."""
    return np.add.reduceat(values, cuts, dtype=np.float64) if len(cuts) else np.zeros(0)


def _score(c: Any, energies: Any, min_match_s: float) -> Any:
    """c / sqrt(g (g + k)): c sums the products of aligned trits, g is the geometric mean of their energies over
    the overlap, k what `min_match_s` of full trust would give. So a long match scores its agreement, and one as short
    as `min_match_s` 0.71 of it."""
    g = np.maximum(energies, 1.0) ** 0.5
    return c / (g * (g + min_match_s / HOP_S * BITS / STEP)) ** 0.5
