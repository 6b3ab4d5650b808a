"""Compare and its report, on predictions made up so that the right answer is known."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from aut import stats
from aut.contracts import Silent
from aut.errors import DataError, MissingInput
from aut.files import digest_tree, read_json, write_json
from aut.layout import Layout
from aut.report.figures import curves
from aut.report.page import document, with_lineage, write_report
from aut.report.predictions import load_views
from aut.report.sweep import Variant, compare_variants, write_sweep
from aut.stages.compare import build_evidence, compare
from tests.unit.compare_fixture import CLIPS, ENCODERS, LABELS, SETS, params_of, predictions, transcribed, write_tree

SOUNDS, WORDS = SETS


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return write_tree(tmp_path_factory.mktemp("compare"), [(SOUNDS, f"{SOUNDS}/{i:03d}") for i in range(10)])


@pytest.fixture(scope="module")
def evidence(tree: Layout) -> dict[str, Any]:
    return build_evidence(params_of(), tree)


def rows(evidence: dict[str, Any], kind: str, **match: Any) -> list[dict[str, Any]]:
    return [r for r in evidence[kind] if all(r.get(k) == v for k, v in match.items())]


def correct(name: str, encoder: str) -> np.ndarray[Any, Any]:
    frame = predictions(name, encoder).filter(protocol="grouped", pooling="valid", variant="linear").sort("id")
    return (frame["label"] == frame["predicted"]).to_numpy().astype(float)


def test_an_arm_is_the_mean_of_its_seeds(evidence: dict[str, Any]) -> None:
    """The arm's accuracy and difference rest on both seeds; each seed's own difference stands beside it."""
    zero, one, base = (correct(SOUNDS, e) for e in ("adapted-0", "adapted-1", "base"))
    (row,) = rows(evidence, "differences", set=SOUNDS, b="base")
    assert row["diff"] == pytest.approx(100 * ((zero + one) / 2 - base).mean(), abs=0.01)
    assert row["seed_diffs"] == pytest.approx([100 * (x - base).mean() for x in (zero, one)], abs=0.01)
    assert (row["clips"], row["recordings"], row["seeds"]) == (CLIPS, CLIPS // 3, 2)
    (table,) = rows(evidence, "table", set=SOUNDS, encoder="adapted", primary=True)
    assert table["seeds"].keys() == {"adapted-0", "adapted-1"}
    assert row["low"] < row["diff"] < row["high"]


def test_each_seed_is_paired_with_the_rival_s_own_seed(evidence: dict[str, Any]) -> None:
    (row,) = rows(evidence, "differences", set=WORDS, b="control")
    own = [100 * (correct(WORDS, f"adapted-{s}") - correct(WORDS, f"control-{s}")).mean() for s in (0, 1)]
    assert row["seed_diffs"] == pytest.approx(own, abs=0.01)


def test_the_family_is_the_sets_and_rivals_and_nothing_else(evidence: dict[str, Any]) -> None:
    """Holm over 2 sets x {base, control}; baselines and ablations do not enter."""
    found = evidence["differences"]
    assert [(r["set"], r["b"]) for r in found] == [(s, b) for s in SETS for b in ("base", "control")]
    assert [r["p_holm"] for r in found] == pytest.approx(stats.holm([r["p"] for r in found]).tolist())
    assert {r["b"] for r in evidence["beats"]} == {"random"}
    assert all("p_holm" not in r for r in evidence["beats"] + evidence["ablations"])


@pytest.mark.parametrize(("dataset", "power"), [("table", 2), ("toy", 1)], ids=["two corpora", "one corpus twice"])
def test_a_domain_with_two_sets_weighs_them_alike(tree: Layout, dataset: str, power: int) -> None:
    params = params_of()
    other = {"domain": "environment", "dataset": dataset}
    sources = params.sources | {WORDS: params.sources[WORDS].model_copy(update=other)}
    found = build_evidence(params.model_copy(update={"sources": sources}), tree)
    (row,) = rows(found, "domains", b="base")
    pair = rows(found, "differences", b="base")
    assert row["sets"] == list(SETS)
    assert row["diff"] == pytest.approx(sum(r["diff"] for r in pair) / 2, abs=0.01)
    half = 1.959964 * (pair[0]["se"] ** power + pair[1]["se"] ** power) ** (1 / power) / 2
    assert row["high"] - row["diff"] == pytest.approx(half, abs=0.02)  # rounded to hundredths twice
    assert "By domain" in page_of(found)


def test_ablations_are_the_other_views_and_the_set_without_flagged_clips(evidence: dict[str, Any]) -> None:
    found = {(r["set"], r["ablation"]) for r in evidence["ablations"]}
    assert found == {
        (SOUNDS, "grouped, valid pooling, knn"),
        (SOUNDS, "paper_gtzan, valid pooling, linear"),
        (SOUNDS, "without 10 flagged clips"),
        (WORDS, "grouped, valid pooling, knn"),
    }
    (row,) = rows(evidence, "ablations", ablation="without 10 flagged clips", b="base")
    kept = slice(10, None)
    arm = (correct(SOUNDS, "adapted-0") + correct(SOUNDS, "adapted-1")) / 2
    assert row["clips"] == CLIPS - 10
    assert row["diff"] == pytest.approx(100 * (arm - correct(SOUNDS, "base"))[kept].mean(), abs=0.01)


def test_repeated_divisions_carry_the_corrected_test(evidence: dict[str, Any]) -> None:
    (row,) = rows(evidence, "ablations", set=SOUNDS, protocol="paper_gtzan", b="base")
    by_repeat = []
    for encoder in ("adapted-0", "adapted-1", "base"):
        frame = predictions(SOUNDS, encoder).filter(protocol="paper_gtzan")
        right = frame.with_columns(right=(pl.col("label") == pl.col("predicted")).cast(pl.Float64))
        by_repeat.append(right.group_by("repeat").agg(pl.col("right").mean()).sort("repeat")["right"].to_numpy())
    diff = (by_repeat[0] + by_repeat[1]) / 2 - by_repeat[2]
    t, p = stats.corrected_resampled_t(diff, 0.25)  # 20 % tested
    assert row["resampled"]["t"] == pytest.approx(t, abs=1e-3)
    assert row["resampled"]["p"] == pytest.approx(p)
    assert row["resampled"]["divisions"] == 3
    assert all(r["resampled"] is None for r in evidence["differences"])


def test_layers_are_curves_and_no_rows(evidence: dict[str, Any]) -> None:
    found = rows(evidence, "layers", set=WORDS, encoder="base")
    assert [r["layer"] for r in found] == [0, 1]
    assert not [r for k in ("table", "ablations") for r in evidence[k] if "layer" in r["pooling"]]
    assert page_of(evidence).count("<polyline") == len(SETS) * len({"base", "random", "adapted", "control"})


def test_a_wholly_flagged_set_says_that_nothing_is_left(tmp_path: Path) -> None:
    layout = write_tree(tmp_path, [(WORDS, f"{WORDS}/{i:03d}") for i in range(CLIPS)])
    found = build_evidence(params_of(), layout)
    (row,) = [r for r in found["ablations"] if "flagged" in r["ablation"]]
    assert (row["set"], row["ablation"]) == (WORDS, "every clip of this set is flagged: nothing is left to compare")
    assert "nothing is left to compare" in page_of(found)


def test_other_clips_are_refused_by_name(tmp_path: Path) -> None:
    layout = write_tree(tmp_path)
    short = predictions(WORDS, "control-1", CLIPS - 1)
    short.write_parquet(layout.probe("control-1", WORDS) / "predictions.parquet")
    with pytest.raises(DataError, match=rf"{WORDS}: base was tested on 60 clips and control-1 on 59; {WORDS}/059"):
        build_evidence(params_of(), layout)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: f.with_columns(label=pl.lit("other")), "has the label"),
        (lambda f: f.with_columns(source_id=pl.col("id")), "has the source_id"),
        (lambda f: f.filter(pl.col("protocol") != "grouped"), "control-1 has no grouped, valid, linear"),
    ],
)
def test_clips_that_are_the_same_by_name_only_are_refused(tmp_path: Path, damage: Any, told: str) -> None:
    layout = write_tree(tmp_path)
    path = layout.probe("control-1", SOUNDS) / "predictions.parquet"
    damage(pl.read_parquet(path)).write_parquet(path)
    with pytest.raises(DataError, match=told):
        build_evidence(params_of(), layout)


def test_other_sounds_under_the_same_ids_are_refused(tmp_path: Path) -> None:
    layout = write_tree(tmp_path)
    write_json(layout.embeddings("random", WORDS) / "digests.json", {"encoder": "e", "clips": "c2"})
    with pytest.raises(DataError, match=f"{WORDS}: base and random were embedded from other sounds"):
        build_evidence(params_of(), layout)


def test_the_test_over_divisions_leaves_flagged_clips_out_too(tmp_path: Path) -> None:
    view = next(v for v in load_views(params_of(), write_tree(tmp_path), SOUNDS) if v.protocol == "paper_gtzan")
    right = {i for i, share in zip(view.ids.tolist(), view.correct["base"], strict=True) if share == 1.0}
    kept = view.without(right)
    assert max(kept.divisions("base").values()) < max(view.divisions("base").values())
    assert kept.predictions["base"]["id"].n_unique() == len(kept.ids) == CLIPS - len(right)


def test_one_recording_with_most_errors_is_told(evidence: dict[str, Any], tmp_path: Path) -> None:
    assert "Too narrow for" in page_of(evidence)  # twelve recordings
    row = {**evidence["speech_kept"][0], "recordings": 200}
    assert "Too narrow" not in page_of(evidence | {"speech_kept": [row | {"largest": 3.0}]})
    assert "Too narrow for adapted" in page_of(evidence | {"speech_kept": [row | {"arm": "adapted", "largest": 40.0}]})
    layout = write_tree(tmp_path)
    path = layout.encoder("adapted-0") / "speech.json"
    clips = transcribed("adapted-0")
    write_json(path, {"clips": [{**clips[0], "tuned": 500}, *clips[1:]]})
    found = build_evidence(params_of(), layout)["speech_kept"]
    assert max(r["largest"] for r in found) > 80


def test_the_page_says_how_to_make_it_again(tree: Layout, evidence: dict[str, Any]) -> None:
    assert "with the overrides of its params.yaml" in page_of(evidence)  # no conf beside these predictions
    again = {"overrides": ["finetune.seeds=[0,1,2]"], "audio": True}
    assert "aut run --profile demo --audio FOLDER &#x27;finetune.seeds=[0,1,2]&#x27;" in page_of(
        evidence | {"again": again}
    )
    whole = with_lineage(document("t", ["body"]), {"aut.revision": "abc"})
    assert whole.index("body") < whole.index("abc") < whole.index("</main>")


def test_what_is_missing_names_the_verb_that_makes_it(tmp_path: Path) -> None:
    layout = write_tree(tmp_path)
    (layout.probe("base", WORDS) / "predictions.parquet").unlink()
    with pytest.raises(MissingInput, match=f"aut probe base {WORDS}"):
        build_evidence(params_of(), layout)


def test_classes_and_changed_clips(evidence: dict[str, Any]) -> None:
    found = evidence["classes"][SOUNDS]
    base, arm = correct(SOUNDS, "base"), (correct(SOUNDS, "adapted-0") + correct(SOUNDS, "adapted-1")) / 2
    assert found["accuracy"][LABELS[1]]["base"] == pytest.approx(100 * base[1::3].mean(), abs=0.01)
    assert sum(c["clips"] for c in found["accuracy"].values()) == CLIPS
    sure = {f"{SOUNDS}/{i:03d}" for i in np.flatnonzero(arm - base == 1.0)}
    assert set(found["gained"][: len(sure)]) == sure
    assert all(c["label"] != c["predicted"] for c in found["confusions"])


def test_views_of_a_set_begin_with_the_one_that_decides(tree: Layout) -> None:
    views = list(load_views(params_of(), tree, SOUNDS))
    assert [v.primary for v in views] == [True] + [False] * (len(views) - 1)
    assert views[0].described == "grouped, valid pooling, linear"


def test_the_stage_writes_the_same_bytes_again(tree: Layout) -> None:
    first = compare(params_of(), tree, Silent())
    digest = digest_tree(tree.evidence)
    assert compare(params_of(), tree, Silent()) == first
    assert digest_tree(tree.evidence) == digest
    assert first["gates_failed"] == len([v for v in read_json(tree.evidence / "evidence.json")["verdicts"] if
                                         v["decides"] and not v["passed"]])  # fmt: skip
    plotted = tree.plot("compare").read_text().splitlines()
    assert plotted[0] == "encoder,accuracy,low,high"
    assert len(plotted) == 1 + len(SETS) * 4


class Page(HTMLParser):
    """Elements, addresses and nesting of a page."""

    VOID = frozenset({"meta", "circle", "rect", "line", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another element"


def page_of(evidence: dict[str, Any]) -> str:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_report(evidence, Path(folder))
        return (Path(folder) / "report.html").read_text()


def test_the_page_is_whole_and_asks_nothing_of_the_network(evidence: dict[str, Any]) -> None:
    text = page_of(evidence)
    page = Page()
    page.feed(text)
    assert not page.open
    assert "script" not in page.tags
    assert not page.addresses
    assert not re.search(r"url\(|@import|https?://", text)
    assert page.tags.count("table") >= 8
    assert text.index("class='lead'") < text.index("<svg") < text.index("<table")


def test_names_from_data_are_text_and_never_elements(evidence: dict[str, Any]) -> None:
    text = page_of(evidence)
    assert LABELS[0] not in text
    assert "rain &amp; &lt;b&gt;wind&lt;/b&gt;" in text


def test_the_plot_alone_is_xml(tree: Layout) -> None:
    from xml.etree import ElementTree

    compare(params_of(), tree, Silent())
    drawing = ElementTree.parse(tree.evidence / "plots/differences.svg")
    assert drawing.getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_curves_of_one_layer_and_of_equal_values_are_drawn() -> None:
    assert "NaN" not in curves({"a": {3: 50.0}, "b": {3: 50.0}}, "one")
    assert curves({"a": {0: 10.0, 1: 90.0}}, "two").count("<polyline") == 1


def test_every_encoder_is_in_the_table(evidence: dict[str, Any]) -> None:
    arms = {e.rpartition("-")[0] or e for e in ENCODERS}
    assert {r["encoder"] for r in rows(evidence, "table", primary=True)} == arms


def test_the_published_table_goes_through_the_same_statistics(capsys: pytest.CaptureFixture[str]) -> None:
    """ESC-50's gain is significant, GTZAN's and Speech Commands' are not, corrected or not."""
    from aut.cli.summary import print_published

    print_published(as_json=True)
    found = {r["set"]: r for r in json.loads(capsys.readouterr().out)}
    assert {n: r["significant"] for n, r in found.items()} == {"esc50": True, "gtzan": False, "speech_commands": False}
    assert [round(found[n]["p"], 2) for n in ("gtzan", "speech_commands")] == [0.18, 0.39]
    assert found["esc50"]["p"] == pytest.approx(7e-12, rel=0.1)
    print_published(as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert any("gtzan" in line and "+5.00" in line and line.rstrip(" │").endswith("no") for line in lines)


def test_speech_kept_is_the_mean_of_the_seeds_against_their_base(evidence: dict[str, Any]) -> None:
    row = next(r for r in evidence["speech_kept"] if r["arm"] == "adapted")
    base = sum(c["base"] for c in transcribed("adapted-0")) / 240
    tuned = sum(c["tuned"] for e in ("adapted-0", "adapted-1") for c in transcribed(e)) / 480
    assert (row["words"], row["clips"], row["recordings"]) == (240, 24, 12)
    assert (row["base"], row["wer"]) == pytest.approx((100 * base, 100 * tuned), abs=0.01)
    assert row["diff"] == pytest.approx(100 * (tuned - base), abs=0.01)
    assert row["diff_low"] < row["diff"] < row["diff_high"]
    assert "Word error rate" in page_of(evidence)


def test_seeds_that_transcribed_other_clips_are_refused(tmp_path: Path) -> None:
    layout = write_tree(tmp_path)
    write_json(layout.encoder("adapted-1") / "speech.json", {"clips": transcribed("adapted-1")[1:]})
    with pytest.raises(DataError, match="the seeds of adapted transcribed different clips"):
        build_evidence(params_of(), layout)


def test_a_sweep_compares_variants_clip_by_clip(tree: Layout, tmp_path: Path) -> None:
    """The second variant is the first with a better arm: paired on the same clips, Holm over both sets."""
    other = write_tree(tmp_path / "other")
    for name in SETS:  # both seeds right wherever seed 0 was
        for encoder in ("adapted-0", "adapted-1"):
            frame = predictions(name, "adapted-0")
            frame.write_parquet(other.probe(encoder, name) / "predictions.parquet")
    found = compare_variants([Variant("profile", params_of(), tree), Variant("<more>", params_of(), other)])
    zero, one = correct(WORDS, "adapted-0"), correct(WORDS, "adapted-1")
    (row,) = [r for r in found["differences"] if r["set"] == WORDS]
    assert row["diff"] == pytest.approx(100 * (zero - (zero + one) / 2).mean(), abs=0.01)
    assert [r["p_holm"] for r in found["differences"]] == pytest.approx(
        stats.holm([r["p"] for r in found["differences"]]).tolist()
    )
    write_sweep(found, tmp_path / "out")
    text = (tmp_path / "out/report.html").read_text()
    assert "&lt;more&gt;" in text
    assert "<more>" not in text
    assert read_json(tmp_path / "out/sweep.json") == found


def test_a_sweep_over_what_is_tested_is_refused(tree: Layout, tmp_path: Path) -> None:
    other = write_tree(tmp_path)
    for encoder in ENCODERS:
        predictions(SOUNDS, encoder, CLIPS - 3).write_parquet(other.probe(encoder, SOUNDS) / "predictions.parquet")
    with pytest.raises(DataError, match=r"'profile' was tested on 60 clips .* and 'fewer' on 57"):
        compare_variants([Variant("profile", params_of(), tree), Variant("fewer", params_of(), other)])
