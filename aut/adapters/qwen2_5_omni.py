"""Qwen2.5-Omni: Whisper's blocks on chunks of 2 s that hear nothing of each other; its projection stays the target's.

Every chunk begins at position 0, its convolutions see zeros at both ends, attention stays within it. Then the chunks
of a clip are joined, neighbours averaged, normalised (`ln_post`) and projected (`proj`, which `features` leaves out).
Positions are computed, so a file cannot carry ours: they must still be Whisper's sinusoids.
Source: transformers 5.23, models/qwen2_5_omni/modeling_qwen2_5_omni.py, Qwen2_5OmniAudioEncoder.forward.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from aut.adapters._adapter import Adapter
from aut.adapters._forward import blocks, halved, strided

CHUNK = 200
"""Mel frames of a chunk: 2 x n_window of the published configs; a tower with another one is refused."""


def sinusoids(shape: tuple[int, ...]) -> Tensor:
    """Whisper's positions as released (Radford et al. 2022): sines, then cosines, wavelengths 2 pi to 20,000 pi."""
    length, width = shape
    rate_D = torch.exp(-math.log(10_000.0) / (width // 2 - 1) * torch.arange(width // 2))
    angle_FD = torch.arange(length)[:, None] * rate_D
    return torch.cat([angle_FD.sin(), angle_FD.cos()], dim=1)


ADAPTER = Adapter(
    title="Qwen2.5-Omni",
    tower="Qwen2_5OmniAudioEncoder",
    models=("qwen2_5_omni", "qwen2_5_omni_thinker", "qwen2_5_omni_audio_encoder"),
    frame_hz=25.0,
    token_hz=25.0,
    length="chunks",
    masked=True,
    order="pool 2, norm, project",
    renamed={"layer_norm.": "ln_post."},
    constant={"embed_positions.weight": sinusoids},
    kept=("proj.", "audio_bos_eos_token."),
    lacks="the tower's proj and audio_bos_eos_token",
    settings={"n_window": CHUNK // 2},
)


def features(encoder: Any, mel_BMT: Tensor, m_B: Tensor) -> tuple[Tensor, Tensor]:
    """Before `proj`: the tower's output is `tower.proj(h)`."""
    clips = [mel_MT[:, : int(m)].T.split(CHUNK) for mel_MT, m in zip(mel_BMT, m_B, strict=True)]
    chunks = [chunk for clip in clips for chunk in clip]
    m_C = torch.tensor([len(chunk) for chunk in chunks])
    h_CFD = blocks(computed(encoder), pad_sequence(chunks, batch_first=True).transpose(1, 2), m_C, stem_masked=True)
    pieces = iter([h_FD[: int(f)] for h_FD, f in zip(h_CFD, strided(m_C), strict=True)])
    joined = [torch.cat([next(pieces) for _ in clip])[None] for clip in clips]
    rows = [encoder.layer_norm(halved(h_1FD))[0] for h_1FD in joined]
    return pad_sequence(rows, batch_first=True), strided(m_B) // 2


def computed(encoder: Any) -> Any:
    """The encoder as `blocks` reads it, with the positions that the tower computes: ours may be off by a rounding."""
    ours = encoder.embed_positions.weight
    embedding: Any = torch.nn.Embedding
    positions = embedding.from_pretrained(sinusoids(tuple(ours.shape)).to(ours))
    rest = {name: getattr(encoder, name) for name in ("conv1", "conv2", "layers", "dropout", "training")}
    return SimpleNamespace(embed_positions=positions, **rest)
