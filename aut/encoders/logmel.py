"""Log-mel statistics: mean and deviation of each log-mel bin over time, the baseline with no network at all.

In    an encoder folder of kind 'logmel': encoder.json with `mels`
Out   embeddings of 2 x mels; `encode` gives the log-mel frames themselves, 100 a second
Why   what a large encoder adds must be more than what the spectrum's average already tells
Run   `open_encoder(folder).embed(x_BT, n_B, "valid")`
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aut.audio.mel import MAX_FRAMES, log_mel
from aut.encoders.clipwise import ClipEncoder
from aut.units import MEL_HOP, RATE_HZ


class LogMel(ClipEncoder):
    """'padded' takes the same statistics over 30-s windows, silence included."""

    rate_hz, hop_s = RATE_HZ, MEL_HOP / RATE_HZ

    def __init__(self, folder: Path, facts: Mapping[str, Any], device: str) -> None:
        super().__init__(folder, facts, device)
        self.mels = int(facts["mels"])
        self.width = 2 * self.mels

    def frames(self, x_BT: Tensor, n_B: Tensor, padded: bool, layers: bool) -> tuple[list[Tensor], Tensor]:
        mel_BMF, _ = log_mel(x_BT, n_B, self.mels, padded)
        f_B = torch.full_like(n_B, MAX_FRAMES) if padded else (n_B + MEL_HOP - 1) // MEL_HOP
        return [mel_BMF.transpose(1, 2)], f_B

    def moments(self, h_BFD: Tensor) -> Tensor:
        return torch.cat([h_BFD, h_BFD.square()], dim=2)

    def finish(self, mean_BD: NDArray[np.float64]) -> NDArray[np.float64]:
        mean, square = np.split(mean_BD, 2, axis=1)
        return np.concatenate([mean, np.sqrt(np.maximum(square - mean**2, 0.0))], axis=1)


load = LogMel
