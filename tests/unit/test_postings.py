"""Keys and postings: what is kept, what is asked for, and that votes name the clip and the place."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aut.audio import postings
from aut.audio.keys import BITS_OF_KEY, FLIPS, MIN_TRUSTED, SIGNS, SPAN, STRETCH, Keys, few, keys, variants
from aut.audio.postings import BUDGET, CELL, Int, Postings, bits_of, bucket_of, laid, starts, unit_of

SEEDS = st.integers(0, 2**32 - 1)


def words(seed: int, frames: int = 120, trusted: float = 0.7) -> NDArray[np.uint32]:
    rng = np.random.default_rng(seed)
    bits = np.concatenate([rng.random((frames, 16)) < 0.5, rng.random((frames, 16)) < trusted], axis=1)
    return np.packbits(bits, axis=1, bitorder="little").view("<u4")[:, 0].astype(np.uint32)


@given(SEEDS, st.integers(0, 60), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_key_depends_on_its_frames_alone(seed: int, cut: int, trusted: float) -> None:
    clip = words(seed, 60, trusted)
    whole, rest = keys(clip), keys(clip[cut:])
    assert set(zip(rest.key.tolist(), (rest.at + cut).tolist(), strict=True)) - {
        (k, a) for k, a in zip(rest.key.tolist(), (rest.at + cut).tolist(), strict=True) if a == cut
    } <= set(zip(whole.key.tolist(), whole.at.tolist(), strict=True))
    assert (whole.key < 1 << BITS_OF_KEY).all()
    assert (np.bitwise_count(whole.doubtful) <= SIGNS - MIN_TRUSTED).all()
    assert not len(whole.at) or whole.at.max() < len(clip) - SPAN


def test_a_steady_tone_votes_once_and_silence_never() -> None:
    steady = np.full(100, 0xFFFF_5A5A, np.uint32)
    assert keys(steady).at.tolist() == [0, 0]
    assert len(keys(np.zeros(100, np.uint32)).key) == 0
    assert len(keys(words(0, SPAN)).key) == 0


@given(SEEDS, st.sampled_from([0.1, 0.25, 0.5, 1.0, 2.0]))
@settings(max_examples=40, deadline=None)
def test_few_keeps_the_most_trusted_of_each_stretch(seed: int, a_frame: float) -> None:
    clip = words(seed)
    every = keys(clip)
    kept = few(every, len(clip), a_frame)
    assert len(kept.key) == min(len(every.key), math.ceil(a_frame * len(clip)))
    of = {(int(k), int(a)): int(d) for k, a, d in zip(*every, strict=True)}
    chosen = {(int(k), int(a)) for k, a, _ in zip(*kept, strict=True)}
    assert chosen <= of.keys()
    stretches: dict[tuple[int, int], list[tuple[int, bool]]] = {}
    for (k, a), doubtful in of.items():
        stretches.setdefault((a // STRETCH, k >> SIGNS), []).append((doubtful.bit_count(), (k, a) in chosen))
    for ranked in stretches.values():
        assert max([d for d, taken in ranked if taken], default=0) <= min(
            [d for d, taken in ranked if not taken] or [99]
        )
    taken = [sum(t for _, t in r) for r in stretches.values() if any(not t for _, t in r)]
    assert not taken or max(sum(t for _, t in r) for r in stretches.values()) - min(taken) <= 1


def test_a_bark_in_silence_gives_as_many_keys_as_it_has_and_may() -> None:
    bark = np.concatenate([np.zeros(60, np.uint32), words(1, 30), np.zeros(60, np.uint32)])
    every = keys(bark)
    assert len(few(every, len(bark), 0.25).key) == math.ceil(0.25 * len(bark)) > 2 * (30 / STRETCH)


@given(SEEDS, st.integers(0, 4), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_variants_are_the_first_doubtful_signs_both_ways(seed: int, flips: int, trusted: float) -> None:
    every = keys(words(seed, 30, trusted))
    expected = set()
    for key, at, doubtful in zip(*(c.tolist() for c in every), strict=True):
        first = [1 << b for b in range(32) if doubtful >> b & 1][:flips]
        for turned in product((False, True), repeat=len(first)):
            mask = sum(bit for bit, turn in zip(first, turned, strict=True) if turn)
            expected.add((key ^ mask, at))
    key, at = variants(every, flips)
    found = list(zip(key.tolist(), at.tolist(), strict=True))
    assert len(found) == sum(2 ** min(flips, d.bit_count()) for d in every.doubtful.tolist())
    assert set(found) == expected


@given(SEEDS, st.lists(st.integers(0, 30), max_size=6))
@settings(max_examples=40, deadline=None)
def test_no_key_reaches_from_one_clip_into_the_next(seed: int, frames: list[int]) -> None:
    clips = [words(seed + n, f) for n, f in enumerate(frames)]
    clips[1::2] = clips[0:-1:2]  # one that repeats its predecessor is a clip of its own
    first = np.cumsum([0, *(len(c) for c in clips)])
    alone = [keys(c) for c in clips]
    together = keys(np.concatenate([np.zeros(0, np.uint32), *clips]), [len(c) for c in clips])
    for name in Keys._fields:
        parts = [getattr(k, name) + (f if name == "at" else 0) for k, f in zip(alone, first, strict=False)]
        assert getattr(together, name).tolist() == [x for part in parts for x in part.tolist()]


def agreed(made: Postings, key: NDArray[np.uint32], at: Int, frames: int, most: int) -> tuple[Int, Int, Int]:
    """Of one query: (clip, frame of the clip, frame of the query)."""
    query, clip, frame, mine = made.agreed(key, at, np.array([0, frames]), np.array([most]))
    assert not query.any()
    return clip, frame, mine


def indexed(clips: list[NDArray[np.uint32]]) -> Postings:
    return Postings.of([keys(c) for c in clips], [len(c) for c in clips])


@given(SEEDS, st.integers(0, 19), st.integers(0, 60))
@settings(max_examples=30, deadline=None)
def test_a_piece_of_a_clip_finds_the_clip_and_its_place(seed: int, which: int, cut: int) -> None:
    clips = [words(seed + n, 100) for n in range(20)]
    piece = clips[which][cut : cut + 40]
    clip, frame, mine = agreed(indexed(clips), *variants(keys(piece)), len(piece), 3)
    assert (clip[0], frame[0] - mine[0]) == (which, cut)


@pytest.mark.parametrize("line", [1 << 10, 1 << 9])
def test_a_line_longer_than_a_place_can_name_is_coarser(line: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postings, "LINE", line)
    clips = [words(n, 100) for n in range(10)]
    made = indexed(clips)
    assert made.unit == unit_of(int(made.first[-1])) > 1
    assert int(made.place.max()) < line
    clip, frame, mine = agreed(made, *variants(keys(clips[6][20:80])), 60, 3)
    assert clip[0] == 6
    assert abs(frame[0] - mine[0] - 20) < made.unit


def test_an_empty_index_and_an_empty_query_agree_on_nothing() -> None:
    nothing = Keys(np.zeros(0, np.uint32), np.zeros(0, np.int64), np.zeros(0, np.uint32))
    assert [len(x) for x in agreed(indexed([]), *variants(keys(words(0))), 120, 5)] == [0, 0, 0]
    assert [len(x) for x in agreed(indexed([words(0)]), *variants(nothing), 0, 5)] == [0, 0, 0]


def test_the_rarest_keys_are_read_first_and_no_more_than_the_budget() -> None:
    common, rare = np.uint32(7), np.uint32(1 << 20)
    clips = [Keys(np.array([common]), np.array([n], np.int64), np.array([0], np.uint32)) for n in range(50)]
    clips.append(Keys(np.array([rare]), np.array([3], np.int64), np.array([0], np.uint32)))
    made = Postings.of(clips, [100] * len(clips))
    both, at = np.array([common, rare]), np.zeros(2, np.int64)
    assert BUDGET < 50
    clip, frame, mine = agreed(made, both, at, 1, 10)
    assert list(zip(clip.tolist(), frame.tolist(), mine.tolist(), strict=True)) == [(50, 3, 0)]
    assert len(agreed(made, both, at, 2, 100)[0]) == 51


def test_clips_cut_from_one_recording_do_not_share_a_diagonal() -> None:
    first = laid([50] * 40)
    diagonal = first[:-1] - 50 * np.arange(40)  # of the recording they were cut from
    assert (np.diff(diagonal) >= 2 * CELL).all()
    assert (np.diff(np.diff(diagonal)) != 0).all()


def test_buckets_grow_with_the_postings_and_stop_at_the_keys() -> None:
    assert [bits_of(n) for n in (0, 1 << 20, 1 << 40)] == [16, 24, BITS_OF_KEY]
    spread = np.bincount(bucket_of(np.arange(1 << 16, dtype=np.uint32), 16), minlength=1 << 16)
    assert spread.max() <= 4
    assert starts(np.array([1, 2])).dtype == np.uint32
    assert starts(np.array([1 << 31, 1 << 31])).dtype == np.int64


def test_a_query_asks_with_doubtful_signs_both_ways_by_default() -> None:
    every = keys(words(3))
    assert len(variants(every)[0]) == len(variants(every, FLIPS)[0]) > 4 * len(every.key)
