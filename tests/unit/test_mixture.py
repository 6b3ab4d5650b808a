"""Mixture: quotas to a row, blocked clips, digests and bytes that depend on nothing but the rows."""

from __future__ import annotations

import csv
import resource
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aut.config import Params
from aut.contracts import INDEX_SCHEMA, Silent
from aut.errors import ConfigError, DataError, MissingInput
from aut.files import digest_file, digest_tree, read_json
from aut.layout import Layout
from aut.mixing import parts, plan
from aut.mixing.keys import row_keys
from aut.order import Order
from aut.stages import mixture as stage
from aut.stages.index import _write_parquet as write_index_part
from benchmarks import _pool as pool

SIZES = {"speech": {"talk": 900, "read": 300}, "environment": {"rain": 150}, "music": {"band": 160}}


@pytest.fixture(scope="module")
def params() -> Params:
    return pool.params({d: list(s) for d, s in SIZES.items()}, rows=1000, window=100, parts=8)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    for domain, sources in SIZES.items():
        for seed, (name, rows) in enumerate(sources.items()):
            pool.source(layout, domain, name, rows, seed)
    pool.block(layout, [pool.clip_id("talk", r) for r in range(0, 60, 3)] + ["nowhere/1"])
    return layout


def excluded(layout: Layout, text: str) -> None:
    layout.exclude.write_text(text)


def changed(params: Params, **mixture: object) -> Params:
    return params.model_copy(update={"mixture": params.mixture.model_copy(update=mixture)})


def epoch(layout: Layout) -> list[dict[str, object]]:
    order = Order.of_mixture(layout.mixture, 0)
    return order.rows(np.arange(order.length))


