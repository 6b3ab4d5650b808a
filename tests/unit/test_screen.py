"""The screen: each gate alone, planted copies of every kind, nothing else, and a report that is safe to open."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile as sf
import soxr
from numpy.typing import NDArray

from aut.audio import match
from aut.audio.fingerprint import HOP_S, fingerprint, trits
from aut.audio.keys import Words
from aut.audio.match import FEW, Index, Match
from aut.contracts import Silent
from aut.errors import DataError, GateError, MissingInput
from aut.files import digest_tree
from aut.layout import Layout
from aut.screening.gates import known_ids
from aut.stages.screen import screen
from aut.units import RATE_HZ
from tests.unit.screen_fixture import params_of, source, write_source

Pcm = NDArray[np.float32]
THRESHOLD, MIN_MATCH_S = 0.3, 2.0  # conf/common.yaml has 0.25: a pair of these plain chirps scores 0.27


def sound(seed: int, seconds: float = 5.0) -> Pcm:
    """Bursts of noise, chirps and vowel-like tones with silences: as varied as a recording."""
    rng = np.random.default_rng(seed)
    x = np.zeros(int(seconds * RATE_HZ))
    at = 0
    while at < len(x):
        n = min(int(rng.uniform(0.1, 0.5) * RATE_HZ), len(x) - at)
        t = np.arange(n) / RATE_HZ
        f0, glide = rng.uniform(100, 900), rng.uniform(-800, 800)
        kind = rng.integers(3)
        if kind == 0:
            piece = np.convolve(rng.standard_normal(n), np.hanning(rng.integers(3, 24)), "same") * 0.2
        elif kind == 1:
            piece = np.sin(2 * np.pi * (f0 * t + glide * t**2))
        else:
            piece = sum(rng.uniform() / h * np.sin(2 * np.pi * h * f0 * t) for h in range(1, 7))
        x[at : at + n] = piece * np.hanning(n) * rng.uniform(0.2, 1.0)
        at += n + int(rng.uniform(0, 0.1) * RATE_HZ)
    return (0.3 * x / np.abs(x).max()).astype(np.float32)


def through(fmt: str, level: float, **options: str) -> Callable[[Pcm], Pcm]:
    def change(x: Pcm) -> Pcm:
        stream = io.BytesIO()
        sf.write(stream, x, RATE_HZ, format=fmt, compression_level=level, **options)
        stream.seek(0)
        return np.asarray(sf.read(stream, dtype="float32")[0])

    return change


CHANGES: dict[str, Callable[[Pcm], Pcm]] = {
    "identical": lambda x: x,
    "louder": lambda x: x * np.float32(4),
    "softer": lambda x: np.round(x / 4 * 32767).astype(np.float32) / 32767,
    "mp3": through("MP3", 0.6, subtype="MPEG_LAYER_III", bitrate_mode="CONSTANT"),
    "ogg": through("OGG", 0.1, subtype="VORBIS"),
    "8 kHz": lambda x: soxr.resample(soxr.resample(x, RATE_HZ, 8000), 8000, RATE_HZ),
    "half": lambda x: x[len(x) // 4 + 137 : 3 * len(x) // 4],
    "noise": lambda x: (
        x + np.random.default_rng(0).standard_normal(len(x)).astype(np.float32) * np.float32(x.std() / 10)
    ),
    "faster": lambda x: soxr.resample(x, RATE_HZ * 1.02, RATE_HZ),
    "slower": lambda x: soxr.resample(x, RATE_HZ * 0.98, RATE_HZ),
}


@pytest.fixture(scope="module")
def index() -> Index:
    return Index([fingerprint(sound(seed)) for seed in range(40)])


def matches(index: Index, words: Words, threshold: float) -> list[Match]:
    (found,) = index.search([words], threshold, MIN_MATCH_S)
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_tied_to_its_original_and_to_nothing_else(index: Index, change: str) -> None:
    for seed in range(0, 40, 4):
        found = matches(index, fingerprint(CHANGES[change](sound(seed))), THRESHOLD)
        assert [m.probe for m in found] == [seed]


@pytest.mark.parametrize("change", CHANGES)
def test_an_index_of_few_keys_finds_nine_copies_in_ten_and_nothing_else(change: str) -> None:
    index = Index([fingerprint(sound(seed)) for seed in range(40)], FEW)
    found = [
        [m.probe for m in matches(index, fingerprint(CHANGES[change](sound(seed))), THRESHOLD)]
        for seed in range(0, 40, 4)
    ]
    assert all(probes in ([seed], []) for probes, seed in zip(found, range(0, 40, 4), strict=True))
    assert sum(map(bool, found)) >= 9


def test_distinct_sounds_do_not_match(index: Index) -> None:
    assert not any(matches(index, fingerprint(sound(seed)), THRESHOLD) for seed in range(100, 160))


def test_the_offset_says_where_the_copy_starts(index: Index) -> None:
    found = matches(index, fingerprint(sound(7)[24_000:64_000]), THRESHOLD)
    assert found[0].offset_s == pytest.approx(1.5, abs=HOP_S)


@pytest.mark.parametrize(("count", "seconds"), [(20, 5.0), (40, 2.0)])
def test_a_long_clip_is_tied_to_every_clip_that_it_holds(count: int, seconds: float) -> None:
    clips = [sound(seed, seconds) for seed in range(count)]
    index = Index([fingerprint(x) for x in clips + [sound(seed, seconds) for seed in range(200, 240)]])
    found = matches(index, fingerprint(np.concatenate(clips)), THRESHOLD)
    assert {m.probe for m in found} == set(range(count))


@pytest.mark.parametrize(("frames", "words"), [(match.FRAMES, match.WORDS), (1, 1), (200, 300)])
def test_clips_looked_up_together_find_what_each_finds_alone(
    index: Index, frames: int, words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [fingerprint(CHANGES[change](sound(seed))) for seed in range(0, 40, 8) for change in CHANGES]
    alone += [np.zeros(0, np.uint32), np.zeros(200, np.uint32), alone[0][:5], np.concatenate(alone[:40])]
    alone += [fingerprint(sound(seed)) for seed in range(100, 110)]
    expected = [matches(index, clip, THRESHOLD) for clip in alone]
    assert sum(map(bool, expected)) == 51
    monkeypatch.setattr(match, "FRAMES", frames)
    monkeypatch.setattr(match, "WORDS", words)
    assert index.search(alone, THRESHOLD, MIN_MATCH_S) == expected
    assert index.search([], THRESHOLD, MIN_MATCH_S) == []
    assert Index([]).search(alone[:3], 0.0, MIN_MATCH_S) == [[], [], []]


def test_digital_silence_and_padding_match_nothing() -> None:
    silence = np.zeros(5 * RATE_HZ, np.float32)
    assert not fingerprint(silence).any()
    barks = [np.concatenate([sound(seed, 1.0), silence[RATE_HZ:]]) for seed in range(20)]
    index = Index([fingerprint(x) for x in [silence, *barks]])
    assert matches(index, fingerprint(silence), 0.0) == []
    found = [{m.probe for m in matches(index, fingerprint(x), THRESHOLD)} for x in barks]
    assert found == [{n + 1} for n in range(20)]


def test_stationary_noise_matches_only_itself() -> None:
    rain = [np.random.default_rng(n).standard_normal(5 * RATE_HZ).astype(np.float32) * 0.1 for n in range(20)]
    index = Index([fingerprint(x) for x in rain])
    found = [{m.probe for m in matches(index, fingerprint(x), THRESHOLD)} for x in rain]
    assert found == [{n} for n in range(20)]


@pytest.mark.parametrize("length", [0, 1, 4096, 4096 + 3 * 512])
def test_short_clips_give_no_or_one_word(length: int) -> None:
    words = fingerprint(sound(3)[:length])
    assert words.dtype == np.uint32
    assert len(words) == (length >= 4096 + 3 * 512)
    assert trits(words).shape == (len(words), 16)
    assert matches(Index([words]), words, 0.0) == []


def test_trits_carry_sign_only_where_trusted() -> None:
    words = np.array([0x0003_0001, 0x0000_FFFF, 0x8000_8000], np.uint32)
    assert trits(words)[:, [0, 1, 15]].tolist() == [[1, -1, 0], [0, 0, 0], [0, 0, 1]]


# --- the stage ---------------------------------------------------------------------------------------------------

SOURCES = {
    "pool_a": source("environment", "environment"),
    "pool_b": source("speech", "speech"),
    "esc": source("probe", "environment"),
    "words": source("probe", "speech"),
}


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setenv("AUT_WORK", str(tmp_path / "work"))
    made = Layout(tmp_path / "copy")
    probes = {f"p{n}": sound(n) for n in range(6)}
    write_source(made, "esc", SOURCES["esc"], probes, freesound_id={"p1": "4711"}, youtube_id={"p2": "a-b_c1d2E3c"})
    write_source(made, "words", SOURCES["words"], {f"w{n}": sound(50 + n) for n in range(4)})
    pool = {f"c{n:02d}": sound(100 + n) for n in range(20)}
    pool |= {"noisy": CHANGES["noise"](probes["p0"]), "same": probes["p3"]}
    write_source(
        made, "pool_a", SOURCES["pool_a"], pool, parts=3,
        freesound_id={"c00": "4711", "c01": "4712"}, uri={"c02": "x/a-b_c1d2E3c_30000_40000.wav"},
    )  # fmt: skip
    write_source(made, "pool_b", SOURCES["pool_b"], {f"s{n}": sound(200 + n) for n in range(10)} | {"mp3": sound(52)})
    return made


def flagged(layout: Layout) -> set[tuple[str, str, str]]:
    return set(pl.read_parquet(layout.screen / "flagged.parquet").select("id", "gate", "probe_id").iter_rows())


BY_GATE = {
    "id": {("pool_a/c00", "id", "esc/p1"), ("pool_a/c02", "id", "esc/p2")},
    "content": {("pool_a/same", "content", "esc/p3"), ("pool_b/mp3", "content", "words/w2")},
    "acoustic": {
        ("pool_a/noisy", "acoustic", "esc/p0"),
        ("pool_a/same", "acoustic", "esc/p3"),
        ("pool_b/mp3", "acoustic", "words/w2"),
    },
}


def settings(**screen: object) -> dict[str, object]:
    return {"acoustic_threshold": THRESHOLD, "min_match_s": MIN_MATCH_S, "max_flagged_fraction": 0.5} | screen


@pytest.mark.parametrize("gate", BY_GATE)
def test_each_gate_alone(layout: Layout, gate: str) -> None:
    metrics = screen(params_of(SOURCES, **settings(gates=[gate])), layout, Silent())
    assert flagged(layout) == BY_GATE[gate]
    assert metrics[f"{gate}_pairs"] == len(BY_GATE[gate])


def test_all_gates_and_what_they_write(layout: Layout) -> None:
    metrics = screen(params_of(SOURCES, **settings()), layout, Silent())
    assert flagged(layout) == set.union(*BY_GATE.values())
    blocked = dict(pl.read_parquet(layout.screen / "blocklist.parquet").iter_rows())
    assert blocked == {
        "pool_a/c00": "id: esc/p1",
        "pool_a/c02": "id: esc/p2",
        "pool_a/noisy": "acoustic: esc/p0",
        "pool_a/same": "content: esc/p3",
        "pool_b/mp3": "content: words/w2",
    }
    report = json.loads((layout.screen / "report.json").read_text())
    assert report["verdict"] == "passed"
    assert report["domains"]["environment"] == {"pool": 22, "flagged": 4, "fraction": round(4 / 22, 6)}
    assert report["probe_sets"]["esc"]["flagged"] == 4
    assert (metrics["pool_clips"], metrics["probe_clips"], metrics["blocked"]) == (33, 10, 5)


def test_the_same_bytes_again_and_with_workers(layout: Layout) -> None:
    params = params_of(SOURCES, **settings())
    screen(params, layout, Silent())
    first = digest_tree(layout.screen)
    with ThreadPoolExecutor(3) as executor:
        screen(params, layout, Silent(), executor)
    assert digest_tree(layout.screen) == first


def test_a_source_that_params_leave_out_is_not_read(layout: Layout) -> None:
    named = {n: s for n, s in SOURCES.items() if n not in ("pool_a", "words")}
    assert screen(params_of(named, **settings()), layout, Silent())["blocked"] == 0


def test_over_the_limit_stops_and_leaves_the_report(layout: Layout) -> None:
    with pytest.raises(GateError, match=r"18\.2 % of the environment pool .* limit is 10 %") as refused:
        screen(params_of(SOURCES, **settings(max_flagged_fraction=0.1)), layout, Silent())
    path = Path(str(refused.value).split("see ")[1].split(". ")[0])
    assert "over the limit" in path.read_text()
    assert path.is_relative_to(layout.work)
    assert not layout.screen.exists()


def test_a_name_from_outside_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUT_WORK", str(tmp_path / "work"))
    layout, evil = Layout(tmp_path / "copy"), "<script>alert(1)</script>\"'"
    write_source(layout, "esc", SOURCES["esc"], {evil: sound(1)}, uri={evil: f"{evil}.wav"})
    write_source(layout, "pool_a", SOURCES["pool_a"], {"x": sound(1)}, uri={"x": "javascript:alert(1)"})
    named = {n: SOURCES[n] for n in ("esc", "pool_a")}
    screen(params_of(named, **settings(max_flagged_fraction=1.0)), layout, Silent())
    page = (layout.screen / "report.html").read_text()
    assert evil not in page
    assert "<script>alert" not in page
    assert "href='javascript" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert str(tmp_path) not in page


def test_both_links_play_from_where_the_clips_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUT_WORK", str(tmp_path / "work"))
    layout = Layout(tmp_path / "copy")
    inner = np.concatenate([sound(300, 7.0), sound(1), sound(301, 3.0)])
    write_source(layout, "esc", SOURCES["esc"], {"short": sound(1), "long": sound(2, 12.0)})
    write_source(layout, "pool_a", SOURCES["pool_a"], {"holds": inner, "within": sound(2, 12.0)[64_000:144_000]})
    named = {n: SOURCES[n] for n in ("esc", "pool_a")}
    screen(params_of(named, **settings(gates=["acoustic"], max_flagged_fraction=1.0)), layout, Silent())
    page = (layout.screen / "report.html").read_text()
    starts = dict(re.findall(r"audio/(\w+)\.wav(?:#t=([\d.]+))?' data-path", page))
    meet = {"holds": 7.0, "short": 0.0, "within": 0.0, "long": 4.0}
    assert {name: float(at or 0) for name, at in starts.items()} == pytest.approx(meet, abs=2 * HOP_S)


def test_missing_and_mismatched_inputs_say_what_to_run(layout: Layout) -> None:
    with pytest.raises(MissingInput, match="aut index absent"):
        screen(params_of(SOURCES | {"absent": source("music", "music")}, **settings()), layout, Silent())
    part = layout.fingerprints("environment", "pool_a") / "part-00001.parquet"
    pl.read_parquet(part).reverse().write_parquet(part)
    with pytest.raises(DataError, match="aut index pool_a"):
        screen(params_of(SOURCES, **settings()), layout, Silent())


@pytest.mark.parametrize(
    ("uri", "known"),
    [
        ("audio/1-100032-A-0.wav", "freesound:100032"),
        ("esc50/2-100032-B.ogg", "freesound:100032"),
        ("fold1/101415-3-0-2.wav", "freesound:101415"),
        ("Y--aE2O5G5WE.wav", "youtube:--aE2O5G5WE"),
        ("-0Gj8-vB1q4_30000_40000.flac", "youtube:-0Gj8-vB1q4"),
        ("[-0Gj8-vB1q4]-[30-40].wav", "youtube:-0Gj8-vB1q4"),
        ("audio/dQw4w9WgXcQ.wav", "youtube:dQw4w9WgXcQ"),
        ("dQw4w9WgXcQ_30.wav", "youtube:dQw4w9WgXcQ"),
        ("YdQw4w9WgXcQ_30.000_40.000.wav", "youtube:dQw4w9WgXcQ"),
        ("A title [dQw4w9WgXcQ].opus", "youtube:dQw4w9WgXcQ"),
        ("dQw4w9WgXcZ.wav", None),  # no id ends in Z
        ("hello_world_12.wav", None),
        ("kitchen-fan_3.wav", None),
        ("kitchen-sea_3_40.wav", None),
        ("Yesterday123.wav", None),
        ("Yesterday100.wav", None),
        ("Recording10.wav", None),
        ("MyBigRocks4.wav", None),
        ("A title [instruments].wav", None),
        ("4800_100034_000000.flac", None),  # MLS: speaker_book_utterance
        ("train/0001.wav", None),
        ("103-1240-0000.flac", None),  # LibriSpeech: speaker-chapter-utterance
        ("instruments.wav", None),
    ],
)
def test_known_ids_in_names(uri: str, known: str | None) -> None:
    row = {"id": "s/k", "source": "s", "uri": uri, "freesound_id": None, "youtube_id": None}
    table = pl.DataFrame([row], schema_overrides={"freesound_id": pl.String, "youtube_id": pl.String})
    assert known_ids(table)["known"].to_list() == ([known] if known else [])
