"""Params: composed from conf/, strict, and every wrong key named at once."""

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
        ("mixture.window=7", "not a whole number of rows in a window of 7"),
        ("finetune.schedule.epochs=2", "give steps or epochs"),
        ("sources.toy_words.path=../secret", "must lie below AUT_DATA"),
        ("sources.toy_words.role=music", "must be 'probe' or equal the domain"),
        ("+probe.sets.nowhere=[official]", "probe.sets.nowhere is no source with role 'probe'"),
    ],
)
def test_a_wrong_param_is_named(override, named, tmp_path):
    target = tmp_path / "params.yaml"
    target.write_text("old")
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        compose("demo", [override], ROOT / "conf", target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_all_wrong_keys_are_listed_together():
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["index"]["min_s"] = -1
    values["probe"]["knn"] = "few"
    with pytest.raises(ConfigError) as caught:
        parse_params(values, "params.yaml")
    assert "index.min_s" in str(caught.value)
    assert "probe.knn" in str(caught.value)


def test_an_unknown_profile_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="demo"):
        compose("dmeo", [], ROOT / "conf", tmp_path / "params.yaml")


def test_missing_and_broken_params_are_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="is missing"):
        read_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_params(tmp_path / "params.yaml")
