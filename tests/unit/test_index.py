"""Index: rows, reasons, the same bytes from any number of workers, and nothing lost to a kill -9."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from aut.audio.fingerprint import fingerprint
from aut.contracts import INDEX_SCHEMA, Clip, Silent
from aut.datasets import _contents
from aut.datasets._contents import Contents
from aut.datasets._heard import STALE_S
from aut.errors import DataError, GateError, MissingInput
from aut.files import digest_tree, locked
from aut.sources import scan
from aut.stages import index as stage
from tests.unit.index_fixture import make, read, tones
from tests.waiting import wait_for

__all__ = ["make"]  # the fixture


def test_rows_are_sorted_and_complete(make):
    params, layout = make(tones(make.corpus, 9))
    report = stage.index(params, layout, Silent(), "mine")
    index, sound, quarantine = read(layout)
    assert index.columns == list(INDEX_SCHEMA)
    assert index["id"].to_list() == [f"mine/{n:03d}.wav" for n in range(9)] == sound["id"].to_list()
    assert index["duration_s"].to_list() == [0.5 + n / 160 for n in range(9)]
    assert set(index["text_origin"]) == {"template"}
    assert index["content_hash"].n_unique() == 9
    pcm, _ = soundfile.read(make.corpus / "004.wav", dtype="float32")
    assert sound["fingerprint"][4] == fingerprint(pcm).astype("<u4").tobytes()
    assert (report["clips"], len(quarantine)) == (9, 0)


def test_any_executor_and_block_size_of_parts_gives_the_same_bytes(make, monkeypatch):
    monkeypatch.setattr(stage, "BLOCK", 5)
    monkeypatch.setattr(stage, "PART", 10)
    monkeypatch.setattr(stage, "SAMPLE", 1)
    rows = tones(make.corpus, 33)
    digests = []
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as three, ThreadPoolExecutor(2) as threads:
        for n, executor in enumerate((None, three, threads)):
            params, layout = make(rows, root=f"clone{n}")
            make.forget()
            stage.index(params, layout, Silent(), "mine", executor)
            digests.append((digest_tree(layout.root / "data/index"), digest_tree(layout.root / "data/fingerprints")))
    assert len(set(digests)) == 1
    parts = sorted(layout.index("environment", "mine").glob("part-*"))
    assert len(parts) >= 3
    assert [i for p in parts for i in pl.read_parquet(p)["id"]] == [f"mine/{n:03d}.wav" for n in range(33)]


def test_a_clip_more_moves_only_the_splitters_beside_it(monkeypatch, tmp_path):
    monkeypatch.setattr(stage, "PART", 200)
    monkeypatch.setattr(stage, "SAMPLE", 4)
    rng = np.random.default_rng(0)
    ids = [f"mine/{n:012x}" for n in rng.integers(0, 1 << 48, 6000)]

    def split(listed):
        for n, start in enumerate(range(0, len(listed), 256)):
            pl.DataFrame({"id": listed[start : start + 256]}).write_parquet(tmp_path / f"{n:02d}")
        return stage._splitters(sorted(tmp_path.iterdir())[: n + 1])

    before = split(ids)
    sizes = np.diff(np.searchsorted(np.sort(ids), before))
    assert 20 <= len(before) <= 45
    assert 70 <= sizes.min() <= sizes.max() <= 330
    moved = [len({*before} ^ {*split([f"mine/{n:012x}", *ids])}) for n in rng.integers(0, 1 << 48, 20)]
    assert max(moved) <= 6
    assert sum(m == 0 for m in moved) >= 15
    assert split(ids[::-1]) == before


def test_each_bad_row_has_its_reason(make):
    rows = tones(make.corpus, 3)
    (make.corpus / "empty.wav").write_bytes(b"")
    (make.corpus / "text.wav").write_text("no audio at all\n" * 99)
    soundfile.write(make.corpus / "short.wav", np.zeros(100), 16_000)
    soundfile.write(make.corpus / "nan.wav", np.full(9000, np.nan), 16_000, subtype="FLOAT")
    soundfile.write(make.corpus / "long.wav", np.zeros(16_000 * 21), 16_000)
    (make.corpus / "cut.wav").write_bytes((make.corpus / "001.wav").read_bytes()[:5000])
    bad = {
        "empty.wav": "empty", "text.wav": "not_audio", "short.wav": "too_short", "nan.wav": "not_finite",
        "long.wav": "too_long", "cut.wav": "truncated", "gone.wav": "missing", "../../x.wav": "unsafe_path",
    }  # fmt: skip
    rows += [{"file": f, "label": "x"} for f in bad]
    rows += [{"file": "000.wav", "key": "a"}, {"file": "000.wav", "key": "b", "text": "x" * 41}]
    params, layout = make(rows, quarantine_max_fraction=0.8)
    report = stage.index(params, layout, Silent(), "mine")
    found = dict(read(layout)[2].select("id", "reason").iter_rows())
    assert found == {f"mine/{k}": r for k, r in (bad | {"a": "text_empty", "b": "text_too_long"}).items()}
    assert report["quarantined_missing"] == 1
    assert not read(layout)[2]["detail"].str.contains(str(make.corpus)).any()


def test_too_many_bad_rows_stop_the_run_and_keep_the_old_index(make):
    rows = tones(make.corpus, 4)
    params, layout = make(rows)
    stage.index(params, layout, Silent(), "mine")
    before = digest_tree(layout.root / "data/index")
    params, layout = make([*rows, {"file": "gone.wav", "label": "x"}], quarantine_max_fraction=0.1)
    with pytest.raises(
        GateError,
        match=r"1 of 5 clips .* \(1 missing\); index\.quarantine_max_fraction is 0\.1; .* sources\.mine\.quaran",
    ):
        stage.index(params, layout, Silent(), "mine")
    assert digest_tree(layout.root / "data/index") == before


@pytest.mark.parametrize(("of_all", "own"), [(0.1, 0.4), (0.9, 0.1)])
def test_a_source_has_a_limit_of_its_own(make, of_all, own):
    rows = [*tones(make.corpus, 2), {"file": "gone.wav", "label": "x"}]
    params, layout = make(rows, quarantine_max_fraction=of_all)
    params.sources["mine"] = params.sources["mine"].model_copy(update={"quarantine_max_fraction": own})
    if own > 1 / 3:
        assert stage.index(params, layout, Silent(), "mine")["quarantined"] == 1
        return
    with pytest.raises(GateError, match=r"sources\.mine\.quarantine_max_fraction is 0\.1; see"):
        stage.index(params, layout, Silent(), "mine")


def test_two_rows_of_one_id_are_both_named(make):
    tones(make.corpus, 2)
    params, layout = make([{"file": f"{n:03d}.wav", "key": "same", "label": "x"} for n in range(2)])
    with pytest.raises(DataError, match=r"mine/same: row 1, 000\.wav and row 2, 001\.wav"):
        stage.index(params, layout, Silent(), "mine")
    params, layout = make([{"file": f"{n:03d}.wav", "label": "x"} for n in (0, 1, 0)])
    with pytest.raises(DataError) as caught:
        stage.index(params, layout, Silent(), "mine")
    assert caught.value.what == (
        f"two clips of source mine ({make.corpus / 'rows.jsonl'}) have the id mine/000.wav: "
        "row 1, 000.wav and row 3, 000.wav"
    )
    assert "options.columns.key" in caught.value.remedy


def test_two_members_of_one_id_are_named_with_their_corpus(make, monkeypatch):
    params, layout = make([])
    params.sources["mine"] = params.sources["mine"].model_copy(update={"dataset": "tar", "options": {}})
    twins = [Clip(key="k", uri="a.tar", offset_b=offset, size_b=9) for offset in (512, 2048)]
    monkeypatch.setattr(stage, "list_clips", lambda *_: iter(twins))
    with pytest.raises(
        DataError, match=rf"mine \({make.corpus}\) have .*: a\.tar at byte 512 and a\.tar at byte 2,048"
    ):
        stage.index(params, layout, Silent(), "mine")


def test_a_probe_row_needs_a_label_and_no_text(make):
    tones(make.corpus, 2)
    rows = [{"file": "000.wav", "label": "dog"}, {"file": "001.wav", "text": "a dog"}]
    params, layout = make(rows, role="probe", quarantine_max_fraction=0.5)
    stage.index(params, layout, Silent(), "mine")
    index, _, quarantine = read(layout, "probe")
    assert index.select("label", "text").rows() == [("dog", None)]
    assert quarantine["reason"].to_list() == ["label_missing"]


def test_without_inventory_the_remedy_is_named(make):
    params, layout = make(tones(make.corpus, 1))
    layout.corpus("mine").unlink()
    with pytest.raises(MissingInput, match="aut sources scan mine"):
        stage.index(params, layout, Silent(), "mine")


def test_inventory_sees_a_changed_table_of_the_same_size(make):
    rows = tones(make.corpus, 2)
    params, layout = make(rows)
    before = scan(params, layout, "mine")["digest"]
    assert scan(params, layout, "mine")["digest"] == before
    params, layout = make([{**r, "label": "zz"} for r in rows])
    assert scan(params, layout, "mine")["digest"] != before


def test_other_audio_under_an_old_id_is_refused_until_it_is_accepted(make):
    params, layout = make(tones(make.corpus, 4))
    stage.index(params, layout, Silent(), "mine")
    before = digest_tree(layout.root / "data/index")
    kept = (make.corpus / "002.wav").read_bytes()
    soundfile.write(make.corpus / "002.wav", np.random.default_rng(0).uniform(-0.5, 0.5, (len(kept) - 44) // 2), 16_000)
    assert len((make.corpus / "002.wav").read_bytes()) == len(kept)  # the inventory cannot see it
    with pytest.raises(DataError, match=r"1 clips of mine hold other audio .*: mine/002\.wav \(was [0-9a-f]{8}, is"):
        stage.index(params, layout, Silent(), "mine")
    assert digest_tree(layout.root / "data/index") == before
    changed = (make.corpus / "002.wav").read_bytes()
    (make.corpus / "002.wav").write_bytes(kept)
    stage.index(params, layout, Silent(), "mine")  # put back: no block of the other sound is left
    assert digest_tree(layout.root / "data/index") == before
    (make.corpus / "002.wav").write_bytes(changed)
    assert scan(params, layout, "mine", accept_changed=True)["edition"] == 1
    stage.index(params, layout, Silent(), "mine")
    assert digest_tree(layout.root / "data/index") != before
    assert scan(params, layout, "mine")["edition"] == 1


def test_a_clip_that_went_and_came_back_is_still_known(make):
    rows = tones(make.corpus, 3)
    params, layout = make(rows)
    stage.index(params, layout, Silent(), "mine")
    params, layout = make(rows[:2])
    stage.index(params, layout, Silent(), "mine")
    soundfile.write(make.corpus / "002.wav", np.full(9000, 0.1), 16_000)
    params, layout = make(rows)
    with pytest.raises(DataError, match=r"mine/002\.wav"):
        stage.index(params, layout, Silent(), "mine")


def test_a_new_option_does_not_make_index_forget_what_an_id_held(make, capsys):
    rows = tones(make.corpus, 3)
    params, layout = make(rows)
    stage.index(params, layout, Silent(), "mine")
    soundfile.write(make.corpus / "002.wav", np.full(9000, 0.1), 16_000)
    params, layout = make(rows, min_s=0.06)
    params.sources["mine"] = params.sources["mine"].model_copy(
        update={"options": {"file": "rows.jsonl", "label_kind": "sound"}}
    )
    with pytest.raises(DataError, match=r"mine/002\.wav"):
        stage.index(params, layout, Silent(), "mine")
    assert "warning" not in capsys.readouterr().err


def test_only_what_decodes_decides_what_is_known(make, monkeypatch):
    params, layout = make(tones(make.corpus, 2))
    before = stage._work(params, layout, "mine")
    monkeypatch.setattr(stage, "_listener", lambda: ["another fingerprint"])
    after = stage._work(params, layout, "mine")
    assert after.contents == before.contents
    assert after.folder != before.folder


def test_a_memory_that_begins_anew_is_said(make, monkeypatch, capsys):
    params, layout = make(tones(make.corpus, 2))
    stage.index(params, layout, Silent(), "mine")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(stage, "_decoder", lambda: ["another one"])
    stage.index(params, layout, Silent(), "mine")
    assert "index: warning: the memory of mine starts anew" in capsys.readouterr().err
    stage.index(params, layout, Silent(), "mine")
    assert capsys.readouterr().err == ""


@given(st.lists(st.dictionaries(st.integers(0, 60), st.integers(0, 3), min_size=1), min_size=1, max_size=5))
def test_what_an_id_held_is_known_whatever_batches_it_is_read_in(editions):
    """Against plain dicts, with batches of three rows in parts of seven."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_contents, "ROWS", 3)
        contents, known = Contents(Path(name) / "mine.parquet", "mine"), dict[str, str]()
        for edition in editions:
            rows = [{"id": f"mine/{i:03d}", "content_hash": f"{sound:08d}"} for i, sound in sorted(edition.items())]
            parts = [Path(name) / f"part-{at:05d}.parquet" for at in range(0, len(rows), 7)]
            for at, part in zip(range(0, len(rows), 7), parts, strict=True):
                pl.DataFrame(rows[at : at + 7]).write_parquet(part)
            changed = [r["id"] for r in rows if known.get(r["id"], r["content_hash"]) != r["content_hash"]]
            if changed:
                with pytest.raises(DataError, match=rf"^{len(changed)} clips of mine .*: {changed[0]} \(was"):
                    contents.refuse_changed(parts)
            else:
                contents.refuse_changed(parts)
            contents.remember(parts)
            known |= {r["id"]: r["content_hash"] for r in rows}
            assert pl.read_parquet(contents.path).rows() == sorted(known.items())


