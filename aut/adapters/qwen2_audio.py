"""Qwen2-Audio: Whisper's blocks on 30 s, attention is masked; neighbours are averaged *before* the layer norm.

The mask is made by the model and handed to the tower, whose own words ("not used") are older than its code; called by
hand without it, the tower attends to the padding. Its convolutions still hear where the padding begins.
Source: transformers 5.23, models/qwen2_audio/modeling_qwen2_audio.py, Qwen2AudioModel.forward (mask),
Qwen2AudioEncoder.forward.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aut.adapters._adapter import Adapter
from aut.adapters._forward import blocks, halved, strided

ADAPTER = Adapter(
    title="Qwen2-Audio",
    tower="Qwen2AudioEncoder",
    models=("qwen2_audio", "qwen2_audio_encoder"),
    frame_hz=25.0,
    token_hz=25.0,
    length="padded",
    masked=True,
    order="pool 2, norm",
    alone="qwen2_audio_encoder",
)


def features(encoder: Any, mel_BMT: Tensor, m_B: Tensor) -> tuple[Tensor, Tensor]:
    return encoder.layer_norm(halved(blocks(encoder, mel_BMT, m_B))), strided(m_B) // 2
