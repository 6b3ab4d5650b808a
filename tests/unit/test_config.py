"""Params: composed from conf/, strict, and every wrong key named at once."""

import re
from pathlib import Path

import pytest
import yaml

from aut.config import compose, overrides_of, parse_params, read_params
from aut.errors import ConfigError

ROOT = Path(__file__).parents[2]
PROFILES = sorted(p.stem for p in (ROOT / "conf/profile").glob("*.yaml"))


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_composes(profile, tmp_path):
    params = compose(profile, [], ROOT / "conf", tmp_path / "params.yaml")
    assert params.profile == profile
    assert params.champion_encoder in params.export.encoders


def test_the_committed_params_are_the_demo_profile(tmp_path):
    compose("demo", [], ROOT / "conf", tmp_path / "params.yaml")
    assert (tmp_path / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes(), "run `aut params`"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["finetune.seeds=[0,1]", "compare.against=[base]"],
        ["mixture.quota={speech: 0.5, environment: 0.3, music: 0.2}"],
        ["+sources.toy_words.quarantine_max_fraction=0.3"],
    ],
)
def test_the_overrides_of_params_compose_them_again(overrides, tmp_path):
    params = compose("demo", overrides, ROOT / "conf", tmp_path / "params.yaml")
    found = overrides_of(params, ROOT / "conf")
    assert bool(found) == bool(overrides)
    assert compose("demo", found, ROOT / "conf", tmp_path / "again.yaml") == params


