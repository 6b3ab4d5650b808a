"""Word error rate: counted as defined, decoded as transformers would, the same for equal models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aut.files import read_json
from aut.training.greedy import TOKENS_MORE, TOKENS_PER_S
from aut.training.wer import transcribe, word_errors, words_of, write_speech
from tests.unit.training_case import job_of, settings, whisper_of, write_case


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a tokenizer and two small models below `base` and `tuned`."""
    import shutil

    import torch

    from aut.training.job import write_preprocessor
    from aut.training.model import save_whisper

    folder = write_case(tmp_path_factory.mktemp("wer"))
    whisper = whisper_of(folder)
    for name in ("base", "tuned"):
        (folder / name).mkdir()
        for file in folder.glob("*.json"):
            shutil.copy(file, folder / name)
        save_whisper(whisper, folder / name)
        write_preprocessor(folder / name, 80)
        with torch.no_grad():  # untrained, both would say one token for ever
            for weight in whisper.model.decoder.parameters():
                weight.add_(0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    return folder


@pytest.mark.parametrize(
    ("reference", "said", "errors"),
    [
        ("rain on a roof", "Rain, on a roof!", 0),
        ("rain on a roof", "", 4),
        ("rain on a roof", "rain on the roof", 1),
        ("rain on a roof", "on a roof top", 2),
        ("a b c d", "d c b a", 4),
        ("one", "one one one", 2),  # more errors than words
    ],
)
def test_errors_are_the_fewest_edits_of_words(reference: str, said: str, errors: int) -> None:
    assert word_errors(reference, said) == errors
    assert len(words_of(said)) - len(words_of(reference)) <= errors


def test_words_lose_case_and_marks_and_keep_their_letters() -> None:
    assert words_of("Don\u2019t STOP \u2014 'caf\u00e9' n\u00ba 3, \ufb01ne.") == [
        "don't",
        "stop",
        "caf\u00e9",
        "no",
        "3",
        "fine",
    ]
    assert words_of(" -- ...") == []


def test_edits_obey_the_triangle_and_are_symmetric() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abc"), rng.integers(0, 7))) for _ in range(40)]
    for a, b, c in (rng.choice(texts, 3).tolist() for _ in range(200)):
        assert word_errors(a, b) == word_errors(b, a)
        assert word_errors(a, c) <= word_errors(a, b) + word_errors(b, c)


@pytest.mark.parametrize("name", ["base", "tuned"])
def test_greedy_padded_is_what_transformers_own_forward_prefers(case: Path, name: str) -> None:
    """At 30 s, token by token, against the reference model's logits."""
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    from aut.training.tokenizer import Targets

    rng = np.random.default_rng(1)
    clips = [rng.normal(0, 0.1, n).astype(np.float32) for n in (3_000, 8_000)]
    ours = transcribe(case / name, clips, settings(length="padded"))
    reference = WhisperForConditionalGeneration.from_pretrained(case / name).eval()
    targets = Targets(case / name, "en")
    features = WhisperFeatureExtractor(feature_size=80)(clips, sampling_rate=16_000, return_tensors="pt")
    for i, text in enumerate(ours):
        room = TOKENS_MORE + round(TOKENS_PER_S * len(clips[i]) / 16_000)  # padded, each is decoded alone on a CPU
        ids = list(targets.prompt)
        with torch.inference_mode():
            for _ in range(room):
                decoder_ids = torch.tensor([ids])
                logits = reference(input_features=features.input_features[i : i + 1], decoder_input_ids=decoder_ids)
                ids.append(int(logits.logits[0, -1].argmax()))
                if ids[-1] == targets.end:
                    break
        assert text == targets.text(ids[len(targets.prompt) :])
    assert any(words_of(text) for text in ours)


def test_a_transcript_does_not_depend_on_the_clips_beside_it(case: Path) -> None:
    rng = np.random.default_rng(2)
    clips = [rng.normal(0, 0.1, n).astype(np.float32) for n in (8_000, 3_200, 7_040)]
    together = transcribe(case / "tuned", clips, settings())
    alone = [transcribe(case / "tuned", [clip], settings())[0] for clip in clips]
    assert together[0] == alone[0]
    assert all(t[: len(a)] == a for t, a in zip(together, alone, strict=True))  # a longer neighbour gives more room


def test_equal_models_make_equal_errors_and_clips_keep_their_order(case: Path) -> None:
    rows = job_of(case).held_out
    found = write_speech(case / "base", case / "base", rows, {"noise": case}, settings())
    clips = read_json(case / "base/speech.json")["clips"]
    assert [c["id"] for c in clips] == [r["id"] for r in rows]
    assert all(c["base"] == c["tuned"] for c in clips)
    assert found["wer"] == found["base_wer"] == sum(c["base"] for c in clips) / sum(c["words"] for c in clips)
    assert {c["source_id"] for c in clips} == {c["id"] for c in clips}  # no recording named: each its own


def test_what_cannot_be_heard_is_left_out(case: Path, tmp_path: Path) -> None:
    rows = job_of(case).held_out
    odd = [rows[0] | {"uri": "gone.wav"}, rows[1] | {"text": " ... "}, rows[2] | {"domain": "music"}]
    assert write_speech(tmp_path, case / "base", odd, {"noise": case}, settings()) == {}
    assert not (tmp_path / "speech.json").exists()
    write_speech(case / "tuned", case / "base", [*odd, rows[3]], {"noise": case}, settings())
    assert [c["id"] for c in read_json(case / "tuned/speech.json")["clips"]] == [rows[3]["id"]]
