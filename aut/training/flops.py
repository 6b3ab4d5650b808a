"""Flops: what a training step must compute, and what this device can: their ratio is the model FLOP utilisation.

In    a Whisper's configuration; samples and target tokens of each clip
Out   floating-point operations forward and backward, of valid audio only; operations a second of a matrix product
Why   'clips a second' depends on the clips. Padding and recomputation are work, but not of the model: they lower the
      utilisation instead of hiding in it. The device's rate is measured, for a data sheet's is never reached.
      Price: norms, activations and log-mel are left out, some 2 %.
Run   `training_flops(Shape.of(whisper.config), n_B, tokens_B) / seconds / matrix_rate(device, torch.bfloat16)`

numpy and torch only, so that a bare GPU host can import it (benchmarks/train.py does).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

SAMPLES_A_FRAME = 320  # of the encoder: 20 ms
BACKWARD = 2.0  # times forward: gradients of inputs and of weights
MATRIX = {"cuda": (8192, 50), "cpu": (512, 4)}  # width and rounds: some 10 ms on either


@dataclass(frozen=True)
class Shape:
    """Widths and depths that decide the cost."""

    d: int
    encoder_layers: int
    decoder_layers: int
    encoder_ffn: int
    decoder_ffn: int
    mels: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From a transformers WhisperConfig."""
        return cls(
            config.d_model,
            config.encoder_layers,
            config.decoder_layers,
            config.encoder_ffn_dim,
            config.decoder_ffn_dim,
            config.num_mel_bins,
            config.vocab_size,
        )


def training_flops(shape: Shape, samples_N: NDArray[Any], tokens_N: NDArray[Any]) -> float:
    """Forward and backward of N clips: two operations a multiplication and addition, no recomputation."""
    f = np.ceil(np.asarray(samples_N, np.float64) / SAMPLES_A_FRAME)
    t, d = np.asarray(tokens_N, np.float64), float(shape.d)
    stem = 2 * f * 3 * (2 * shape.mels * d + d * d)  # the first convolution sees two mel frames a frame
    encoder = shape.encoder_layers * (8 * f * d**2 + 4 * f * d * shape.encoder_ffn + 4 * f**2 * d)
    own = 8 * t * d**2 + 2 * t**2 * d + 4 * t * d * shape.decoder_ffn  # causal: half of the pairs
    cross = 4 * t * d**2 + 4 * f * d**2 + 4 * t * f * d
    decoder = shape.decoder_layers * (own + cross) + 2 * t * d * shape.vocabulary
    return float((1.0 + BACKWARD) * (stem + encoder + decoder).sum())


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a product of square matrices on `device`, after one that is not counted.

    Of random numbers: a GPU multiplies equal ones faster than it ever will a model's.
    """
    size, rounds = MATRIX.get(device.type, MATRIX["cpu"])
    random = torch.Generator(device).manual_seed(0)  # the caller's random numbers stay as they are
    a, b = (torch.randn(size, size, device=device, dtype=dtype, generator=random) for _ in range(2))
    a @ b
    finish(device)
    start = time.perf_counter()
    for _ in range(rounds):
        a @ b
    finish(device)
    return 2.0 * size**3 * rounds / (time.perf_counter() - start)


def finish(device: torch.device) -> None:
    """Waits until the device has done what it was told: calls return before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
