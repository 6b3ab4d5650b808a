"""A small tokenizer: round trip, the same bytes each time, read by transformers as Whisper's."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aut.audio.decode import Unreadable
from aut.contracts import Clip
from aut.datasets._rows import Policy, told
from aut.datasets._tokens import body_of
from aut.errors import ConfigError
from aut.files import digest_tree
from aut.training.tokenizer import Targets, special_tokens, train_tokenizer
from aut.units import DECODER_TOKENS

TEXTS = ["rain on a tin roof", "a siren, low pitch", "the word yes", "rain and a siren"] * 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 300, "en", folder)
    return folder


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
def test_any_text_comes_back(folder, text):
    targets = Targets(folder, "en")
    ids = targets(text)
    assert targets.text(ids) == text
    assert ids[: len(targets.prompt)] == targets.prompt
    assert ids[-1] == targets.end


def test_transformers_reads_it_as_whispers(folder):
    from transformers import WhisperTokenizer

    tokenizer = WhisperTokenizer.from_pretrained(folder, language="en", task="transcribe", predict_timestamps=False)
    ours = Targets(folder, "en")("rain on a roof")
    assert tokenizer("rain on a roof").input_ids == ours
    assert tokenizer.decode(ours, skip_special_tokens=True) == "rain on a roof"
    assert set(tokenizer.convert_tokens_to_ids(special_tokens("en"))) <= set(tokenizer.all_special_ids)


def test_the_same_texts_give_the_same_bytes(folder, tmp_path):
    train_tokenizer(TEXTS, 300, "en", tmp_path)
    assert digest_tree(tmp_path) == digest_tree(folder)


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="256 bytes"):
        train_tokenizer(TEXTS, 200, "en", tmp_path)


@pytest.fixture(scope="module")
def spelling(tmp_path_factory):
    """(folder of a tokenizer that knows bytes only, the same saved without a language, which adds three tokens)."""
    with_language, without = tmp_path_factory.mktemp("en"), tmp_path_factory.mktemp("any")
    train_tokenizer(["q"], 265, "en", with_language)
    shutil.copytree(with_language, without, dirs_exist_ok=True)
    config = json.loads((without / "tokenizer_config.json").read_text())
    (without / "tokenizer_config.json").write_text(json.dumps(config | {"language": None, "task": None}))
    return with_language, without


@pytest.mark.parametrize("counted_by", ["utf8", "en", "any"])
def test_the_index_drops_what_training_cannot_hold_and_no_more(spelling, counted_by):
    """A token a byte: the longest text that is kept fills the decoder to the last position."""
    name = {"utf8": "utf8", "en": str(spelling[0]), "any": str(spelling[1])}[counted_by]
    policy = Policy("s", "speech", False, 0.0, 30.0, DECODER_TOKENS, name, 4)
    kept = [n for n in range(430, 455) if not refusal(lambda n=n: told(clip("a" * n), policy))]
    held = [n for n in range(430, 455) if not refusal(lambda n=n: Targets(spelling[0], "en")("a" * n))]
    assert kept == held == list(range(430, 445))
    targets = Targets(spelling[0], "en")
    assert targets.text(targets("a" * 444)) == "a" * 444
    assert len(targets("a" * 444)) == DECODER_TOKENS + 1


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_bytes_are_an_upper_bound(folder, text):
    assert len(body_of(text, str(folder))) <= len(body_of(text, "utf8"))


def test_a_text_that_the_decoder_cannot_hold_is_told_and_not_cut(folder):
    assert refusal(lambda: Targets(folder, "en")("x" * 2000)) == "text_too_long"


def clip(text):
    return Clip("k", "u", text=text, text_origin="human")


def refusal(read):
    """The reason, '' where it is read."""
    try:
        read()
    except Unreadable as error:
        return error.reason
    return ""


def test_an_unknown_language_is_named(folder):
    with pytest.raises(ConfigError, match=r"<\|xx\|>"):
        Targets(folder, "xx")
