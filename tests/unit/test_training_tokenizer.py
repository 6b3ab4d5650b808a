"""A small tokenizer: round trip, the same bytes each time, read by transformers as Whisper's."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aut.errors import ConfigError
from aut.files import digest_tree
from aut.training.tokenizer import Targets, special_tokens, train_tokenizer

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


def test_a_long_text_is_cut_to_the_decoder(folder):
    ids = Targets(folder, "en")("x" * 2000)
    assert len(ids) == 449
    assert ids[-1] == Targets(folder, "en").end


def test_an_unknown_language_is_named(folder):
    with pytest.raises(ConfigError, match=r"<\|xx\|>"):
        Targets(folder, "xx")