def test_as_many_blocks_fly_as_a_cluster_has_cores_for():
    cluster = SimpleNamespace(_client=SimpleNamespace(ncores=lambda: {"tcp://a": 64, "tcp://b": 64}))
    with stage._runner(10**6, cluster) as (executor, ahead):
        assert (executor, ahead) == (cluster, 256)
    with ThreadPoolExecutor(3) as threads, stage._runner(10**6, threads) as (_, ahead):
        assert ahead == 6


def test_old_blocks_are_pruned_unless_fresh_or_held(make):
    params, layout = make(tones(make.corpus, 2))
    folder = layout.work / "index"
    names = {n: f"mine-{n * 16}" for n in "abcd"} | {"other": "mine-too-" + "e" * 16}
    for name in names.values():
        (folder / name / "blocks").mkdir(parents=True)
    old = time.time() - STALE_S - 60
    for n in ("a", "c", "other"):
        for path in (folder / names[n] / "blocks", folder / names[n]):
            os.utime(path, (old, old))
    with locked(folder / names["c"] / "lock", "indexing mine"):
        os.utime(folder / names["c"], (old, old))
        stage.index(params, layout, Silent(), "mine")
    left = {p.name for p in folder.iterdir()}
    assert {n for n in names if names[n] not in left} == {"a"}


