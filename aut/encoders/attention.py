"""Attention within each clip: of clips padded side by side, or packed one behind the other.

In    queries, keys and values of all heads, as the projections leave them; what may be attended to
Out   the mixed values, in the queries' shape
Why   padded clips need a mask, with which a GPU takes its slow kernels, and pay for their padding in every matrix
      product. Packed ones (`Spans`) have neither: torch's varlen_attn (FlashAttention 2, Dao 2023) is told where each
      begins, one call for all, whatever their lengths. A CPU has no such kernel and takes one call a clip.
      Price: half precision and no dropout of attention weights, or clips are padded as before (`can_pack`).
Run   `pack = Pack([250, 400], 400, device); attend(q_ND, k_ND, v_ND, heads, pack.spans)`

`B` clips, `N` rows of all clips, `L` rows of one, `D` width, `H` heads, `C` clips and one more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

HALF = (torch.bfloat16, torch.float16)
WIDEST, STRIDE = 256, 8  # of one head, for FlashAttention 2
AMPERE = (8, 0)


class Spans(NamedTuple):
    """Where each clip's rows begin, and the last one's end, among queries and among keys; int32, as the kernel asks."""

    q_C: Tensor
    k_C: Tensor
    q_most: int  # rows of the longest
    k_most: int


Keys = Spans | Tensor | None  # of packed clips; a mask [B, 1, 1, L], true where a key is heard; all


def spans_of(q_B: Sequence[int], k_B: Sequence[int], device: torch.device) -> Spans:
    """Of clips with so many queries and keys each."""
    q_C = _starts(q_B, device)
    return Spans(q_C, q_C if q_B is k_B else _starts(k_B, device), max(q_B), max(k_B))


def _starts(rows_B: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(rows_B)], dtype=torch.int32).to(device, non_blocking=True)


class Pack:
    """Clips that are padded to `longest` as rows one behind the other, and back; `rows_B` of each are its own."""

    def __init__(self, rows_B: Sequence[int], longest: int, device: torch.device) -> None:
        self.spans = spans_of(rows_B, rows_B, device)
        self._shape = len(rows_B), longest
        self._at_N: Tensor | None = None
        if min(rows_B) < longest:  # counted on the device, of which nothing is asked
            clips = torch.arange(len(rows_B), device=device)
            before_B = clips * longest - self.spans.q_C[:-1]
            total = sum(rows_B)
            before_N = before_B.repeat_interleave(self.spans.q_C.diff(), output_size=total)
            self._at_N = torch.arange(total, device=device) + before_N

    def rows(self, h_BLD: Tensor) -> Tensor:
        """-> h_ND."""
        h = h_BLD.flatten(0, 1)
        return h if self._at_N is None else h.index_select(0, self._at_N)

    def padded(self, h_ND: Tensor) -> Tensor:
        """-> h_BLD, zero beyond each clip's own."""
        if self._at_N is not None:
            clips, longest = self._shape
            h_ND = h_ND.new_zeros(clips * longest, h_ND.shape[-1]).index_copy(0, self._at_N, h_ND)
        return h_ND.view(*self._shape, -1)


def computed_in(x: Tensor) -> torch.dtype:
    """What matrix products of x compute in, under autocast too."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def can_pack(device: torch.device, dtype: torch.dtype, attention: Any, training: bool) -> bool:
    """Whether `attention` has a kernel for packed clips on this device and in this precision."""
    if device.type != "cuda" or dtype not in HALF or (training and attention.dropout):
        return False
    return attention.head_dim % STRIDE == 0 and attention.head_dim <= WIDEST and _has_kernel(device)


@cache
def _has_kernel(device: torch.device) -> bool:
    return torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(device) >= AMPERE


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, keys: Keys, dropout_p: float = 0.0, causal: bool = False
) -> Tensor:
    """softmax(q k / sqrt(D / H)) v -> [.., D] like q. Padded: [B, L, D]; packed: rows of all clips, [.., D].

    `causal` wants as many queries as keys of each clip. Packed clips know no `dropout_p` (`can_pack` says so before).
    """
    if isinstance(keys, Spans):
        mix = _packed if q.is_cuda else _one_by_one
        q_NHd, k_NHd, v_NHd = (x.reshape(-1, heads, x.shape[-1] // heads) for x in (q, k, v))
        return mix(q_NHd, k_NHd, v_NHd, keys, causal).reshape(q.shape)
    q_BHLd, k_BHLd, v_BHLd = (x.view(*x.shape[:-1], heads, -1).transpose(1, 2) for x in (q, k, v))
    mixed = scaled_dot_product_attention(q_BHLd, k_BHLd, v_BHLd, attn_mask=keys, dropout_p=dropout_p, is_causal=causal)
    return mixed.transpose(1, 2).flatten(2)


def _packed(q: Tensor, k: Tensor, v: Tensor, spans: Spans, causal: bool) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    window = (-1, 0) if causal else (-1, -1)
    mixed = varlen_attn(q, k, v, spans.q_C, spans.k_C, spans.q_most, spans.k_most, window_size=window)
    return cast(Tensor, mixed)


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, spans: Spans, causal: bool) -> Tensor:
    q_B, k_B = spans.q_C.diff().tolist(), spans.k_C.diff().tolist()
    clips = zip(*(torch.split(x.transpose(0, 1)[None], n, 2) for x, n in ((q, q_B), (k, k_B), (v, k_B))), strict=True)
    mixed = [scaled_dot_product_attention(a, b, c, is_causal=causal)[0].transpose(0, 1) for a, b, c in clips]
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)
