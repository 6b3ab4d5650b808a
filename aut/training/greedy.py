"""Greedy: what a Whisper says to clips, the likeliest token each time.

In    a transformers Whisper, 16 kHz clips, its tokenizer
Out   token ids of each clip, without prompt and end
Why   for word error rates and for the samples of an evaluation: no beam, no sampling, nothing to set.
      Price: no cache of keys, so a text costs the square of its tokens.
Run   `greedy(whisper, clips, targets, padded=False, device="cpu")`

`B` clips, `T` samples, `L` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from aut.audio.mel import log_mel
from aut.encoders.api import stack
from aut.encoders.whisper import decoder_forward, encoder_forward
from aut.training.tokenizer import Targets
from aut.units import DECODER_TOKENS, MEL_HOP, RATE_HZ

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pcm = NDArray[np.float32]

TOKENS_PER_S = 16  # thrice a fast speaker's; a decoder that does not stop is cut off here
TOKENS_MORE = 8


def greedy(whisper: Any, clips: Sequence[Pcm], targets: Targets, padded: bool, device: str) -> list[list[int]]:
    """The likeliest token after the prompt, again and again, until every clip has ended."""
    model = whisper.model
    x_BT, n_B = (torch.from_numpy(a) for a in stack(list(clips)))
    room = min(DECODER_TOKENS - len(targets.prompt), TOKENS_MORE + round(TOKENS_PER_S * x_BT.shape[1] / RATE_HZ))
    ids_BL = torch.tensor(targets.prompt, device=device).expand(len(clips), -1)
    ended_B = torch.zeros(len(clips), dtype=torch.bool, device=device)
    with torch.no_grad():  # inference mode would leave tensors behind that ZeRO-3 cannot train on
        mel_BMF, _ = log_mel(x_BT.to(device), n_B, model.config.num_mel_bins, padded)
        frames_B = (n_B + MEL_HOP - 1) // MEL_HOP  # on the host, where counting costs no wait
        h_BFD, f_B = encoder_forward(model.encoder, mel_BMF, None if padded else frames_B)
        for _ in range(room):
            y_BLD = decoder_forward(model.decoder, ids_BL, h_BFD, None if padded else f_B)
            next_B = whisper.proj_out(y_BLD[:, -1]).argmax(dim=-1).masked_fill(ended_B, targets.end)
            ids_BL = torch.cat([ids_BL, next_B[:, None]], dim=1)
            ended_B |= next_B == targets.end
            if bool(ended_B.all()):
                break
    said = ids_BL[:, len(targets.prompt) :].tolist()
    return [ids[: ids.index(targets.end)] if targets.end in ids else ids for ids in said]
