"""Whisper itself: the encoder of WhisperModel and WhisperForConditionalGeneration; their decoder stays.

30 s always, nothing masked: the blocks attend to the padding, and the decoder to every frame.
Source: transformers 5.23, models/whisper/modeling_whisper.py, WhisperEncoder.forward.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aut.adapters._adapter import Adapter
from aut.adapters._forward import blocks, every

ADAPTER = Adapter(
    title="Whisper",
    tower="WhisperEncoder",
    models=("whisper",),
    frame_hz=50.0,
    token_hz=50.0,
    length="padded",
    masked=False,
    order="norm",
    lacks="the decoder",
    heads=6,
)


def features(encoder: Any, mel_BMT: Tensor, m_B: Tensor) -> tuple[Tensor, Tensor]:
    h_BFD = encoder.layer_norm(blocks(encoder, mel_BMT, None))
    return h_BFD, every(h_BFD)
