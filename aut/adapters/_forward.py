"""The steps in which the towers differ: who is masked, what is pooled, and before or after the layer norm.

In    a module tree with Whisper's attribute names, log-mel of 10-ms frames
Out   frames before the last layer norm, and means of neighbours
Why   Whisper-shaped towers share the blocks and part company after them; said once, a tower's file is its difference
Run   `halved(blocks(encoder, mel_BMT, None))`

`B` batch, `M` mel bins, `T` mel frames, `F` frames, `D` width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aut.encoders.whisper import encoder_layer, stem


def blocks(encoder: Any, mel_BMT: Tensor, m_B: Tensor | None, stem_masked: bool = False) -> Tensor:
    """h_BFD before the last layer norm. `m_B` keeps attention within a clip; None lets it hear the padding.

    `stem_masked`: the convolutions, too, see zeros beyond the clip's end, as they would were it alone.
    """
    mask_BT = None if m_B is None else _first(m_B, mel_BMT.shape[2], mel_BMT.device)
    h_BFD = stem(encoder, mel_BMT, mask_BT if stem_masked else None)
    keys = None if m_B is None else _first(strided(m_B), h_BFD.shape[1], h_BFD.device)[:, None, None]
    for layer in encoder.layers:
        h_BFD = encoder_layer(layer, h_BFD, keys)
    return h_BFD


def halved(h_BFD: Tensor) -> Tensor:
    """Means of neighbours, [B, F // 2, D]; an odd last frame is lost, as AvgPool1d(2) loses it."""
    rows, frames, width = h_BFD.shape
    return h_BFD[:, : frames // 2 * 2].reshape(rows, frames // 2, 2, width).mean(2)


def strided(m_B: Tensor) -> Tensor:
    """Frames after the second convolution's stride of 2."""
    return (m_B + 1) // 2


def every(h_BFD: Tensor) -> Tensor:
    """f_B of a tower whose model goes on with the silence, too."""
    return torch.full((len(h_BFD),), h_BFD.shape[1])


def _first(count_B: Tensor, length: int, device: torch.device) -> Tensor:
    return torch.arange(length, device=device) < count_B.to(device)[:, None]
