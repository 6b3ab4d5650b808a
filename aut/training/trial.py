"""Trial: whether a micro-batch fits a device, and how long it takes, by forward and backward passes over silence.

In    a Captioner, clips and seconds
Out   True, or False where memory ran out; seconds of a warm pass, or None; the model's weights are as before
Why   an allocator's limit is found by reaching it. AdamW's two moments, and what several processes hold for each
      other, are not there before the first step, so their room is taken while trying; every clip has the longest target
      that the decoder takes. One process tries alone: under ZeRO, trials that meet would wait for one that failed.
      Price: weights are whole while trying, which ZeRO-3 gathers one after another: it could hold more than is found.
Run   `Trial(model, device, training, world)(16, 30.0)`
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from aut.config import Training
from aut.training.data import Micro
from aut.training.flops import finish
from aut.training.memory import out_of_memory, release
from aut.training.model import Captioner
from aut.units import DECODER_TOKENS, RATE_HZ

FLOAT_B = 4  # weights, gradients and moments are float32
BUCKET = 500_000_000  # elements that DeepSpeed gathers before it sends them; aut/training/sharded.py asks for so many
ROUNDS = 3  # timed passes, of which the quickest counts: what else the machine does only adds

T = TypeVar("T")


class Trial:
    """`fits(clips, seconds)` of one model on one device; `took(clips, seconds)`."""

    def __init__(self, model: Captioner, device: torch.device, training: Training, world: int = 1) -> None:
        self._model, self._device, self._bf16 = model, device, training.precision == "bf16"
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self._reserve_b = reserve_b(trained, training.deepspeed_stage, world)

    def __call__(self, clips: int, seconds: float) -> bool:
        return self._tried(lambda: self._pass(silence(clips, seconds))) is not None

    def took(self, clips: int, seconds: float) -> float | None:
        """Seconds of a forward and backward pass that adds to gradients; None where it does not fit."""
        micro = silence(clips, seconds)
        return self._tried(lambda: min(self._pass(micro) for _ in range(1 + ROUNDS)))

    def _tried(self, work: Callable[[], T]) -> T | None:
        home = next(self._model.parameters()).device  # under ZeRO the model is not on the device yet
        was = self._model.training
        try:
            self._model.to(self._device).train()
            return work()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return None
        finally:
            self._model.zero_grad(set_to_none=True)
            self._model.to(home).train(was)
            release(self._device)

    def _pass(self, micro: Micro) -> float:
        reserve = torch.empty(self._reserve_b, dtype=torch.uint8, device=self._device)
        finish(self._device)
        start = time.perf_counter()
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            loss = self._model(micro, self._device).loss
        loss.backward()
        finish(self._device)
        took_s = time.perf_counter() - start
        del reserve
        return took_s


def reserve_b(trained: int, stage: int, world: int) -> int:
    """Bytes that a process holds in a step beside whole weights and gradients of `trained` parameters.

    Plain: two moments, and with several processes the buckets in which gradients are summed. ZeRO: its part of the
    moments, of the weights' copy and of the summed gradients, and buckets: two to send while the next one fills, one to
    gather; less the whole gradients, of which it holds a part only from stage 2.
    """
    if not stage:
        return FLOAT_B * trained * (2 if world == 1 else 3)
    shared = 4 * trained // world + 3 * min(BUCKET, trained)
    return FLOAT_B * max(0, shared - (trained if stage > 1 else 0))


def silence(clips: int, seconds: float) -> Micro:
    """A micro-batch of one length, with the longest targets."""
    n_B = np.full(clips, int(seconds * RATE_HZ), np.int64)
    ids_BL = np.zeros((clips, DECODER_TOKENS), np.int64)
    none_B = np.zeros(clips, np.int64)
    return Micro(np.zeros((clips, int(n_B[0])), np.int16), n_B, ids_BL, ids_BL.copy(), none_B, none_B.copy())
