"""What X-ARES, XARES-LLM and HEAR 2021 check of an encoder, repeated here: their packages do not load beside ours.

X-ARES      src/xares/audio_encoder_checker.py at 5d56d32
XARES-LLM   example/whisper_base/whisper_base.py at 08df413, and what modeling_xaresllm.py there does with the answer
HEAR 2021   hearvalidator/validate.py at 04bffb7
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from aut.contracts import Silent
from aut.layout import Layout
from aut.suites import hear, xares, xares_llm

FOLDER = "models/encoders/base"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Whisper encoder, exported."""
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    from aut.config import read_params
    from aut.layout import here
    from aut.stages.export import export
    from tests.unit.test_whisper import config

    root = tmp_path_factory.mktemp("suites")
    torch.manual_seed(0)
    WhisperForConditionalGeneration(config()).save_pretrained(root / "models/base")
    WhisperFeatureExtractor().save_pretrained(root / "models/base")
    params = read_params(here().params)
    export(
        params.model_copy(update={"export": params.export.model_copy(update={"parity_clips": 1})}),
        Layout(root),
        Silent(),
        "base",
    )
    return root / FOLDER


def test_xares_would_take_it(folder: Path) -> None:
    encoder = xares.AutEncoder(folder)
    assert type(encoder).__name__.endswith("Encoder")
    assert isinstance(encoder, torch.nn.Module)
    assert (encoder.sampling_rate, encoder.hop_size_in_ms) == (16_000, 20.0)
    audio = torch.randn(2, 50_000)
    encoded = encoder(audio)
    assert encoded.shape == (2, 157, encoder.output_dim)  # 3.125 s, 20 ms a frame
    assert torch.equal(encoder(audio[0]), encoder(audio[:1]))
    assert torch.isfinite(encoded).all()


def test_xares_llm_would_take_it(folder: Path) -> None:
    """Its example's batch: four clips of 1 to 1/8 s; frames beyond a clip's end are masked and change nothing."""
    encoder = xares_llm.AutEncoder(folder)
    n_B = torch.tensor([16_000, 8_000, 4_000, 2_000])
    mask = (torch.arange(16_000)[None] < n_B[:, None]).long()
    audio = torch.randn(4, 16_000, generator=torch.Generator().manual_seed(0)) * mask
    frames, frame_mask = encoder(audio, mask)
    assert frames.shape[:2] == frame_mask.shape == (4, 50)
    assert frame_mask.sum(1).tolist() == [50, 25, 13, 7]
    text_mask = torch.ones(4, 5, dtype=torch.long)
    assert torch.cat((frame_mask, text_mask), dim=1).dtype == torch.int64  # as the suite joins them
    alone, _ = encoder(audio[3:, :2_000])
    torch.testing.assert_close(frames[3, :7], alone[0], atol=1e-5, rtol=0)  # float32, another batch
    unmasked, ones = encoder(audio)
    assert ones.all()
    assert unmasked.shape == frames.shape


@pytest.mark.parametrize("seconds", [1.07, 1.98, 4.0])
def test_hear_s_timestamps(folder: Path, seconds: float) -> None:
    model = hear.load_model(str(folder))
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate in (16_000, 22_050, 44_100, 48_000)
    audio = torch.rand(2, int(seconds * model.sample_rate)) * 2 - 1
    embeddings, times = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape[:2] == times.shape
    assert embeddings.shape[::2] == (2, model.timestamp_embedding_size)
    steps = np.diff(times.numpy())
    assert np.abs(steps - steps.mean()).max() <= 1.0
    assert steps.max() <= 50.0
    assert times.min() <= steps.mean()
    assert 1000 * seconds - steps.mean() <= times.max() <= 1000 * seconds


def test_hear_s_scenes(folder: Path) -> None:
    model = hear.load_model(str(folder))
    assert isinstance(model.scene_embedding_size, int)
    audio = torch.rand(4, int(2.74 * model.sample_rate)) * 2 - 1
    scenes = hear.get_scene_embeddings(audio, model)
    assert scenes.dtype == torch.float32
    assert scenes.shape == (4, model.scene_embedding_size)
    frames, _ = hear.get_timestamp_embeddings(audio, model)
    torch.testing.assert_close(scenes, frames.mean(1), atol=1e-5, rtol=0)  # float32 against float64 sums
