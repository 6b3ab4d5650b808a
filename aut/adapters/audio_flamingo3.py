"""Audio Flamingo 3 (and Music Flamingo, which has the same tower): attention is masked, then pooled, then normalised.

Its convolutions still hear where the padding begins.
Source: transformers 5.23, models/audioflamingo3/modeling_audioflamingo3.py, AudioFlamingo3Encoder.forward.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aut.adapters._adapter import Adapter
from aut.adapters._forward import blocks, halved, strided

ADAPTER = Adapter(
    title="Audio Flamingo 3",
    tower="AudioFlamingo3Encoder",
    models=("audioflamingo3", "audioflamingo3_encoder", "musicflamingo"),
    frame_hz=25.0,
    token_hz=25.0,
    length="padded",
    masked=True,
    order="pool 2, norm",
    alone="audioflamingo3_encoder",
    plain=True,
)


def features(encoder: Any, mel_BMT: Tensor, m_B: Tensor) -> tuple[Tensor, Tensor]:
    return encoder.layer_norm(halved(blocks(encoder, mel_BMT, m_B))), strided(m_B) // 2