def test_a_dask_cluster_of_two_workers_gives_the_same_bytes(make, monkeypatch):
    from distributed import Client, LocalCluster

    monkeypatch.setattr(stage, "BLOCK", 3)
    rows = tones(make.corpus, 20)
    params, layout = make(rows, root="here")
    stage.index(params, layout, Silent(), "mine")
    params, there = make(rows, root="there")
    make.forget()
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster.scheduler_address) as client,
    ):
        stage.index(params, there, Silent(), "mine", client.get_executor())
        done = client.run(lambda dask_worker: dask_worker.state.executed_count)
    assert len(done) == 2
    assert sum(done.values()) == 7
    assert digest_tree(there.root / "data") == digest_tree(layout.root / "data")


KILLED = """
import sys, time
from types import SimpleNamespace
from pathlib import Path
from aut.config import Index, Source
from aut.contracts import Silent
from aut.layout import Layout
from aut.stages import index as stage
stage.BLOCK = 4
source = Source(dataset="table", role="environment", domain="environment", path="mine", options={"file": "rows.jsonl"})
limits = dict(quarantine_max_fraction=0, min_s=0.05, max_s=20, max_text_tokens=40)
limits |= dict(tokenizer="utf8", captions_per_label=4)
read = stage.read_block
def slow(*args):
    time.sleep(0.3)
    return read(*args)
stage.read_block = slow
params = SimpleNamespace(sources={"mine": source}, index=Index(**limits))
stage.index(params, Layout(Path(sys.argv[1])), Silent(), "mine")
"""


def test_a_kill_loses_only_the_block_in_flight(make, monkeypatch):
    monkeypatch.setattr(stage, "BLOCK", 4)
    rows = tones(make.corpus, 24)
    params, layout = make(rows, root="clean")
    stage.index(params, layout, Silent(), "mine")
    clean = digest_tree(layout.root / "data")
    make.forget()
    params, layout = make(rows)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(layout.root)], env={**os.environ})
    wait_for(lambda: len(list(layout.work.glob("index/*/blocks/*.parquet"))) >= 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(list(layout.work.glob("index/*/blocks/*.parquet")))
    assert not layout.index("environment", "mine").exists()
    calls, read_block = [], stage.read_block
    monkeypatch.setattr(stage, "read_block", lambda *args: calls.append(1) or read_block(*args))
    stage.index(params, layout, Silent(), "mine")
    assert len(calls) == 6 - kept
    assert digest_tree(layout.root / "data") == clean
