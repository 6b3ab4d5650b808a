"""Voxtral: Whisper's encoder as it is, on 30 s, unmasked; four frames are laid side by side for the projector.

Its pooling layer is there and never called. Silence reaches the language model: a clip costs 375 tokens per 30 s.
Source: transformers 5.23, models/voxtral/modeling_voxtral.py, VoxtralEncoder.forward, VoxtralModel.get_audio_features.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aut.adapters._adapter import Adapter
from aut.adapters._forward import blocks, every

ADAPTER = Adapter(
    title="Voxtral",
    tower="VoxtralEncoder",
    models=("voxtral", "voxtral_encoder"),
    frame_hz=50.0,
    token_hz=12.5,
    length="padded",
    masked=False,
    order="norm",
    alone="voxtral_encoder",
    plain=True,
)


def features(encoder: Any, mel_BMT: Tensor, m_B: Tensor) -> tuple[Tensor, Tensor]:
    h_BFD = encoder.layer_norm(blocks(encoder, mel_BMT, None))
    return h_BFD, every(h_BFD)
