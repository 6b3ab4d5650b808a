"""Index again: what a run keeps of what it heard, after a kill, a refusal, an edit."""

import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import polars as pl
import pytest
import soundfile

from aut.audio.decode import MP3_SLACK
from aut.contracts import Clip, Silent
from aut.datasets import _rows
from aut.datasets._heard import STALE_S, Heard
from aut.errors import DataError, GateError
from aut.files import digest_tree, locked
from aut.stages import index as stage
from tests.unit.index_fixture import make, read, tones
from tests.waiting import wait_for

__all__ = ["make"]  # the fixture


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(stage, "BLOCK", 4)


@pytest.fixture
def decoded(monkeypatch):
    """decoded(params, layout) -> how many clips one run decodes; GateError and DataError pass."""
    real, calls = _rows.decode, []
    monkeypatch.setattr(_rows, "decode", lambda *args: calls.append(1) or real(*args))

    def run(params, layout):
        calls.clear()
        try:
            stage.index(params, layout, Silent(), "mine")
        finally:
            run.count = len(calls)
        return run.count

    return run


def afresh(make, rows, **limits):
    """Digest of what an index holds that knows nothing."""
    work = os.environ["AUT_WORK"]
    make.forget()
    params, layout = make(rows, root="afresh", **limits)
    stage.index(params, layout, Silent(), "mine")
    os.environ["AUT_WORK"] = work
    return digest_tree(layout.root / "data")


def blocks(layout):
    return sorted(layout.work.glob("index/*/blocks/*.parquet"))


def test_what_a_killed_run_listed_does_not_hide_what_is_listed_now(make, monkeypatch):
    rows = tones(make.corpus, 10)
    params, layout = make(rows[1:])
    inventory = layout.corpus("mine").read_bytes()
    read_block, calls = stage.read_block, []

    def dies(*args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return read_block(*args)

    monkeypatch.setattr(stage, "read_block", dies)
    with pytest.raises(KeyboardInterrupt):
        stage.index(params, layout, Silent(), "mine")
    monkeypatch.setattr(stage, "read_block", read_block)
    params, layout = make(rows)  # one more, listed first
    layout.corpus("mine").write_bytes(inventory)  # which no scan has seen
    stage.index(params, layout, Silent(), "mine")
    assert read(layout)[0]["id"].to_list() == [f"mine/{n:03d}.wav" for n in range(10)]


def test_one_id_twice_is_refused_whatever_was_listed_before(make, monkeypatch):
    tones(make.corpus, 2)
    params, layout = make([{"file": f"{n:03d}.wav", "key": "same", "label": "x"} for n in range(2)])
    monkeypatch.setattr(stage, "_check_ids", lambda work: 2)
    with pytest.raises(DataError, match="two clips have the id mine/same"):
        stage.index(params, layout, Silent(), "mine")


def test_a_refused_index_reads_again_what_was_mended_and_nothing_else(make, decoded):
    rows = tones(make.corpus, 9)
    victim = make.corpus / "003.wav"
    good, status = victim.read_bytes(), victim.stat()
    victim.write_bytes(bytes(len(good)))
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    params, layout = make(rows)
    with pytest.raises(GateError, match="1 not_audio"):
        decoded(params, layout)
    assert decoded.count == 9
    with pytest.raises(GateError, match="1 not_audio"):
        decoded(params, layout)
    assert decoded.count == 1
    params, layout = make(rows, quarantine_max_fraction=0.2)
    assert decoded(params, layout) == 1
    victim.write_bytes(good)
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))  # nothing but its bytes says that it was mended
    params, layout = make(rows)
    assert decoded(params, layout) == 1
    assert digest_tree(layout.root / "data") == afresh(make, rows)


def test_only_new_and_changed_clips_are_decoded(make, decoded):
    rows = tones(make.corpus, 20)

    def again(rows, **limits):
        params, layout = make(rows, **limits)
        count = decoded(params, layout)
        assert digest_tree(layout.root / "data") == afresh(make, rows, **limits)
        assert sum(len(pl.read_parquet(b)) for b in blocks(layout)) == len(rows)  # nothing is kept twice
        return count

    assert again(rows) == 20
    assert again(rows) == 0
    rows[7] |= {"text": "a caption"}
    assert again(rows) == 0
    soundfile.write(make.corpus / "020.wav", np.full(9000, 0.1), 16_000)
    rows.insert(0, {"file": "020.wav", "label": "new"})
    assert again(rows) == 1
    assert again(rows, captions_per_label=3) == 0
    assert again(rows, quarantine_max_fraction=0.03) == 0
    assert again(rows[::-1], max_s=19.0) == 0
    os.utime(make.corpus / "004.wav")
    assert again(rows) == 1


