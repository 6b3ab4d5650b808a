"""Order: exact windows, bijections, and rows that depend on position and seed alone."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aut import order as module
from aut.contracts import Silent
from aut.errors import ConfigError, DataError
from aut.layout import Layout
from aut.order import Order, Part, Shelf, key64, pattern, permute
from aut.stages.mixture import mixture
from benchmarks import _pool as pool

SIZES = {"speech": {"talk": 700, "read": 300}, "environment": {"rain": 90}, "music": {"band": 130}}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """600 rows of 8/1/1; environment has 56 of the 60 clips it needs, so it repeats."""
    layout = Layout(tmp_path_factory.mktemp("mixture"))
    for domain, sources in SIZES.items():
        for name, rows in sources.items():
            pool.source(layout, domain, name, rows)
    blocked = [pool.clip_id("talk", r) for r in range(200)] + [pool.clip_id("rain", r) for r in range(34)]
    pool.block(layout, blocked)
    params = pool.params({d: list(s) for d, s in SIZES.items()}, rows=600, window=20, parts=5)
    mixture(params, layout, Silent())
    return layout


def opened(layout: Layout, seed: int = 0) -> Order:
    return Order.of_mixture(layout.mixture, seed)


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


def test_permute_looks_random() -> None:
    """Where each of 50 items lands over 5,000 keys: uniform, and neighbours part."""
    landed = np.array([permute(np.arange(50), 50, key64(k)) for k in range(5_000)])
    for item in (0, 1, 49):
        counts = np.bincount(landed[:, item], minlength=50)
        assert ((counts - 100) ** 2 / 100).sum() < 105  # chi-square, 49 degrees of freedom, p = 5e-6
    assert abs((landed[:, 1] == landed[:, 0] + 1).mean() - 0.02) < 0.01  # 1/50, 5 standard deviations


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(sum))
def test_pattern_gives_the_counts_evenly(counts: list[int]) -> None:
    slots = pattern(counts)
    assert np.bincount(slots, minlength=len(counts)).tolist() == counts
    for number, count in enumerate(counts):
        expected = np.arange(1, len(slots) + 1) * count / len(slots)
        assert np.abs((slots == number).cumsum() - expected).max() < len(counts)


@settings(max_examples=40)
@given(start=st.integers(0, 5000))
def test_every_window_has_the_quotas(layout: Layout, start: int) -> None:
    found = opened(layout).locate(np.arange(start, start + 20))
    assert np.bincount(found.domain_N, minlength=3).tolist() == [16, 2, 2]


@settings(max_examples=30)
@given(positions=st.lists(st.integers(0, 4000), max_size=40), seed=st.integers(0, 3))
def test_rows_depend_on_position_and_seed_alone(layout: Layout, positions: list[int], seed: int) -> None:
    q = np.array(positions, np.int64)
    together = opened(layout, seed).rows(q)
    order = opened(layout, seed)
    assert [order.rows(q[i : i + 1])[0] for i in range(len(q))] == together
    assert order.seconds(q).tolist() == [r["duration_s"] for r in together]


def test_an_epoch_holds_each_clip_once_and_a_repeated_domain_as_often_as_it_must(layout: Layout) -> None:
    rows = opened(layout).rows(np.arange(600))
    ids = [r["id"] for r in rows if r["domain"] != "environment"]
    assert len(set(ids)) == len(ids) == 540
    times = np.unique([r["id"] for r in rows if r["domain"] == "environment"], return_counts=True)[1]
    assert (times.size, times.max(), times.sum()) == (56, 2, 60)


def test_a_new_epoch_and_a_new_seed_are_new_orders_of_the_same_clips(layout: Layout) -> None:
    def ids(order: Order, epoch: int) -> list[str]:
        rows = order.rows(np.arange(epoch * 600, epoch * 600 + 600))
        return [r["id"] for r in rows if r["domain"] == "speech"]

    first, second, other = ids(opened(layout), 0), ids(opened(layout), 1), ids(opened(layout, 7), 0)
    assert sorted(first) == sorted(second) == sorted(other)
    for a, b in ((first, second), (first, other)):
        assert (
            sum(x == y for x, y in zip(a, b, strict=True)) < 24
        )  # of 480: a clip meets its place again about 5 times in 5 ranges


def test_blocked_clips_never_come(layout: Layout) -> None:
    ids = {r["id"] for r in opened(layout).rows(np.arange(1800))}
    assert not ids & {pool.clip_id("talk", r) for r in range(200)}
    assert not ids & {pool.clip_id("rain", r) for r in range(34)}


def test_speech_alone_is_the_mixture_s_speech_in_its_order(layout: Layout) -> None:
    speech = Order.of_mixture(layout.mixture, 0, ["speech"])
    assert speech.length == 480
    mixed = [r["id"] for r in opened(layout).rows(np.arange(1200)) if r["domain"] == "speech"]
    assert [r["id"] for r in speech.rows(np.arange(960))] == mixed
    assert speech.digest != opened(layout).digest


@settings(max_examples=40)
@given(position=st.integers(0, 3000))
def test_next_in_domain_is_the_nearest(layout: Layout, position: int) -> None:
    order = opened(layout)
    there = order.next_in_domain(position)
    domain = order.locate(np.arange(position, there + 1)).domain_N
    assert domain[0] == domain[-1]
    assert not (domain[1:-1] == domain[0]).any()


def test_a_small_cache_changes_nothing(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = opened(layout).rows(np.arange(600))
    order = opened(layout)
    order._limit = 1
    q = np.random.default_rng(0).permutation(600)
    assert order.rows(q) == [wanted[i] for i in q]
    assert len(order._tables) == 1


def test_it_pickles_without_its_cache(layout: Layout) -> None:
    order = opened(layout)
    wanted = order.rows(np.arange(40))
    assert len(pickle.dumps(order)) < 20_000
    assert pickle.loads(pickle.dumps(order)).rows(np.arange(40)) == wanted


def test_of_index_skips_the_blocklist(layout: Layout) -> None:
    parts = [layout.index("speech", n) / "part-00000.parquet" for n in ("talk", "read")]
    order = Order.of_index(parts, layout.screen / "blocklist.parquet", 0)
    assert order.length == 800
    rows = order.rows(np.arange(800, 1600))
    assert len({r["id"] for r in rows}) == 800
    assert {r["source"] for r in rows} == {"talk", "read"}
    assert not {r["id"] for r in rows} & {pool.clip_id("talk", r) for r in range(200)}
    assert Order.of_index(parts, None, 0).digest != order.digest


def test_of_index_leaves_out_what_a_person_does(layout: Layout) -> None:
    parts = [layout.index("speech", "talk") / "part-00000.parquet"]
    order = Order.of_index(parts, None, 0, [pool.clip_id("talk", 7)], ["CC0 1.0"])
    rows = order.rows(np.arange(order.length))
    assert pool.clip_id("talk", 7) not in {r["id"] for r in rows}
    assert {r["licence"] for r in rows} == {"CC BY 4.0", "CC BY-NC 4.0"}


def test_of_index_with_nothing_left(layout: Layout, tmp_path: Path) -> None:
    elsewhere = Layout(tmp_path)
    pool.source(elsewhere, "speech", "talk", 3)
    pool.block(elsewhere, [pool.clip_id("talk", r) for r in range(3)])
    with pytest.raises(DataError, match="no clip left in 1 parts, 3 ids blocked"):
        Order.of_index(
            [elsewhere.index("speech", "talk") / "part-00000.parquet"], elsewhere.screen / "blocklist.parquet", 0
        )


def test_a_domain_the_mixture_lacks(layout: Layout) -> None:
    with pytest.raises(ConfigError, match="no rows of heavy"):
        Order.of_mixture(layout.mixture, 0, ["heavy"])  # type: ignore[list-item]


def test_tens_of_millions_need_no_state() -> None:
    """Restoring at row 19,000,000 touches one range a domain; locators are all distinct and in bounds."""
    none = np.empty(0, np.int64)
    ranges = tuple((Part(Path("unread"), 78_125, none),) for _ in range(256))
    order = Order([Shelf("speech", ranges)], np.zeros(1, np.int8), 20_000_000, 0, "digest")
    found = order.locate(np.arange(19_000_000, 19_050_000))
    assert len(np.unique(found.range_N)) <= 2
    assert len(np.unique(found.range_N * 78_125 + found.row_N)) == 50_000
    assert found.row_N.max() < 78_125
    again = order.locate(np.array([19_049_999, 19_000_000]))
    assert again.row_N.tolist() == [found.row_N[-1], found.row_N[0]]


def test_keys_stay_what_they_were() -> None:
    """The order of a version that is already trained must not move."""
    assert hex(key64(0, 1, 2)) == "0x1e35cdb4bf4f6f16"
    assert permute(np.arange(8), 8, 1).tolist() == [7, 6, 2, 0, 4, 5, 1, 3]
    assert module.pattern([8, 1, 1]).tolist() == [0, 0, 0, 1, 0, 0, 2, 0, 0, 0]
