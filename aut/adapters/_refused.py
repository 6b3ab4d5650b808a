"""Towers that cannot take the weights, and why: read from their classes in transformers 5.23.

A refusal is a fact about keys or about what the keys mean; a test holds each against the class itself.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refused:
    """`towers`: class names, '' where transformers has none. `reason`: completes 'X cannot take the weights: ...'."""

    title: str
    towers: tuple[str, ...]
    reason: str


REFUSED = {
    "qwen3_omni": Refused(
        "Qwen3-Omni",
        ("Qwen3OmniMoeAudioEncoder",),
        "it begins with three strided 2-D convolutions, Whisper with two 1-D ones; its blocks run at 12.5 frames/s",
    ),
    "qwen3_asr": Refused(
        "Qwen3-ASR",
        ("Qwen3ASREncoder",),
        "it begins with three strided 2-D convolutions, Whisper with two 1-D ones; its blocks run at 12.5 frames/s",
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
        "its tower is a Conformer with CTC heads: blocks of another kind",
    ),
    "phi4_multimodal": Refused(
        "Phi-4-multimodal",
        ("Phi4MultimodalAudioModel",),
        "its tower is a Conformer behind its own subsampling: blocks of another kind",
    ),
    "salmonn": Refused(
        "SALMONN",
        (),
        "it is not in transformers, so there is no class here against which a load could be proved",
    ),
}
