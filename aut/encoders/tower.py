"""Whisper tower: the exported encoder for inference, without transformers (whose import takes 4 s).

In    an encoder folder of kind 'whisper': config.json, model.safetensors (keys of transformers' WhisperEncoder)
Out   frames at 50 a second, native length or padded to 30 s
Why   every embedding and every served request runs this; it shares the forward pass with training
Run   `open_encoder(folder).encode(x_BT, n_B)`
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aut.audio.mel import log_mel
from aut.encoders.clipwise import ClipEncoder
from aut.encoders.packed import packed_forward
from aut.encoders.whisper import encoder_forward
from aut.errors import DataError
from aut.files import read_json
from aut.units import FRAME_HOP, MEL_HOP, RATE_HZ


class Whisper(ClipEncoder):
    """Whisper's encoder on clips. 'padded' is each clip as Whisper was trained: 30 s, silence attended to."""

    rate_hz, hop_s = RATE_HZ, FRAME_HOP / RATE_HZ

    def __init__(self, folder: Path, facts: Mapping[str, Any], device: str) -> None:
        super().__init__(folder, facts, device)
        config = read_json(folder / "config.json")
        self.mels = int(config["num_mel_bins"])
        self.width = int(config["d_model"])
        self.tower = load_tower(folder, config).to(device)
        self.packs = device == "cpu"

    def frames(self, x_BT: Tensor, n_B: Tensor, padded: bool, layers: bool) -> tuple[list[Tensor], Tensor]:
        states: list[Tensor] | None = [] if layers else None
        if self.packs and not padded:
            clips = [(x_T[None, :n], torch.tensor([n])) for x_T, n in zip(x_BT, n_B.tolist(), strict=True)]
            mels = [log_mel(*clip, self.mels)[0][0] for clip in clips]
            h_BFD, f_B = packed_forward(self.tower, mels, states=states)
            return states or [h_BFD], f_B
        mel_BMF, _ = log_mel(x_BT, n_B, self.mels, padded)
        m_B = None if padded else (n_B + MEL_HOP - 1) // MEL_HOP  # on the CPU: no mask is built where none is needed
        h_BFD, f_B = encoder_forward(self.tower, mel_BMF, m_B, states=states)
        return states or [h_BFD], f_B


load = Whisper


def load_tower(folder: Path, config: Mapping[str, Any]) -> WhisperTower:
    """The tower with its weights in float32, for evaluation. DataError where keys or shapes do not fit."""
    from safetensors.torch import load_file

    with torch.device("meta"):  # no time spent on random weights
        tower = WhisperTower(config)
    try:
        tower.load_state_dict(load_file(folder / "model.safetensors"), strict=True, assign=True)
    except RuntimeError as error:
        what = " ".join(str(error).split())
        raise DataError(f"{folder}/model.safetensors does not fit its config.json: {what}", "export it again") from None
    return tower.float().eval().requires_grad_(False)


class WhisperTower(nn.Module):
    """Whisper's encoder for inference, without transformers: the same state-dict keys as its WhisperEncoder.

    `config` is that class's config.json: d_model, encoder_layers, encoder_attention_heads, encoder_ffn_dim,
    num_mel_bins, max_source_positions.
    """

    dropout = layerdrop = 0.0

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width = int(config["d_model"])
        self.conv1 = nn.Conv1d(int(config["num_mel_bins"]), width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        # A given weight: drawing one on the meta device would import torch._dynamo, 1.5 s a process.
        positions = torch.empty(int(config["max_source_positions"]), width)
        self.embed_positions = nn.Embedding(len(positions), width, _weight=positions)
        self.layers = nn.ModuleList(TowerLayer(config) for _ in range(int(config["encoder_layers"])))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, mel_BMT: Tensor, m_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`encoder_forward` of this tower."""
        return encoder_forward(self, mel_BMT, m_B)


class TowerAttention(nn.Module):
    dropout = 0.0

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)


class TowerLayer(nn.Module):
    dropout = activation_dropout = 0.0

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner = int(config["d_model"]), int(config["encoder_ffn_dim"])
        self.self_attn = TowerAttention(width, int(config["encoder_attention_heads"]))
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.activation_fn = nn.GELU()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)
