"""Ultravox: a WhisperEncoder that takes less than 30 s: positions cut to the input, padding kept from attention.

Its class comes with the model (remote code), so the tests hold a reference written from it. Eight frames are laid
side by side for the projector. A checkpoint may hold the projector alone and name its encoder in `audio_model_id`: that
takes the folder written without a target, if 'whisper' is part of its name, as the code looks for the word.
Source: github.com/fixie-ai/ultravox, ultravox/model/ultravox_model.py at 03ac67e (sliced positions), and vLLM's
model_executor/models/ultravox.py, adapted from ecd58c4 (mask), both ModifiedWhisperEncoder.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aut.adapters._adapter import Adapter
from aut.adapters._forward import blocks, strided

ADAPTER = Adapter(
    title="Ultravox",
    tower="ModifiedWhisperEncoder",
    models=("ultravox", "whisper"),
    frame_hz=50.0,
    token_hz=6.25,
    length="longest",
    masked=True,
    order="norm",
    alone="whisper",
    heads=6,
)


def features(encoder: Any, mel_BMT: Tensor, m_B: Tensor) -> tuple[Tensor, Tensor]:
    return encoder.layer_norm(blocks(encoder, mel_BMT, m_B)), strided(m_B)
