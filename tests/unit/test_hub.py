"""Any Hugging Face audio encoder: tiny ones with random weights, saved and opened like any other."""

import json

import numpy as np
import pytest
import torch

from aut.config import read_params
from aut.contracts import Silent
from aut.encoders import open_encoder
from aut.encoders.api import stack
from aut.encoders.hub import fetch
from aut.errors import DataError, MissingInput
from aut.layout import Layout, here
from aut.stages.export import export

ATOL = 1e-5  # float32, batches of other shapes
WAVE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


def saved(kind, folder):
    """A model and its extractor of the given type, as `save_pretrained` leaves them."""
    import transformers as tf

    torch.manual_seed(0)
    if kind in ("wav2vec2", "hubert", "wavlm"):
        name = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}[kind]
        model = getattr(tf, f"{name}Model")(getattr(tf, f"{name}Config")(**WAVE))
        extractor = tf.Wav2Vec2FeatureExtractor()
    elif kind == "ast":
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        model = tf.ASTModel(tf.ASTConfig(**shape, max_length=128, num_mel_bins=32))
        extractor = tf.ASTFeatureExtractor(max_length=128, num_mel_bins=32)
    elif kind == "clap":
        audio = {"patch_embeds_hidden_size": 16, "depths": [1, 1], "num_attention_heads": [2, 2], "hidden_size": 32}
        audio |= {"spec_size": 64, "num_mel_bins": 16, "window_size": 4, "enable_fusion": False}
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        model = tf.ClapModel(tf.ClapConfig(audio_config=audio, text_config=text, projection_dim=8))
        extractor = tf.ClapFeatureExtractor(
            feature_size=16, max_length_s=2, truncation="rand_trunc", padding="repeatpad", sampling_rate=48_000
        )
    else:
        from tests.unit.test_whisper import config

        model = tf.WhisperForConditionalGeneration(config())
        extractor = tf.WhisperFeatureExtractor()
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)


@pytest.fixture(params=["wav2vec2", "hubert", "wavlm", "ast", "clap", "whisper"])
def encoder(request, tmp_path):
    saved(request.param, tmp_path / "peer")
    layout = Layout(tmp_path / "copy")
    fetch(str(tmp_path / "peer"), None, layout.model("peer"))
    (layout.model("peer") / "encoder.json").write_text(json.dumps({"kind": "hub", "model": "peer"}))
    export(read_params(here().params), layout, Silent(), "peer")
    return open_encoder(layout.encoder("peer"))


def test_a_peer_is_exported_opened_and_does_not_see_its_batch(encoder):
    rng = np.random.default_rng(0)
    clips = [(rng.standard_normal(n) * 0.1).astype(np.float32) for n in (300, 8_000, 8_000, 24_000)]
    h_BFD, f_B = encoder.encode(*stack(clips))
    assert h_BFD.shape == (4, f_B.max(), encoder.width)
    assert (f_B > 0).all()
    together = encoder.embed(*stack(clips))
    assert together.shape == (4, encoder.width)
    assert np.isfinite(together).all()
    assert not np.allclose(together[1], together[2])
    for clip, row in zip(clips, together, strict=True):
        np.testing.assert_allclose(encoder.embed(*stack([clip]))[0], row, atol=ATOL)
    padded = encoder.pooled(clips[1:2], ["padded"], layers=True)
    assert padded["padded"].shape == (1, encoder.width)
    assert len(padded) > 2


def test_a_name_out_of_reach_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingInput, match="no audio encoder"):
        fetch(str(tmp_path / "nowhere"), None, tmp_path / "out")


def test_a_folder_that_transformers_cannot_open_is_said(tmp_path):
    from aut.encoders.hub import Hub

    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="holds no model"):
        Hub(tmp_path, {"kind": "hub", "name": "x", "digest": "y"}, "cpu")
