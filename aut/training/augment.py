"""Augmentation: level jitter and SpecAugment, the same for a row whoever computes it.

In    waveforms or log-mel of a micro-batch and the positions of its rows
Out   the same, changed; random numbers come from (seed, position), and a position names epoch and row
Why   an augmentation tied to a worker or a batch would change with the number of processes and after a resume.
      Masks are those of SpecAugment (Park et al. 2019) without warping: two of at most F bins, two of at most a
      share of the frames, so that a one-second word is not wiped out.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aut.config import Training
from aut.training.memory import sent
from aut.units import MEL_HOP

MASKS = 2
BINS = 27 / 80  # F = 27 of 80 bins (Park et al. 2019, table 1, policy LD)
FRAMES = 0.05  # of a clip's frames: 'p' bounds a mask by the clip's length
MASKED = 0.0  # middle of Whisper's log-mel range


class Augment:
    """Does nothing where the params ask for nothing."""

    def __init__(self, training: Training, seed: int) -> None:
        self._jitter_db, self._spec, self._seed = training.gain_jitter_db, training.spec_augment, seed

    def gain(self, x_BT: Tensor, position_B: NDArray[np.int64]) -> Tensor:
        """Each clip louder or softer by up to `gain_jitter_db`. The model sees floats: nothing clips."""
        if not self._jitter_db:
            return x_BT
        db_B = [self._rng(p, 0).uniform(-self._jitter_db, self._jitter_db) for p in position_B]
        gain_B = torch.tensor([10.0 ** (db / 20.0) for db in db_B], dtype=torch.float32)
        return x_BT * sent(gain_B, x_BT.device)[:, None]

    def masks(self, mel_BMF: Tensor, n_B: Tensor, position_B: NDArray[np.int64]) -> Tensor:
        """Bands of bins and of frames set to MASKED."""
        if not self._spec:
            return mel_BMF
        keep_BMF = torch.ones(mel_BMF.shape, dtype=torch.bool)
        for keep_MF, samples, position in zip(keep_BMF, n_B.tolist(), position_B, strict=True):
            rng = self._rng(int(position), 1)
            bins, frames = keep_MF.shape[0], -(-samples // MEL_HOP)
            for _ in range(MASKS):
                keep_MF[_band(rng, bins, int(BINS * bins))] = False
                keep_MF[:, _band(rng, frames, int(FRAMES * frames))] = False
        return mel_BMF.masked_fill(~sent(keep_BMF, mel_BMF.device), MASKED)

    def _rng(self, position: int, what: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, what, int(position)])


def _band(rng: np.random.Generator, length: int, widest: int) -> slice:
    width = int(rng.integers(0, widest + 1))
    start = int(rng.integers(0, max(1, length - width)))
    return slice(start, start + width)
