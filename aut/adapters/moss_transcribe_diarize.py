"""MOSS-Transcribe-Diarize: Whisper's encoder as it is, a row for each window of 30 s; four frames make a token.

Attention hears the padding; the model goes on with the clip's frames only, up to a whole token.
Source: transformers 5.23, models/moss_transcribe_diarize/modeling_moss_transcribe_diarize.py,
MossTranscribeDiarizeAudioModel.forward, MossTranscribeDiarizeModel.get_audio_features.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aut.adapters._adapter import Adapter
from aut.adapters._forward import blocks, strided

MERGED = 4
"""Frames of a token: audio_merge_size of the published config."""

ADAPTER = Adapter(
    title="MOSS-Transcribe-Diarize",
    tower="MossTranscribeDiarizeAudioModel",
    models=("moss_transcribe_diarize", "moss_transcribe_diarize_audio"),
    frame_hz=50.0,
    token_hz=12.5,
    length="padded",
    masked=False,
    order="norm",
    alone="moss_transcribe_diarize_audio",
    plain=True,
    heads=16,
)


def features(encoder: Any, mel_BMT: Tensor, m_B: Tensor) -> tuple[Tensor, Tensor]:
    tokens_B = (strided(m_B) + MERGED - 1) // MERGED
    return encoder.layer_norm(blocks(encoder, mel_BMT, None)), tokens_B * MERGED
