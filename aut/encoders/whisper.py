"""Whisper's forward pass at native length, over transformers' modules or our own light tower.

In    log-mel of a batch (aut/audio/mel.py), m_B valid frames; for the decoder token ids and encoder frames
Out   encoder frames h_BFD with f_B valid ones (50 a second); decoder states y_BLD
Why   transformers' WhisperEncoder insists on 30 s and attends to the padding. Here positions are sliced to the
      longest clip and keys beyond a clip's end are masked, so a clip gives the same frames alone as in any batch.
      On a GPU in half precision the blocks see clips packed one behind the other (attention.py), so that each costs
      its own length and not the longest's. With 3,000 frames and no mask it is transformers' encoder to 1e-5.
      Price: native frames are not the padded ones; probes report both.
Run   `h_BFD, f_B = encoder_forward(model.model.encoder, mel_BMT, m_B)`

The functions only read attribute names that transformers' Whisper classes and `WhisperTower` (tower.py) share, and
call modules rather than reach for their weights, so that DeepSpeed's hooks gather sharded parameters.
m_B on the CPU costs no synchronisation, no mask where none is needed, and lets clips be packed; it breaks
torch.compile's graph, which is why `compiled` is of blocks alone.

`B` batch, `M` mel bins, `T` mel frames, `F` encoder frames, `N` frames of all clips, `L` tokens, `D` width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, gelu
from torch.utils.checkpoint import checkpoint

from aut.encoders.attention import Keys, Pack, Spans, attend, can_pack, computed_in, spans_of

BACKEND = "inductor"


def encoder_forward(
    encoder: Any,
    mel_BMT: Tensor,
    m_B: Tensor | None = None,
    *,
    states: list[Tensor] | None = None,
    checkpointing: bool = False,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Frames of each clip -> (h_BFD, f_B), F = ceil(T / 2), f = ceil(m / 2), zero beyond f_B.

    m_B None says that all T frames are audio, or are to be treated so (Whisper's padded mode). `states`
    receives the stem's output, then each block's, the last one normalised: layers + 1 tensors, unmasked.
    `checkpointing` computes a block's activations again in the backward pass, `compiled` compiles the blocks: both
    only where there is a gradient.
    f_B lies where m_B does. ValueError: more frames than the encoder has positions.
    """
    mask_BT = _valid(m_B, mel_BMT.shape[2], mel_BMT.device)
    h = stem(encoder, mel_BMT, mask_BT)
    clips, frames = h.shape[:2]
    f_B = torch.full((clips,), frames) if m_B is None else (m_B + 1) // 2
    pack = Pack(f_B.tolist(), frames, h.device) if m_B is not None and _packs(encoder, h, f_B) else None
    keys_BF = None if mask_BT is None or pack else _valid(f_B, frames, h.device)
    keys: Keys = None if keys_BF is None else keys_BF[:, None, None]
    if pack:
        h, keys = pack.rows(h), pack.spans
    for layer in encoder.layers:
        if states is not None:
            states.append(pack.padded(h) if pack else h)
        if not _dropped(encoder):
            h = _run(encoder_layer, checkpointing, compiled, layer, h, keys)
    h = encoder.layer_norm(h)
    h_BFD = pack.padded(h) if pack else h
    if states is not None:
        states.append(h_BFD)
    return (h_BFD if keys_BF is None else h_BFD.masked_fill(~keys_BF[:, :, None], 0.0)), f_B


def decoder_forward(
    decoder: Any,
    ids_BL: Tensor,
    h_BFD: Tensor,
    f_B: Tensor | None = None,
    *,
    checkpointing: bool = False,
    compiled: bool = False,
) -> Tensor:
    """States of each target position -> y_BLD, normalised; logits are `y @ embed_tokens.weight.T`.

    Self-attention is causal, so targets are padded on the right and need no mask. Cross-attention sees the
    first f_B frames of each clip (None: all), which are packed where they can be.
    """
    clips, length = ids_BL.shape
    own: Spans | None = None
    keys: Keys = None
    if _packs(decoder, h_BFD, f_B):
        # Packed even where all are of one length: any number of targets will do, where other kernels are planned anew.
        pack = Pack([h_BFD.shape[1]] * clips if f_B is None else f_B.tolist(), h_BFD.shape[1], h_BFD.device)
        targets_B = [length] * clips
        own = spans_of(targets_B, targets_B, h_BFD.device)
        h, keys = pack.rows(h_BFD), Spans(own.q_C, pack.spans.k_C, length, pack.spans.k_most)
    else:
        mask_BF = _valid(f_B, h_BFD.shape[1], h_BFD.device)
        h, keys = h_BFD, None if mask_BF is None else mask_BF[:, None, None]
    y_BLD = decoder.embed_tokens(ids_BL) + decoder.embed_positions(ids_BL)
    y_BLD = dropout(y_BLD, decoder.dropout, decoder.training)
    for layer in decoder.layers:
        if not _dropped(decoder):
            y_BLD = _run(decoder_layer, checkpointing, compiled, layer, y_BLD, h, own, keys)
    normalised: Tensor = decoder.layer_norm(y_BLD)
    return normalised