def test_workers_are_told_what_is_known(make):
    rows = tones(make.corpus, 10)
    params, layout = make(rows)
    stage.index(params, layout, Silent(), "mine")
    rows = [row | {"text": f"caption {n}"} for n, row in enumerate(rows)]
    wanted = afresh(make, rows)
    for row in rows:  # whoever decoded now would hear of it
        path = make.corpus / row["file"]
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    params, layout = make(rows)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as workers:
        stage.index(params, layout, Silent(), "mine", workers)
    assert digest_tree(layout.root / "data") == wanted


def test_what_a_limit_shut_out_is_known_when_it_is_let_in(make, decoded):
    rows = tones(make.corpus, 8)
    assert decoded(*make(rows)) == 8
    assert decoded(*make(rows, min_s=0.51, quarantine_max_fraction=0.5)) == 0
    assert decoded(*make(rows)) == 0


def test_other_code_of_rows_reads_again_and_decodes_nothing(make, decoded, monkeypatch):
    rows = tones(make.corpus, 6)
    params, layout = make(rows)
    assert decoded(params, layout) == 6
    known = blocks(layout)
    monkeypatch.setattr(stage, "CODE", ("datasets/_rows.py",))
    assert decoded(params, layout) == 0
    assert len(known) == 2
    assert not {*known} & {*blocks(layout)}


@pytest.mark.parametrize("seed", range(4))
def test_any_run_of_edits_leaves_the_bytes_of_a_first_run(make, seed):
    rng = np.random.default_rng(seed)
    pool = [r | {"text": "a sound"} for r in tones(make.corpus, 24)]
    limits = {"quarantine_max_fraction": 0.9}
    for _ in range(4):
        rows = [pool[n] for n in rng.permutation(24)[: rng.integers(5, 24)]]
        for n in rng.integers(0, len(rows), 3):
            rows[n]["text"] = "a " * int(rng.integers(1, 30))  # some are too long, and come back
        os.utime(make.corpus / f"{rng.integers(24):03d}.wav")
        limits |= {"max_s": float(rng.uniform(0.52, 0.7)), "min_s": float(rng.uniform(0.1, 0.52))}
        params, layout = make(rows, **limits)
        stage.index(params, layout, Silent(), "mine")
        assert digest_tree(layout.root / "data") == afresh(make, rows, **limits)


def test_a_profile_that_reads_a_part_leaves_the_rest_known(make, decoded):
    rows = tones(make.corpus, 12)
    params, layout = make(rows)
    assert decoded(params, layout) == 12
    assert decoded(*make(rows[:3])) == 0
    assert decoded(*make(rows)) == 0
    old = time.time() - STALE_S - 60
    for block in blocks(layout):
        os.utime(block, (old, old))
    (blocks(layout)[0].parent / ".draft").touch()  # of a run that was killed
    assert decoded(*make(rows[:3])) == 0
    assert len(blocks(layout)) == 1
    assert not list(layout.work.glob("index/*/blocks/.*"))
    assert decoded(*make(rows)) == 9


def test_another_profile_that_reads_the_corpus_is_waited_for(make, decoded, capsys):
    params, layout = make(tones(make.corpus, 3))
    work = stage._work(params, layout, "mine")
    with ThreadPoolExecutor(1) as thread:
        with locked(work.folder / "lock", "indexing mine"):
            second = thread.submit(decoded, params, layout)
            said = []
            wait_for(lambda: said.append(capsys.readouterr().err) or "is waited for" in "".join(said))
            assert not second.done()
        assert second.result() == 3


def test_a_lower_limit_is_asked_of_the_file_where_what_is_known_cannot_say():
    heard = Heard(10.0, 16_000, "", b"", within_s=30.0)
    slack_s = MP3_SLACK / 16_000
    assert [heard.keeps(m) for m in (60.0, 30.0, 10.0 + slack_s, 10.0 + slack_s / 2, 9.0)] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_a_tar_that_grew_is_heard_again(make):
    params, layout = make(tones(make.corpus, 1))
    kept = stage._work(params, layout, "mine").blocks
    clip = Clip(key="k", uri="000.wav", offset_b=44, size_b=100)
    [before] = kept.sounds([clip])
    assert kept.sounds([clip]) == [before]
    with (make.corpus / "000.wav").open("ab") as tar:
        tar.write(b"more")
    assert stage._work(params, layout, "mine").blocks.sounds([clip]) != [before]
    others = [{"offset_b": 45}, {"size_b": 99}, {"start_s": 0.1}, {"length_s": 1.0}]
    assert len({before, *kept.sounds(replace(clip, **other) for other in others)}) == 5
    assert kept.sounds([replace(clip, uri="gone.wav")]) == [None]
