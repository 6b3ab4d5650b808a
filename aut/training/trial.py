"""Trial: whether a micro-batch fits a device, by a forward and backward pass over silence.

In    a Captioner, clips and seconds
Out   True, or False where memory ran out; the model's weights are as before
Why   an allocator's limit is found by reaching it. AdamW's two moments are not there before the first step, so their
      room is taken while trying; every clip has the longest target that the decoder takes.
Run   `Trial(model, device, training)(16, 30.0)`
"""

from __future__ import annotations

import numpy as np
import torch

from aut.config import Training
from aut.training.data import Micro
from aut.training.model import Captioner
from aut.training.sizes import out_of_memory, release
from aut.units import DECODER_TOKENS, RATE_HZ

MOMENTS_B = 8  # of AdamW in float32, a parameter


class Trial:
    """`fits(clips, seconds)` of one model on one device."""

    def __init__(self, model: Captioner, device: torch.device, training: Training) -> None:
        self._model, self._device, self._bf16 = model, device, training.precision == "bf16"
        self._moments_b = MOMENTS_B * sum(p.numel() for p in model.parameters() if p.requires_grad)

    def __call__(self, clips: int, seconds: float) -> bool:
        home = next(self._model.parameters()).device  # under ZeRO the model is not on the device yet
        was = self._model.training
        try:
            self._pass(silence(clips, seconds))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return False
        finally:
            self._model.zero_grad(set_to_none=True)
            self._model.to(home).train(was)
            release(self._device)
        return True

    def _pass(self, micro: Micro) -> None:
        model = self._model.to(self._device).train()
        moments = torch.empty(self._moments_b, dtype=torch.uint8, device=self._device)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            loss = model(micro, self._device).loss
        loss.backward()
        del moments


def silence(clips: int, seconds: float) -> Micro:
    """A micro-batch of one length, with the longest targets."""
    n_B = np.full(clips, int(seconds * RATE_HZ), np.int64)
    ids_BL = np.zeros((clips, DECODER_TOKENS), np.int64)
    none_B = np.zeros(clips, np.int64)
    return Micro(np.zeros((clips, int(n_B[0])), np.int16), n_B, ids_BL, ids_BL.copy(), none_B, none_B.copy())