def encoder_layer(layer: Any, h: Tensor, keys: Keys) -> Tensor:
    """One encoder block, of padded clips h_BFD or packed ones h_ND; `keys` as in `attend`."""
    x = layer.self_attn_layer_norm(h)
    h = h + dropout(_attend(layer.self_attn, x, x, keys), layer.dropout, layer.training)
    return h + _feed_forward(layer, h)


def decoder_layer(layer: Any, y_BLD: Tensor, h: Tensor, own: Keys, keys: Keys) -> Tensor:
    """One decoder block: causal self-attention, attention to the clip's frames (h_BFD or h_ND), feed-forward."""
    x = layer.self_attn_layer_norm(y_BLD)
    y_BLD = y_BLD + dropout(_attend(layer.self_attn, x, x, own, causal=True), layer.dropout, layer.training)
    x = layer.encoder_attn_layer_norm(y_BLD)
    y_BLD = y_BLD + dropout(_attend(layer.encoder_attn, x, h, keys), layer.dropout, layer.training)
    return y_BLD + _feed_forward(layer, y_BLD)


def stem(encoder: Any, mel_BMT: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Two convolutions and the positions. Both see zeros beyond a clip's end, as they would at a batch's end."""
    x_BMT = mel_BMT.to(encoder.conv1.weight.dtype)
    if mask_BT is not None:
        x_BMT = x_BMT.masked_fill(~mask_BT[:, None], 0.0)
    x_BDT = gelu(encoder.conv1(x_BMT))
    if mask_BT is not None:
        x_BDT = x_BDT.masked_fill(~mask_BT[:, None], 0.0)
    # Sums keep the layout of what they are made of: without a copy here every block would stride through its frames.
    h_BFD = gelu(encoder.conv2(x_BDT)).transpose(1, 2).contiguous()
    frames, positions = h_BFD.shape[1], encoder.embed_positions.num_embeddings
    if frames > positions:
        raise ValueError(f"{frames} frames, but the encoder has {positions} positions: cut clips at 30 s")
    h_BFD = h_BFD + encoder.embed_positions(torch.arange(frames, device=h_BFD.device))
    return dropout(h_BFD, encoder.dropout, encoder.training)


def _attend(attention: Any, x: Tensor, source: Tensor, keys: Keys, causal: bool = False) -> Tensor:
    to = source.to(computed_in(source))  # once for all projections: autocast would for each
    q = attention.q_proj(to if x is source else x)
    p = attention.dropout if attention.training else 0.0
    mixed = attend(q, attention.k_proj(to), attention.v_proj(to), attention.num_heads, keys, p, causal)
    out: Tensor = attention.out_proj(mixed)
    return out


def _feed_forward(layer: Any, h: Tensor) -> Tensor:
    x = layer.activation_fn(layer.fc1(layer.final_layer_norm(h)))
    x = dropout(x, layer.activation_dropout, layer.training)
    return dropout(layer.fc2(x), layer.dropout, layer.training)


def _packs(stack: Any, h: Tensor, f_B: Tensor | None) -> bool:
    on_host = f_B is None or f_B.device.type == "cpu"
    return on_host and can_pack(h.device, computed_in(h), stack.layers[0].self_attn, stack.training)


def _valid(count_B: Tensor | None, length: int, device: torch.device) -> Tensor | None:
    """[B, length], true for the first count_B; None where nothing is masked, as far as the host can tell for free."""
    if count_B is None or (count_B.device.type == "cpu" and bool((count_B >= length).all())):
        return None
    return torch.arange(length, device=device) < count_B.to(device, non_blocking=True)[:, None]


def _dropped(stack: Any) -> bool:
    """LayerDrop (Fan et al. 2019): a whole block skipped in training."""
    return bool(stack.training and stack.layerdrop > 0.0 and torch.rand([]) < stack.layerdrop)


def _run(block: Callable[..., Tensor], checkpointing: bool, compiled: bool, *args: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return block(*args)
    if compiled:
        block = _compiled(block, BACKEND)
    if checkpointing:
        kept: Tensor = checkpoint(block, *args, use_reentrant=False)
        return kept
    return block(*args)


@cache
def _compiled(block: Callable[..., Tensor], backend: Any) -> Callable[..., Tensor]:
    """One graph for all layers, for clips of any number and length: torch makes another for one clip alone, and
    without a mask, so four at most. A function is compiled, no module: weights keep their names."""
    return torch.compile(block, dynamic=True, backend=backend)
