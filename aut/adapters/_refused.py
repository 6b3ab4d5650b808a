"""Towers that cannot take the weights, and why: read from their classes in transformers 5.23.

A refusal is a fact about keys or about what the keys mean; tests ask each fact of the class itself. A model without a
class in transformers is not listed: if its tower is a WhisperEncoder, it takes the weights whoever wrote the model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refused:
    """`towers`: names of transformers' classes. `reason`: completes 'X cannot take the weights: ...'."""

    title: str
    towers: tuple[str, ...]
    reason: str


REFUSED = {
    "qwen3_omni": Refused(
        "Qwen3-Omni",
        ("Qwen3OmniMoeAudioEncoder",),
        "it begins with three strided 2-D convolutions, Whisper with two 1-D ones; its blocks run at 13 frames/s",
    ),
    "qwen3_asr": Refused(
        "Qwen3-ASR",
        ("Qwen3ASREncoder",),
        "it begins with three strided 2-D convolutions, Whisper with two 1-D ones; its blocks run at 13 frames/s",
    ),
    "glm_asr": Refused(
        "GLM-ASR",
        ("GlmAsrEncoder",),
        "the convolutions are Whisper's, but its blocks turn queries and keys by rotary positions that ours never saw",
    ),
    "voxtral_realtime": Refused(
        "Voxtral Realtime",
        ("VoxtralRealtimeEncoder",),
        "its convolutions and attention are causal, its positions rotary, its norms RMS and its feed-forwards gated",
    ),
    "granite_speech": Refused(
        "Granite Speech",
        ("GraniteSpeechCTCEncoder",),
        "its tower is a Conformer with a CTC head: blocks of another kind",
    ),
    "phi4_multimodal": Refused(
        "Phi-4-multimodal",
        ("Phi4MultimodalAudioModel",),
        "its tower is a Conformer behind its own subsampling: blocks of another kind",
    ),
}