def test_quotas_are_exact_and_blocked_clips_absent(
    params: Params, layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = stage.mixture(params, layout, Silent())
    rows = epoch(layout)
    assert len({r["id"] for r in rows}) == 1000
    assert [sum(r["domain"] == d for r in rows) for d in SIZES] == [800, 100, 100]
    blocked = {pool.clip_id("talk", r) for r in range(0, 60, 3)}
    assert not blocked & {r["id"] for r in rows}
    assert metrics["blocklist_unknown"] == 1
    assert "warning: 1 of 21 blocked ids are in no pool source" in capsys.readouterr().err
    tombstones = pq.read_table(layout.mixture / "tombstones.parquet")
    assert tombstones.num_rows == metrics["speech_blocked"] > 0
    for part, row, clip in zip(*(tombstones[c].to_pylist() for c in ("part", "row", "id")), strict=True):
        assert pq.read_table(layout.mixture / part)["id"][row].as_py() == clip


def test_clips_listed_by_hand_are_left_out_and_counted_apart(
    params: Params, layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stage.mixture(params, layout, Silent())["digest"]
    asked = [pool.clip_id("read", r) for r in range(0, 90, 3)]
    excluded(layout, "\ufeff# asked for on 2026-11-27\r\n\r\n" + "\r\n".join([*asked, asked[0], "read/typo"]) + "\r\n")
    capsys.readouterr()
    metrics = stage.mixture(params, layout, Silent())
    rows = epoch(layout)
    assert not {*asked} & {r["id"] for r in rows}
    assert [sum(r["domain"] == d for r in rows) for d in SIZES] == [800, 100, 100]
    assert metrics["digest"] != before
    assert (metrics["excluded"], metrics["exclude_unknown"], metrics["blocklist_unknown"]) == (30, 1, 1)
    stats = read_json(layout.mixture / "stats.json")
    assert stats["exclude"] == {"ids": 31, "in_pool": 30, "unused": 0, "unknown": 1}
    assert stats["blocklist"] == {"ids": 21, "in_pool": 20, "unused": 0, "unknown": 1}
    assert "warning: 1 of 31 ids of data/exclude.txt are in no pool source" in capsys.readouterr().err
    excluded(layout, "")
    assert stage.mixture(params, layout, Silent())["digest"] == before


def test_without_the_list_of_a_person_the_file_is_named(params: Params, layout: Layout) -> None:
    layout.exclude.unlink()
    with pytest.raises(MissingInput, match=r"data/exclude\.txt is missing"):
        stage.mixture(params, layout, Silent())
    layout.exclude.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"data/exclude\.txt: .*UTF-8"):
        stage.mixture(params, layout, Silent())


def test_clips_under_a_licence_are_left_out_in_each_way_the_index_is_cut(
    params: Params, layout: Layout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = changed(params, rows=500, licences_excluded=["CC BY-NC 4.0", "nobody's"])
    metrics = stage.mixture(left, layout, Silent())
    rows = epoch(layout)
    assert {r["licence"] for r in rows} == {"CC BY 4.0", "CC0 1.0"}
    assert [sum(r["domain"] == d for r in rows) for d in SIZES] == [400, 50, 50]
    pooled = [p for d in SIZES for p in (layout.root / "data/index" / d).rglob("part-*.parquet")]
    count = sum(pq.read_table(p)["licence"].to_pylist().count("CC BY-NC 4.0") for p in pooled)
    found = read_json(layout.mixture / "stats.json")["licences_excluded"]
    assert found == {"CC BY-NC 4.0": count, "nobody's": 0}
    assert metrics["licence_excluded"] == count > 400
    assert "warning: no clip has the licence 'nobody's'" in capsys.readouterr().err
    for path in pooled:
        write_index_part(pl.read_parquet(path), path)
    monkeypatch.setattr(plan, "READ_ROWS", 100)
    assert stage.mixture(left, layout, Silent())["digest"] == metrics["digest"]
    pq.write_table(pq.read_table(pooled[0]).drop_columns(["licence"]), pooled[0])
    with pytest.raises(DataError, match="has no column licence"):
        stage.mixture(left, layout, Silent())


def test_blocked_ids_of_a_source_without_a_quota_are_no_unknown_ones(
    params: Params, layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    pool.block(layout, [pool.clip_id("talk", 3), pool.clip_id("band", 5), "nowhere/1"])
    excluded(layout, pool.clip_id("band", 7))
    metrics = stage.mixture(changed(params, rows=100, quota={"speech": 0.9, "environment": 0.1}), layout, Silent())
    assert metrics["blocklist_unknown"] == 1
    told = "1 of 3 blocked ids are in no pool source; 1 more are of sources whose domain has no quota"
    assert capsys.readouterr().err.strip() == f"mixture: warning: {told}"
    stats = read_json(layout.mixture / "stats.json")
    assert stats["blocklist"] == {"ids": 3, "in_pool": 1, "unused": 1, "unknown": 1}
    assert stats["exclude"] == {"ids": 1, "in_pool": 0, "unused": 1, "unknown": 0}


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_a_quota_that_comes_to_no_row_is_an_error_that_names_the_least_rows(
    params: Params, layout: Layout, rows: int
) -> None:
    with pytest.raises(ConfigError, match=rf"mixture.rows = {rows} gives .* no row. give \d+ or more") as caught:
        stage.mixture(changed(params, rows=rows), layout, Silent())
    least = int(caught.value.remedy.split()[1])
    stage.mixture(changed(params, rows=least), layout, Silent())
    assert {r["domain"] for r in epoch(layout)} == set(SIZES)
    with pytest.raises(ConfigError, match="no row"):
        stage.mixture(changed(params, rows=least - 1), layout, Silent())


def test_a_source_that_params_no_longer_name_leaves_though_its_index_stays(params: Params, layout: Layout) -> None:
    stage.mixture(params, layout, Silent())
    assert (layout.mixture / "speech/read").is_dir()
    left = params.model_copy(update={"sources": {n: s for n, s in params.sources.items() if n != "read"}})
    stage.mixture(left, layout, Silent())
    assert layout.index("speech", "read").is_dir()
    assert not (layout.mixture / "speech/read").exists()
    assert {r["source"] for r in epoch(layout)} == {"talk", "rain", "band"}


def test_rows_are_the_index_rows(params: Params, layout: Layout) -> None:
    stage.mixture(params, layout, Silent())
    parts = [p for d in SIZES for p in sorted((layout.root / "data/index" / d).rglob("part-*.parquet"))]
    listed = {r["id"]: r for p in parts for r in pq.read_table(p).to_pylist()}
    rows = epoch(layout)
    assert list(rows[0]) == list(INDEX_SCHEMA)
    assert all(listed[r["id"]] == r for r in rows)


def test_a_short_domain_repeats_or_stops(params: Params, layout: Layout) -> None:
    short = changed(params, rows=2000)
    with pytest.raises(ConfigError, match=r"speech has 1180 clips, 1600 needed"):
        stage.mixture(changed(short, short="error"), layout, Silent())
    metrics = stage.mixture(short, layout, Silent())
    assert metrics["speech_repeats"] == pytest.approx(1600 / 1180, abs=1e-6)  # rounded to 6 places
    counts = np.unique([str(r["id"]) for r in epoch(layout) if r["domain"] == "speech"], return_counts=True)[1]
    assert (counts.min(), counts.max(), counts.size) == (1, 2, 1180)


@pytest.mark.parametrize("cut", [37, 150, 900])
def test_digest_does_not_depend_on_index_parts_or_threads(
    params: Params, layout: Layout, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    before = stage.mixture(params, layout, Silent())["digest"]
    for domain, sources in SIZES.items():
        for name in sources:
            folder = layout.index(domain, name)
            whole = pq.read_table(folder / "part-00000.parquet")
            for number, start in enumerate(range(0, whole.num_rows, cut)):
                pq.write_table(whole.slice(start, cut), folder / f"part-{number:05d}.parquet")
    monkeypatch.setattr(stage, "_threads", lambda: 7)
    for name in ("BLOCK_ROWS", "STRETCH_ROWS"):
        monkeypatch.setattr(parts, name, 128)
    assert stage.mixture(params, layout, Silent())["digest"] == before


def test_bytes_do_not_depend_on_threads(params: Params, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for threads in (1, 7):
        monkeypatch.setattr(stage, "_threads", lambda n=threads: n)
        stage.mixture(params, layout, Silent())
        seen.add(digest_tree(layout.mixture))
    assert len(seen) == 1


def test_any_changed_value_changes_the_digest(params: Params, layout: Layout) -> None:
    before = stage.mixture(params, layout, Silent())["digest"]
    pool.source(layout, "music", "band", 160, 0, recaption="scattered")
    assert stage.mixture(params, layout, Silent())["digest"] != before


def test_a_change_touches_few_parts(params: Params, layout: Layout) -> None:
    stage.mixture(params, layout, Silent())
    before = {p.relative_to(layout.mixture): digest_file(p) for p in layout.mixture.rglob("part-*.parquet")}
    pool.block(layout, [pool.clip_id("read", r) for r in range(10)])
    stage.mixture(params, layout, Silent())
    after = {p.relative_to(layout.mixture): digest_file(p) for p in layout.mixture.rglob("part-*.parquet")}
    moved = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
    assert len(moved) <= 4  # the parts at the threshold of both speech sources
    assert {p.parts[0] for p in moved} <= {"speech"}


def test_a_threshold_that_moves_leaves_the_bytes_of_whole_parts(
    params: Params, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With blocks of 100 rows of the index, so that a part has several row groups."""
    for name in ("BLOCK_ROWS", "STRETCH_ROWS"):
        monkeypatch.setattr(parts, name, 100)
    path = layout.index("speech", "talk") / "part-00000.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=100)

    def written(rows: int) -> dict[str, str]:
        stage.mixture(changed(params, rows=rows), layout, Silent())
        return {p.name: digest_file(p) for p in (layout.mixture / "speech/talk").iterdir()}

    more, fewer = written(1000), written(800)
    assert pq.ParquetFile(layout.mixture / "speech/talk/part-00000.parquet").num_row_groups > 5
    assert len(fewer) < len(more)
    assert sum(more[name] != digest for name, digest in fewer.items()) <= 1  # the part at the threshold


def test_the_index_stage_s_own_files_give_the_same_rows(params: Params, layout: Layout) -> None:
    """Polars writes other string types, and its own row groups and dictionaries."""
    before = stage.mixture(params, layout, Silent())["digest"]
    for domain, sources in SIZES.items():
        for name in sources:
            path = layout.index(domain, name) / "part-00000.parquet"
            write_index_part(pl.read_parquet(path), path)
    assert stage.mixture(params, layout, Silent())["digest"] == before


def test_a_content_hash_that_is_none_is_refused(params: Params, layout: Layout) -> None:
    path = layout.index("music", "band") / "part-00000.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("content_hash")
    pq.write_table(table.set_column(at, "content_hash", pa.array(["dog"] * table.num_rows)), path)
    with pytest.raises(DataError, match=r"band/part-00000\.parquet .*content_hash is not of 32 hex digits"):
        stage.mixture(params, layout, Silent())


def test_an_absent_value_is_not_an_empty_one(params: Params, layout: Layout) -> None:
    path = layout.index("music", "band") / "part-00000.parquet"
    table = pq.read_table(path)
    seen = set()
    for column in ("text", "label", "offset_b", "content_hash"):
        kind = table.schema.field(column).type
        at = table.schema.get_field_index(column)
        for value in (None, {"text": "", "label": "", "offset_b": 0, "content_hash": "0" * 32}[column]):
            pq.write_table(table.set_column(at, column, pa.array([value] * table.num_rows, kind)), path)
            seen.add(stage.mixture(params, layout, Silent())["digest"])
            found = [r[column] for r in epoch(layout) if r["source"] == "band"]
            assert found == [value] * 100
    assert len(seen) == 7  # label and offset_b were absent from the start: one mixture


def test_an_id_met_twice_names_id_and_sources(params: Params, layout: Layout) -> None:
    path = layout.index("music", "band") / "part-00000.parquet"
    table = pq.read_table(path)
    ids = table["id"].to_pylist()
    ids[5] = pool.clip_id("talk", 7)
    pq.write_table(table.set_column(0, "id", pa.array(ids)), path)
    with pytest.raises(DataError, match=r"id talk/000000007 is in source talk and again in band"):
        stage.mixture(params, layout, Silent())


def test_a_full_disk_leaves_the_old_mixture_whole(params: Params, layout: Layout) -> None:
    """The kernel refuses every file beyond 3,000 bytes, as a full disk does in the middle of a part."""
    stage.mixture(params, layout, Silent())
    before = digest_tree(layout.mixture)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            stage.mixture(changed(params, rows=500), layout, Silent())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert digest_tree(layout.mixture) == before
    assert [p.name for p in layout.mixture.parent.iterdir() if p.name.startswith(".mixture")] == []


def test_statistics_add_up(params: Params, layout: Layout) -> None:
    stage.mixture(params, layout, Silent())
    stats = read_json(layout.mixture / "stats.json")
    rows = epoch(layout)
    for kind in ("domain", "source", "licence", "text_origin", "duration"):
        assert sum(e["clips"] for e in stats[kind].values()) == 1000
        assert sum(e["share"] for e in stats[kind].values()) == pytest.approx(1.0, abs=1e-6)  # 9 places each
    hours = sum(float(str(r["duration_s"])) for r in rows) / 3600
    assert sum(e["hours"] for e in stats["domain"].values()) == pytest.approx(hours, rel=1e-9)
    with layout.plot("mixture").open() as f:
        shares = {r["part"]: float(r["share"]) for r in csv.DictReader(f)}
    assert shares["domain: speech"] == 0.8


def test_a_column_missing_from_the_index_is_named(params: Params, layout: Layout) -> None:
    path = layout.index("music", "band") / "part-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["licence"]), path)
    with pytest.raises(DataError, match=r"music/band/part-00000"):
        stage.mixture(params, layout, Silent())


@given(st.lists(st.text(max_size=40), max_size=60), st.integers(0, 5), st.integers(0, 2**31))
def test_a_key_depends_on_its_id_alone(ids: list[str], skip: int, seed: int) -> None:
    together = row_keys(pa.array(ids, pa.string()).slice(skip), seed)
    alone = [int(row_keys(pa.array([i], pa.string()), seed)[0]) for i in ids[skip:]]
    assert together.tolist() == alone
    distinct = set(ids[skip:])
    assert len(set(alone)) == len(distinct)


def test_keys_are_uniform_and_change_with_the_seed() -> None:
    ids = pa.array([pool.clip_id("talk", r) for r in range(64_000)])
    keys = row_keys(ids, 0)
    for shift in (0, 29, 58):  # low, middle and top bits
        counts = np.bincount(((keys >> np.uint64(shift)) & np.uint64(63)).astype(np.int64), minlength=64)
        chi2 = ((counts - 1000) ** 2 / 1000).sum()
        assert chi2 < 121  # 63 degrees of freedom, p = 1e-5
    assert abs(np.corrcoef(keys.astype(float), row_keys(ids, 1).astype(float))[0, 1]) < 0.02  # 5 deviations


def test_keys_stay_what_they_were() -> None:
    keys = row_keys(pa.array(["", "a", "talk/000000001", "talk/000000001.flac"]), 0)
    assert [hex(int(k)) for k in keys] == [
        "0x6246a58789053b93",
        "0x6b85f285f8d548d9",
        "0xd4cd60fa6d391fef",
        "0x19b8572f50b2110d",
    ]
