"""A base model whose weights are not all there is refused, with the file, the tensor and the remedy."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from aut.config import BaseEncoder
from aut.errors import DataError
from aut.stages.base import _commit, _pretrained
from aut.training.job import write_preprocessor
from aut.training.model import open_whisper, save_whisper
from tests.unit.training_case import whisper_of, write_case


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A whole model's folder."""
    folder = tmp_path_factory.mktemp("kept")
    save_whisper(whisper_of(write_case(folder)), folder)
    write_preprocessor(folder, 80)
    return folder


@pytest.fixture
def folder(kept, tmp_path):
    copy = tmp_path / "hub"
    shutil.copytree(kept, copy, ignore=shutil.ignore_patterns("*.wav", "*.parquet"))
    return copy


def base(folder):
    draft = folder.with_name("draft")
    draft.mkdir(exist_ok=True)
    return _pretrained(draft, BaseEncoder(kind="pretrained", model=str(folder), revision=None))


def spoil(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def test_a_whole_one_is_taken_as_it_is(folder):
    assert base(folder)["kind"] == "pretrained"
    ours, theirs = (load_file(f / "model.safetensors") for f in (folder.with_name("draft"), folder))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def less(word):
    return lambda weights: {k: v for k, v in weights.items() if word not in k}


def cut(weights):
    return weights | {"model.encoder.layer_norm.weight": torch.ones(3)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (less("decoder"), r"model\.decoder\.\S+ and \d+ more tensors are missing"),
        (less("encoder.layer_norm.bias"), r"model\.encoder\.layer_norm\.bias is missing"),
        (lambda _: {"x": torch.zeros(3)}, r"model\.\S+ and \d+ more tensors are missing"),
        (cut, r"model\.encoder\.layer_norm\.weight is of another shape"),
    ],
)
@pytest.mark.parametrize(("look", "remedy"), [(base, "download it again"), (open_whisper, "run `aut base base` again")])
def test_a_tensor_that_would_be_drawn_at_random_is_named(folder, change, told, look, remedy):
    spoil(folder, change)
    with pytest.raises(DataError, match=rf"{folder} are no whole Whisper: {told}.*\. {remedy}"):
        look(folder)


@pytest.mark.parametrize("look", [base, open_whisper])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_file_cut_short_is_named(folder, look, share):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError, match=rf"{path} is cut short or no safetensors"):
        look(folder)


def test_weights_that_are_not_finite_are_named_before_anything_starts_from_them(folder):
    spoil(folder, lambda weights: weights | {"model.decoder.layer_norm.bias": torch.full((16,), torch.nan)})
    with pytest.raises(DataError, match=rf"{folder} are not finite: model\.decoder\.layer_norm\.bias"):
        base(folder)


def test_the_commit_that_the_hub_gave_is_kept():
    assert _commit(SimpleNamespace(_commit_hash="06f233fe")) == {"commit": "06f233fe"}
    assert _commit(SimpleNamespace(_commit_hash=None)) == {}
