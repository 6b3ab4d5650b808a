"""The probe's solvers against their references, its divisions, and what it must never do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from aut.config import Adam, Params, Protocol, read_params
from aut.contracts import Silent
from aut.errors import ConfigError, DataError, MissingInput
from aut.files import digest_tree, read_json
from aut.layout import Layout
from aut.probes import adam, knn
from aut.probes.fitting import choose_c, linear_adam, logistic
from aut.probes.logistic import Features, path
from aut.probes.splits import divide, grouped_folds
from aut.stages.probe import excluded, probe, relabelled, score

GROUPED = Protocol(
    folds=5, test_fold=None, repeats=1, stratified_fraction=None, labels=None, exclude=None, solver="logistic"
)
SET = "toy_sounds_probe"
CHECKOUT = Path(__file__).parents[2]


def params_with(**probe_section: Any) -> Params:
    """The checkout's params with a probe section that is small and quick."""
    params = read_params(CHECKOUT / "params.yaml")
    quick: dict[str, Any] = {"c_grid": [0.1, 1.0], "sets": {SET: ["grouped"]}, "knn": 5, "seeds": [0, 1]}
    return params.model_copy(update={"probe": params.probe.model_copy(update=quick | probe_section)})


def blobs(clips: int = 300, width: int = 12, classes: int = 4, apart: float = 1.0, seed: int = 0) -> Any:
    """Gaussian classes, three clips a recording: x [N, D], y [N], group [N]."""
    rng = np.random.default_rng(seed)
    group = np.arange(clips) // 3
    y = (group % classes).astype(np.int64)
    x = apart * rng.normal(size=(classes, width))[y] + rng.normal(size=(clips, width))
    return (x * rng.lognormal(0, 1, width) + 3).astype(np.float32), y, group


def embedded(
    layout: Layout, x: NDArray[np.float32], y: NDArray[np.int64], group: NDArray[np.int64], **clips: Any
) -> None:
    from safetensors.numpy import save_file

    folder = layout.embeddings("base", SET)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"valid": x, "padded": x * 0.5}, folder / "embeddings.safetensors")
    columns = {
        "id": [f"{SET}/{i:04d}" for i in range(len(y))],
        "source_id": [f"r{g}" for g in group],
        "label": [f"class{k}" for k in y],
        "split": [""] * len(y),
        "domain": ["environment"] * len(y),
    }
    pl.DataFrame(columns | clips).write_parquet(folder / "clips.parquet")


