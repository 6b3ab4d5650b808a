"""The generated corpora: the same bytes however they are made, true captions, and neither trivial nor hopeless."""

from __future__ import annotations

import importlib
import wave
from pathlib import Path

import numpy as np
import pytest

from aut.datasets import toy
from aut.errors import ConfigError, MissingInput
from aut.files import digest_tree

CHANCE_MARGIN, CEILING = 0.15, 0.95


@pytest.mark.parametrize("part", toy.PARTS)
def test_prepared_corpus_is_what_its_rows_say(tmp_path: Path, part: str) -> None:
    toy.prepare(tmp_path, part, clips=24, seed=1)
    rows = list(toy.clips(tmp_path, part, clips=24, seed=1))
    assert len({row.key for row in rows}) == 24
    for row in rows:
        assert (row.licence, row.text_origin) == ("CC0-1.0", "template")
        assert all((row.text, row.label, row.source_id))
        with wave.open(str(tmp_path / row.uri)) as f:
            assert (f.getnchannels(), f.getsampwidth(), f.getframerate()) == (1, 2, 16_000)
            assert 0.4 <= f.getnframes() / 16_000 <= 1.7
            peak = np.abs(np.frombuffer(f.readframes(-1), "<i2").astype(int)).max()
        assert 3_000 < peak < 32_767  # between -20 dBFS and just below clipping


def test_interruption_and_workers_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.prepare(tmp_path / "two", "sounds", 600, 0, workers=2)
    original, calls = toy._render_block, []

    def dies_on_second(*job: object) -> None:
        calls.append(job)
        if len(calls) == 2:
            raise KeyboardInterrupt
        original(*job)  # type: ignore[arg-type]

    monkeypatch.setattr(toy, "_render_block", dies_on_second)
    with pytest.raises(KeyboardInterrupt):
        toy.prepare(tmp_path / "one", "sounds", 600, 0, workers=1)
    with pytest.raises(MissingInput, match="sounds-0-600"):
        next(toy.clips(tmp_path / "one", "sounds", 600, 0))
    toy.prepare(tmp_path / "one", "sounds", 600, 0, workers=1)
    assert len(calls) == 4  # first block kept, second again, third
    toy.prepare(tmp_path / "one", "sounds", 600, 0, workers=1)
    assert len(calls) == 4
    assert digest_tree(tmp_path / "one/sounds-0-600") == digest_tree(tmp_path / "two/sounds-0-600")


def test_pool_and_probe_share_no_recording_and_no_audio() -> None:
    for part in toy.PARTS:
        render = importlib.import_module(f"aut.audio.synth_{part}").render
        pool, probe = ([render(seed, i) for i in range(60)] for seed in (0, 1))
        assert not {c.source_id for c in pool} & {c.source_id for c in probe}
        assert not {c.pcm_T.tobytes() for c in pool} & {c.pcm_T.tobytes() for c in probe}


def test_captions_fit_a_small_vocabulary() -> None:
    words: set[str] = set()
    for part in toy.PARTS:
        render = importlib.import_module(f"aut.audio.synth_{part}").render
        for i in range(150):
            text = render(0, i).text
            assert text == text.lower()
            assert len(text.split()) <= 14
            words |= set(text.replace(",", "").split())
    assert 60 < len(words) < 200


def _statistics(pcm_T: np.ndarray) -> np.ndarray:
    """Mean and deviation over time of 80 log bands spaced like mel."""
    frames = np.lib.stride_tricks.sliding_window_view(pcm_T, 400)[::160] * np.hanning(400)
    power = np.abs(np.fft.rfft(frames, 1024)) ** 2
    mel = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 81)
    edges = (700 * (10 ** (mel / 2595) - 1) / 8000 * 512).astype(int)
    bands = np.log10(np.maximum(np.add.reduceat(power, np.minimum(edges[:-1], 512), axis=1), 1e-8))
    return np.r_[bands.mean(0), bands.std(0)]


@pytest.mark.parametrize("part", toy.PARTS)
def test_mean_spectra_tell_something_but_not_all(part: str) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    render = importlib.import_module(f"aut.audio.synth_{part}").render
    made = [render(1, i) for i in range(300)]
    labels = np.array([c.label for c in made])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=0.05))
    predicted = cross_val_predict(
        model,
        np.stack([_statistics(c.pcm_T) for c in made]),
        labels,
        groups=[c.source_id for c in made],
        cv=GroupKFold(5),
    )
    accuracy = float(np.mean(predicted == labels))
    assert 1 / len(set(labels)) + CHANCE_MARGIN < accuracy < CEILING


def test_wrong_options_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose one of words, sounds, tunes"):
        toy.prepare(tmp_path, "smells", 1, 0)
    with pytest.raises(ConfigError, match="clips >= 1"):
        toy.prepare(tmp_path, "words", 0, 0)
