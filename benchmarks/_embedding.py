"""Embedding 5-s clips with an encoder of whisper-base's shape: ours at native length, transformers' padded to 30 s."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import say

SECONDS, RATE_HZ = 5, 16_000
BASE = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048, "num_mel_bins": 80}
BASE |= {"decoder_layers": 1, "decoder_attention_heads": 8, "decoder_ffn_dim": 64, "vocab_size": 51_865}
BATCH = 8  # of transformers: larger ones are slower here


def embed_ratio(count: int) -> tuple[dict[str, float], dict[str, Any]]:
    """transformers' CPU seconds over ours for the same clips and weights, means over the frames each gives."""
    import torch

    clips, origin = real_clips(count)
    with tempfile.TemporaryDirectory() as folder:
        ours, model, extractor = encoders(Path(folder))
        ours.pooled(clips[:2], ["valid"])
        padded(model, extractor, clips[:1])
        start = time.process_time()
        ours.pooled(clips, ["valid"])
        mine = time.process_time() - start
        start = time.process_time()
        theirs_vectors = padded(model, extractor, clips)
        theirs = time.process_time() - start
        apart = float(np.abs(ours.pooled(clips[:BATCH], ["padded"])["padded"] - theirs_vectors[:BATCH]).max())
    facts = {"clips": count, "of": origin, "cpu_s": mine, "transformers_cpu_s": theirs, "padded_difference": apart}
    say(f"embedding {count} clips of 5 s ({origin}): {mine:.2f} s, transformers {theirs:.2f} s")
    return {"embed_ratio_hf": theirs / mine}, facts | {"threads": torch.get_num_threads()}


def encoders(folder: Path) -> tuple[Any, Any, Any]:
    """Our encoder as exported, transformers' encoder with the same weights, and its extractor."""
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    from aut.config import read_params
    from aut.contracts import Silent
    from aut.encoders import open_encoder
    from aut.layout import Layout
    from aut.stages.export import export

    torch.manual_seed(0)
    layout = Layout(folder)
    model = WhisperForConditionalGeneration(WhisperConfig(**BASE)).eval()
    extractor = WhisperFeatureExtractor()
    model.save_pretrained(layout.model("base"))
    extractor.save_pretrained(layout.model("base"))
    params = read_params(Path(__file__).parents[1] / "params.yaml")
    few = params.export.model_copy(update={"parity_clips": 1})
    export(params.model_copy(update={"export": few}), layout, Silent(), "base")
    return open_encoder(layout.encoder("base")), model.model.encoder, extractor


def padded(model: Any, extractor: Any, clips: list[np.ndarray]) -> np.ndarray:
    """The means over all 1,500 frames, in batches, as transformers' documentation does it."""
    import torch

    found = []
    with torch.inference_mode():
        for start in range(0, len(clips), BATCH):
            inputs = extractor(clips[start : start + BATCH], sampling_rate=RATE_HZ, return_tensors="pt")
            found.append(model(inputs.input_features).last_hidden_state.mean(1).numpy())
    return np.concatenate(found)


def real_clips(count: int) -> tuple[list[np.ndarray], str]:
    """Clips of AUT_DATA/esc10 cut or extended to 5 s; noise where they are not there."""
    import soundfile

    root = Path(os.environ.get("AUT_DATA", "")) / "esc10"
    files = sorted(root.rglob("*.wav")) + sorted(root.rglob("*.ogg")) + sorted(root.rglob("*.flac"))
    if len(files) < count:
        rng = np.random.default_rng(0)
        return [(0.1 * rng.standard_normal(SECONDS * RATE_HZ)).astype(np.float32) for _ in range(count)], "noise"
    step = len(files) // count
    clips = [soundfile.read(file, dtype="float32")[0][: SECONDS * RATE_HZ] for file in files[::step][:count]]
    return [np.pad(c, (0, SECONDS * RATE_HZ - len(c))) for c in clips], "ESC-10"