@pytest.mark.parametrize(("clips", "width"), [(300, 200), (1200, 24)], ids=["by clips", "by features"])
@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_logistic_equals_scikit_learn(clips: int, width: int, c: float) -> None:
    """Both ways to hold the unknowns, at equal C and tolerance: weights, and what they predict of unseen clips."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, y, _ = blobs(2 * clips, width, 8, 0.4)
    scaler = StandardScaler().fit(x[:clips].astype(float))
    z = scaler.transform(x)
    reference = LogisticRegression(C=c, tol=1e-6, max_iter=5000).fit(z[:clips], y[:clips])
    (found,) = path(x[:clips], y[:clips], 8, [c], 1e-6)
    assert found.gradient <= 1e-6
    # A mean gradient of 1e-6 leaves weights free along flat directions, more so the weaker the penalty.
    assert np.abs(found.weight - reference.coef_).max() < 0.02 * np.abs(reference.coef_).max() + 1e-3
    assert np.mean(reference.predict(z) == found.predict(x)) > 0.995


def test_both_ways_to_hold_the_unknowns_agree_on_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, _ = blobs(200, 90, 5, 0.5)
    by_clips = list(path(x, y, 5, [0.01, 1.0], 1e-7))
    monkeypatch.setattr("aut.probes.logistic.Gram", Features)
    for one, other in zip(by_clips, path(x, y, 5, [0.01, 1.0], 1e-7), strict=True):
        np.testing.assert_allclose(one.weight, other.weight, atol=1e-3)  # float32, both within 1e-7 of the optimum
        assert (one.predict(x) == other.predict(x)).all()


def test_a_class_that_the_part_has_not_is_never_predicted() -> None:
    x, y, _ = blobs(120, 10, 4, 1.0)
    (found,) = path(x[y != 2], y[y != 2], 4, [1.0], 1e-5)
    assert np.isneginf(found.bias[2])
    assert set(found.predict(x).tolist()) == {0, 1, 3}


def test_features_that_do_not_vary_and_tolerances_out_of_reach_end() -> None:
    x, y, _ = blobs(90, 6, 3, 1.0)
    x[:, 2] = 7.0
    (found,) = path(x, y, 3, [1.0], 1e-12)
    assert found.gradient < 1e-6
    assert np.abs(found.weight[:, 2]).max() < 1e-6
    (one,) = path(x[y == 1], y[y == 1], 3, [1.0], 1e-5)
    assert set(one.predict(x).tolist()) == {1}


def test_adam_equals_a_plain_torch_loop() -> None:
    import torch

    x, y, group = blobs(300, 16, 4, 0.5)
    x = (x - x.mean(0)) / x.std(0)
    train = np.flatnonzero(group % 5 != 0)
    weight, bias = adam.fit(x, y, [train, train], [3, 4], 4, 1e-3, 32, 12)
    for place, seed in enumerate((3, 4)):
        layer = torch.nn.Linear(16, 4)
        w, b = adam.initial(seed, 16, 4)
        layer.weight.data, layer.bias.data = torch.tensor(w.T.copy()), torch.tensor(b)
        optimiser = torch.optim.Adam(layer.parameters(), lr=1e-3)
        for epoch in range(12):
            for rows in np.array_split(o := adam.order(seed, epoch, len(train)), range(32, len(o), 32)):
                optimiser.zero_grad()
                picked = train[rows]
                torch.nn.functional.cross_entropy(layer(torch.tensor(x[picked])), torch.tensor(y[picked])).backward()
                optimiser.step()
        np.testing.assert_allclose(weight[place], layer.weight.detach().numpy(), atol=1e-4)  # float32, 96 steps
        reference = layer(torch.tensor(x)).argmax(1).numpy()
        assert np.mean((x @ weight[place].T + bias[place]).argmax(1) == reference) > 0.99


def test_knn_equals_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    x, y, _ = blobs(400, 8, 3, 0.5)
    train, test = np.arange(300), np.arange(300, 400)
    reference = KNeighborsClassifier(1, metric="cosine").fit(x[train], y[train]).predict(x[test])
    assert (knn.predict(x, y, train, test, 3, 1) == reference).all()


def test_folds_keep_recordings_whole_and_classes_even() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(200, size=1000)
    y = group % 7
    fold = grouped_folds(y, group, 5, [0])
    assert all(len(set(fold[group == g])) == 1 for g in set(group))
    for k in range(7):
        counts = np.bincount(fold[y == k], minlength=5)
        assert counts.max() - counts.min() <= np.bincount(group[y == k]).max()
    assert (fold == grouped_folds(y, group, 5, [0])).all()


@pytest.mark.parametrize("solver", ["logistic", "adam"])
def test_nothing_is_selected_on_test(solver: str) -> None:
    """Other labels in a test part change no prediction for it, so no weight and no chosen C."""
    x, y, group = blobs(240, 10, 4, 0.4)
    settings = params_with(c_grid=[0.01, 1.0, 100.0]).probe
    divisions = divide(GROUPED, np.full(240, ""), y, group, list("abcd"), "blobs")
    one = divisions[0]
    wrong = y.copy()
    wrong[one.test] = (wrong[one.test] + 1) % 4
    results = [
        logistic(x, labels, group, [one], 4, settings, False)[0]
        if solver == "logistic"
        else linear_adam(x, labels, [one], 4, settings, False, False)[0]
        for labels in (y, wrong)
    ]
    for before, after in zip(*results, strict=True):
        assert before.c == after.c
        assert (before.predicted == after.predicted).all()


def test_c_is_chosen_where_it_matters() -> None:
    """Many noise features and few clips: strong regularisation must win."""
    x, y, group = blobs(150, 100, 3, 0.15)
    settings = params_with(c_grid=[0.001, 100.0]).probe
    assert choose_c(x, y, group, [np.arange(150)], 3, settings) == [0.001]


def test_shuffled_labels_score_at_chance(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    x, y, _ = blobs(600, 10, 4, 2.0)
    y = np.random.default_rng(1).permutation(y)
    embedded(layout, x, y, np.arange(600))
    report = probe(params_with(), layout, Silent(), "base", SET)
    assert abs(float(report["accuracy"]) - 0.25) < 0.07  # 4 standard deviations of 600 clips


def test_stage_writes_what_it_promises_and_the_same_twice(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    embedded(layout, *blobs(apart=2.0))
    params = params_with(sets={SET: ["grouped", "paper_gtzan"]}, adam=Adam(lr=0.01, batch=32, epochs=5))
    report = probe(params, layout, Silent(), "base", SET)
    out = layout.probe("base", SET)
    first = digest_tree(out)
    probe(params, layout, Silent(), "base", SET)
    assert digest_tree(out) == first
    assert float(report["accuracy"]) > 0.8
    frame = pl.read_parquet(out / "predictions.parquet")
    assert set(frame.select("protocol", "pooling", "variant").unique().iter_rows()) == {
        (p, q, v) for p in ("grouped", "paper_gtzan") for q in ("valid", "padded") for v in ("linear", "knn")
    }
    one = frame.filter(protocol="grouped", pooling="valid", variant="linear")
    assert one["id"].n_unique() == one.height == 300
    assert read_json(out / "scores.json")["scores"][0]["accuracy"] == score(one)["accuracy"] == report["accuracy"]
    assert set(frame.filter(protocol="paper_gtzan", variant="linear")["seed"]) == {0, 1}


class Heard(Silent):
    def __init__(self) -> None:
        self.metric: dict[str, float] = {}

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        self.metric |= values


def test_the_largest_gradient_that_a_fit_left_is_told(tmp_path: Path) -> None:
    layout, heard = Layout(tmp_path), {tolerance: Heard() for tolerance in (1e-2, 1e-5, 1e-12)}
    embedded(layout, *blobs())
    for tolerance, track in heard.items():
        probe(params_with(tolerance=tolerance, inner_tolerance=tolerance), layout, track, "base", SET)
    loose, tight, beyond = (track.metric["largest_gradient"] for track in heard.values())
    assert 1e-5 < loose <= 1e-2
    assert 0.0 < tight <= 1e-5
    assert 1e-12 < beyond <= 1e-5  # float32 goes no further, and that is not hidden
    none = Heard()
    probe(params_with(sets={SET: ["paper_gtzan"]}, adam=Adam(lr=0.01, batch=32, epochs=1)), layout, none, "base", SET)
    assert none.metric  # Adam has no gradient to stop at
    assert "largest_gradient" not in none.metric


def test_head_serves_alone(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    layout = Layout(tmp_path)
    x, y, group = blobs(apart=2.0)
    embedded(layout, x, y, group)
    probe(params_with(), layout, Silent(), "base", SET)
    head = load_file(layout.probe("base", SET) / "head.safetensors")
    labels = read_json(layout.probe("base", SET) / "head.json")["labels"]
    logits = (x - head["mean"]) / head["scale"] @ head["weight"].T + head["bias"]
    assert np.mean([labels[k] == f"class{t}" for k, t in zip(logits.argmax(1), y, strict=True)]) > 0.9


@pytest.mark.parametrize("poolings", [["valid", "padded"], ["padded", "valid"]])
def test_the_first_pooling_of_params_decides(tmp_path: Path, poolings: list[str]) -> None:
    layout = Layout(tmp_path)
    embedded(layout, *blobs(apart=2.0))
    params = params_with()
    params = params.model_copy(update={"embed": params.embed.model_copy(update={"poolings": poolings})})
    probe(params, layout, Silent(), "base", SET)
    assert read_json(layout.probe("base", SET) / "head.json")["pooling"] == poolings[0]
    found = [s["pooling"] for s in read_json(layout.probe("base", SET) / "scores.json")["scores"]]
    assert list(dict.fromkeys(found)) == poolings


def test_score_leaves_clips_out() -> None:
    frame = pl.DataFrame(
        {"repeat": [0] * 4, "seed": [0] * 4, "fold": ["f"] * 4, "id": list("abcd"), "source_id": list("wxyz")}
        | {"label": list("1111"), "predicted": list("1122")}
    )
    assert score(frame)["accuracy"] == 0.5
    assert score(frame, {"c", "d"})["accuracy"] == 1.0
    with pytest.raises(DataError, match="every test clip"):
        score(frame, set("abcd"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"label": ["lone", *["a", "b"] * 149, "a"]}, DataError, "class 'lone' \\(1 clip in all\\) is tested"),
        ({"label": [None, *["a", "b"] * 149, "a"]}, DataError, "0000 has no label"),
        ({"label": ["a"] * 300}, DataError, "1 class"),
    ],
)
def test_bad_labels(tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str) -> None:
    layout = Layout(tmp_path)
    embedded(layout, *blobs(), **change)
    with pytest.raises(error, match=message):
        probe(params_with(), layout, Silent(), "base", SET)


@pytest.mark.parametrize("empty", [None, ""])
def test_a_mapping_leaves_classes_out_but_no_clip_without_a_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: str | None
) -> None:
    from aut.datasets import toy

    monkeypatch.setattr(toy, "labels", lambda scheme: {"a": "x", "b": "y"}, raising=False)
    layout = Layout(tmp_path)
    params = params_with(protocols={"grouped": GROUPED.model_copy(update={"labels": "two"})})
    embedded(layout, *blobs(), label=["a", "b", "c"] * 100)
    assert probe(params, layout, Silent(), "base", SET)["clips"] == 200
    embedded(layout, *blobs(), label=["a", "b", empty] * 100)
    with pytest.raises(DataError, match=r"clip toy_sounds_probe/0002 has no label \(100 of 300 clips\)"):
        probe(params, layout, Silent(), "base", SET)


@pytest.mark.parametrize(("fifth", "told"), [("a", "no clip"), ("c", "no test clip")])
def test_a_class_of_the_mapping_that_is_not_tested_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fifth: str, told: str
) -> None:
    from aut.datasets import toy

    monkeypatch.setattr(toy, "labels", lambda scheme: {"a": "x", "b": "y", "c": "z"}, raising=False)
    layout = Layout(tmp_path)
    split = ["train", "train", "test", "test", "train"] * 60
    embedded(layout, *blobs(), label=["a", "b", "a", "b", fifth] * 60, split=split)
    params = params_with(protocols={"p": Protocol(folds="split", labels="three", solver="logistic")}, sets={SET: ["p"]})
    with pytest.raises(DataError, match=f"{SET}: the mapping 'three' has the class 'z', which {told} has"):
        probe(params, layout, Silent(), "base", SET)


@pytest.mark.parametrize(
    ("odd", "told"), [("tset", "have the `split` 'tset'"), ("", "have no `split`"), (None, "have no `split`")]
)
def test_a_clip_in_none_of_the_lists_is_named(tmp_path: Path, odd: str | None, told: str) -> None:
    layout = Layout(tmp_path)
    x, y, group = blobs()
    parts = ["train", "validation", "test", "train", "test"]
    params = params_with(sets={SET: ["split"]})
    embedded(layout, x, y, group, split=parts * 60)
    assert probe(params, layout, Silent(), "base", SET)["clips"] == 120
    embedded(layout, x, y, group, split=[*parts * 59, "train", "test", odd, odd, odd])
    with pytest.raises(DataError, match=f"3 of 300 clips {told}"):
        probe(params, layout, Silent(), "base", SET)


def test_bad_vectors_and_missing_ones(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with pytest.raises(MissingInput, match=f"aut embed base {SET}"):
        probe(params_with(), layout, Silent(), "base", SET)
    x, y, group = blobs()
    x[7, 3] = np.nan
    embedded(layout, x, y, group)
    with pytest.raises(DataError, match="0007 is not finite"):
        probe(params_with(), layout, Silent(), "base", SET)


@pytest.mark.parametrize("name", ["official", "split"])
def test_a_set_without_folds(tmp_path: Path, name: str) -> None:
    layout = Layout(tmp_path)
    embedded(layout, *blobs())
    with pytest.raises(ConfigError, match="`split` holds ''"):
        probe(params_with(sets={SET: [name]}), layout, Silent(), "base", SET)


def test_a_training_part_without_a_class(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    x, y, group = blobs()
    embedded(layout, x, y, group, split=["fold1" if k == 0 else f"fold{2 + i % 2}" for i, k in enumerate(y)])
    with pytest.raises(DataError, match=r"fold1: class 'class0' .* not in the training part"):
        probe(params_with(sets={SET: ["official"]}), layout, Silent(), "base", SET)


def test_exclusion_by_file(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    embedded(layout, *blobs())
    (tmp_path / "out.txt").write_text(f"{SET}/0000  # faulty\n0001\n")
    protocols = {"grouped": GROUPED.model_copy(update={"exclude": "out.txt"})}
    report = probe(params_with(protocols=protocols), layout, Silent(), "base", SET)
    assert report["clips"] == 298


def test_labels_and_exclusions_come_from_the_dataset(tmp_path: Path) -> None:
    """A label that the mapping does not know is left out, as are the keys of a list; both are the dataset's own."""
    assert relabelled(["yes", "bed", "?", None], "superb12", "speech_commands") == ["yes", "_unknown_", None, None]
    out = excluded("sturm", "gtzan", "gtzan", Layout(tmp_path))
    assert len(out) == 70
    assert "gtzan/jazz.00033" in out
    with pytest.raises(ConfigError, match=r"dataset 'esc50' has no labels\('superb12'\)"):
        relabelled(["dog"], "superb12", "esc50")
