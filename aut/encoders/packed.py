"""Packed: `encoder_forward` for clips of unlike lengths on a CPU, without computing their padding.

In    log-mel of each clip, at its own length
Out   what `encoder_forward` gives for the batch, to 1e-5
Why   clips lie one behind the other in one matrix: linear layers see N rows and no padding, attention each clip alone,
      so no mask. A batch of any lengths costs the sum of its clips, and short ones share the price of a kernel's start.
      Price: one attention call a clip and block, which a GPU would feel: there clips of about one length are padded.
Run   `packed_forward(tower, [mel_MT, ...])`

`B` batch, `M` mel bins, `T` mel frames, `N` frames of all clips, `D` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu

from aut.encoders.attention import spans_of
from aut.encoders.whisper import encoder_layer


def packed_forward(
    encoder: Any, mels: Sequence[Tensor], *, states: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Frames of each clip -> (h_BFD, f_B), zero beyond f_B; for inference. `states` as in `encoder_forward`, masked."""
    frames = [(mel_MT.shape[1] + 1) // 2 for mel_MT in mels]
    h_ND = _stem(encoder, mels, frames)
    spans = spans_of(frames, frames, h_ND.device)
    for layer in encoder.layers:
        if states is not None:
            states.append(_padded(h_ND, frames))
        h_ND = encoder_layer(layer, h_ND, spans)
    h_BFD = _padded(encoder.layer_norm(h_ND), frames)
    if states is not None:
        states.append(h_BFD)
    return h_BFD, torch.tensor(frames)


def _stem(encoder: Any, mels: Sequence[Tensor], frames: list[int]) -> Tensor:
    """Convolutions and positions -> h_ND. Clips lie in one row with zeros between, as each would at a batch's end.

    A clip starts on an even column, so that the second convolution's stride meets its own frames.
    """
    if max(frames) > encoder.embed_positions.num_embeddings:
        positions = encoder.embed_positions.num_embeddings
        raise ValueError(f"{max(frames)} frames, but the encoder has {positions} positions: cut clips at 30 s")
    starts = [0, *accumulate(2 * f + 2 for f in frames)]
    row_MT = mels[0].new_zeros(mels[0].shape[0], starts[-1])
    silent_T = torch.ones(starts[-1], dtype=torch.bool, device=row_MT.device)
    for mel_MT, start in zip(mels, starts, strict=False):
        row_MT[:, start : start + mel_MT.shape[1]] = mel_MT
        silent_T[start : start + mel_MT.shape[1]] = False
    x_DT = gelu(encoder.conv1(row_MT[None].to(encoder.conv1.weight.dtype))).masked_fill_(silent_T, 0.0)
    h_TD = gelu(encoder.conv2(x_DT))[0].T
    table = encoder.embed_positions.weight
    return torch.cat([h_TD[s // 2 : s // 2 + f] + table[:f] for s, f in zip(starts, frames, strict=False)])


def _padded(h_ND: Tensor, frames: list[int]) -> Tensor:
    if len(frames) == 1:
        return h_ND[None]
    return torch.nn.utils.rnn.pad_sequence(list(torch.split(h_ND, frames)), batch_first=True)