def test_seeds_multiply_the_encoders(tmp_path):
    params = compose("demo", ["finetune.seeds=[3,5]"], ROOT / "conf", tmp_path / "params.yaml")
    assert {"adapted-3", "adapted-5", "control-3", "control-5"} < set(params.embed.encoders)
    assert params.champion_encoder == "adapted-3"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("mixture.quota.speech=0.5", "mixture: quota sums to 0.9, must sum to 1"),
        ("+mixture.rowz=3", "mixture.rowz: unknown key"),
        ("mixture.rows=many", "mixture.rows"),
        ("mixture.quota={speech: 0.9999999999, music: 0.0000000001}", "music = 1e-10 is not a whole number of rows"),
        ("mixture.licences_excluded=[CC0, CC0]", "mixture.licences_excluded: 'CC0' is given twice"),
        ("mixture.window=7", "not a whole number of rows in a window of 7"),
        ("finetune.schedule.epochs=2", "schedule: steps = 900 and epochs = 2.0: give one, and null for the other"),
        ("+sources.toy_words.quarantine_max_fraction=2", "quarantine_max_fraction: Input should be less than or equal"),
        ("sources.toy_words.path=../secret", "must lie below AUT_DATA"),
        ("sources.toy_words.role=music", "must be 'probe' or equal the domain"),
        ("+probe.sets.nowhere=[official]", "probe.sets.nowhere is no source with role 'probe'"),
        ("probe.c_grid=[]", "probe.c_grid: List should have at least 1 item"),
        ("probe.seeds=[]", "probe.seeds: List should have at least 1 item"),
        ("probe.seeds=[0,1,0]", "probe.seeds: '0' is given twice"),
        ("probe.sets.toy_words_probe=[]", "probe.sets.toy_words_probe: List should have at least 1 item"),
        ("probe.inner_folds=1", "probe.inner_folds: Input should be greater than or equal to 2"),
        ("~probe.adam.batch", "probe.adam.batch: Field required"),
        ("probe.adam.batch=0", "probe.adam.batch: Input should be greater than 0"),
        ("probe.adam.epochs=0", "probe.adam.epochs: Input should be greater than 0"),
        ("probe.protocols.grouped.folds=1", "probe.protocols.grouped.folds: 1 leaves nothing to train on"),
        ("+probe.protocols.grouped.repeats=0", "probe.protocols.grouped.repeats: Input should be greater than 0"),
        ("+probe.protocols.official.repeats=3", "probe.protocols.official: repeats = 3 with folds: official"),
        ("+probe.protocols.split.repeats=3", "probe.protocols.split: repeats = 3 with folds: split"),
        ("+probe.protocols.paper_gtzan.repeats=3", "probe.protocols.paper_gtzan: repeats = 3 with stratified_fraction"),
        (
            "probe.protocols.paper_gtzan.stratified_fraction=0",
            "paper_gtzan.stratified_fraction: Input should be",
        ),
        ("probe.protocols.paper_gtzan.stratified_fraction=1", "paper_gtzan.stratified_fraction: Input should be"),
        ("finetune.seeds=[]", "finetune.seeds: List should have at least 1 item"),
        ("finetune.seeds=[3,3]", "finetune.seeds: '3' is given twice"),
        ("finetune.seeds=[5000000000]", "finetune.seeds.0: Input should be less than 4294967296"),
        ("seed=4294967296", "seed: Input should be less than 4294967296"),
        ("base.encoders.base.kind=random", "base: encoders.base.kind = random cannot be fine-tuned"),
        (
            "mixture.quota={speech: 0, environment: 0.5, music: 0.5}",
            "finetune.arms has control, which is speech only, and mixture.quota.speech = 0: leave one out",
        ),
        ("finetune.arms=[]", "finetune.arms: List should have at least 1 item"),
        ("embed.poolings=[]", "embed.poolings: List should have at least 1 item"),
        ("compare.level=1.0", "compare.level: Input should be less than 1"),
        ("compare.level=0", "compare.level: Input should be greater than 0"),
        ("compare.power=1.0", "compare.power: Input should be less than 1"),
        ("compare.power=0", "compare.power: Input should be greater than 0"),
        ("compare.against=[]", "compare.against: List should have at least 1 item"),
        ("compare.against=[bsae]", "compare.against: 'bsae' is none of what is embedded (base, random"),
        ("compare.against=[adapted]", "compare.against: 'adapted' is compare.a itself"),
        ("compare.baselines=[logmle]", "compare.baselines: 'logmle' is none of what is embedded"),
        ("compare.a=adpated", "compare.a: 'adpated' is not in finetune.arms (adapted, control)"),
    ],
)
def test_a_wrong_param_is_named(override, named, tmp_path):
    target = tmp_path / "params.yaml"
    target.write_text("old")
    with pytest.raises(ConfigError, match=re.escape(named)):
        compose("demo", [override], ROOT / "conf", target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


ALL_WRONG = {
    "seed": ("many", "seed: Input should be a valid integer"),
    "index.min_s": ("-1", "index.min_s: Input should be greater than or equal to 0"),
    "index.max_text_tokens": ("500", "index.max_text_tokens: Input should be less than or equal to 448"),
    "mixture.rowz": ("3", "mixture.rowz: unknown key"),
    "mixture.quota.speech": ("0.5", "mixture: quota sums to 0.7, must sum to 1"),
    "mixture.quota.music": ("0.105", "mixture: quota.music = 0.105 is not a whole number of rows in a window of 100"),
    "base.shape.heads": ("7", "base.shape: d_model = 64 must be even, and divisible by heads = 7"),
    "base.shape.vocabulary": ("200", "base.shape.vocabulary: Input should be greater than or equal to 265"),
    "base.encoders.base.kind": (
        "logmel",
        "base: encoders.base.kind = logmel cannot be fine-tuned: give train or pretr",
    ),
    "base.encoders.random.kind": ("hub", "base.encoders.random: model is empty"),
    "finetune.schedule.epochs": ("2", "finetune.schedule: steps = 900 and epochs = 2.0: give one"),
    "finetune.schedule.lr": (".inf", "finetune.schedule.lr: Input should be a finite number"),
    "finetune.schedule.betas": ("[0.9, 1.0]", "finetune.schedule.betas.1: Input should be less than 1"),
    "finetune.schedule.warmup_fraction": ("1.0", "finetune.schedule.warmup_fraction: Input should be less than 1"),
    "finetune.training.max_s": ("40", "finetune.training.max_s: Input should be less than or equal to 30"),
    "finetune.training.label_smoothing": ("1.0", "finetune.training.label_smoothing: Input should be less than 1"),
    "finetune.seeds": ("[0, 0]", "finetune.seeds: '0' is given twice"),
    "probe.knn": ("few", "probe.knn: Input should be a valid integer"),
    "probe.sets.nowhere": ("[official]", "probe.sets.nowhere is no source with role 'probe'"),
    "probe.protocols.split.repeats": ("3", "probe.protocols.split: repeats = 3 with folds: split"),
    "compare.level": ("1", "compare.level: Input should be less than 1"),
    "compare.a": ("adpated", "compare.a: 'adpated' is not in finetune.arms (adapted, control)"),
}


def test_all_that_is_wrong_and_all_contradictions_are_listed_together():
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["mixture"]["quota"] = {"speech": 0.8, "environment": 0.095, "music": 0.1}
    for key, (text, _) in ALL_WRONG.items():
        *path, last = key.split(".")
        section = values
        for name in path:
            section = section[name]
        section[last] = yaml.safe_load(text)
    with pytest.raises(ConfigError) as caught:
        parse_params(values, "params.yaml")
    told = caught.value.what.removeprefix("params.yaml: ").split("; ")
    for _, sentence in ALL_WRONG.values():
        assert [line for line in told if sentence in line], sentence
    assert len(told) == len(ALL_WRONG) + 1  # quota.environment is no whole number of rows either


def test_an_unknown_profile_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="demo"):
        compose("dmeo", [], ROOT / "conf", tmp_path / "params.yaml")


def test_missing_and_broken_params_are_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="is missing"):
        read_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_params(tmp_path / "params.yaml")
