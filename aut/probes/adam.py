"""A linear layer trained with Adam, as the paper's probe; many folds and seeds in one batched fit.

In    x_ND float32 (not standardised: the paper names no normalisation), y_N, the training rows of each fit, its seed
Out   weight_BCD, bias_BC
Why   a fit's initial weights and batch order come from its own seed alone, so a batched fit equals a single one.
      arXiv 2604.10438, section 4.1: Adam 1e-3, batch 64, 50 epochs, nn.Linear's initialisation.

`B` fits, `M` rows of a batch, `D` features, `C` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

BETAS = (0.9, 0.999)
EPSILON = 1e-8
GATHERED = 1 << 26  # float32 values of one gathered batch, 256 MiB: more fits are trained in groups


def initial(seed: int, width: int, classes: int) -> tuple[Array, Array]:
    """weight [D, C], bias [C], uniform in +-1/sqrt(D) as nn.Linear starts."""
    rng = np.random.default_rng([seed, width, classes])
    bound = width**-0.5
    weight = rng.uniform(-bound, bound, (width, classes)).astype(np.float32)
    return weight, rng.uniform(-bound, bound, classes).astype(np.float32)


def order(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    """The order in which an epoch visits a fit's training rows."""
    return np.random.default_rng([seed, 1, epoch]).permutation(rows)


def fit(
    x_ND: Array,
    y_N: NDArray[np.int64],
    train: Sequence[NDArray[np.int64]],
    seeds: Sequence[int],
    classes: int,
    lr: float,
    batch: int,
    epochs: int,
) -> tuple[Array, Array]:
    """weight_BCD and bias_BC of one fit a (train, seed) pair; fits with equally many rows go in step."""
    width = x_ND.shape[1]
    weight = np.empty((len(train), width, classes), np.float32)
    bias = np.empty((len(train), classes), np.float32)
    together = max(1, GATHERED // (batch * width))
    for length in sorted({len(t) for t in train}):
        same = [i for i, t in enumerate(train) if len(t) == length]
        for start in range(0, len(same), together):
            group = same[start : start + together]
            rows = np.stack([train[i] for i in group])
            found = _train(x_ND, y_N, rows, [seeds[i] for i in group], classes, lr, batch, epochs)
            weight[group], bias[group] = found
    return np.swapaxes(weight, 1, 2), bias


def _train(
    x_ND: Array,
    y_N: NDArray[np.int64],
    rows_BN: NDArray[np.int64],
    seeds: Sequence[int],
    classes: int,
    lr: float,
    batch: int,
    epochs: int,
) -> tuple[Array, Array]:
    starts = [initial(seed, x_ND.shape[1], classes) for seed in seeds]
    weight, bias = np.stack([w for w, _ in starts]), np.stack([b for _, b in starts])
    states = [_Adam(weight, lr), _Adam(bias, lr)]
    for epoch in range(epochs):
        visits = np.stack([order(seed, epoch, rows_BN.shape[1]) for seed in seeds])
        shuffled = np.take_along_axis(rows_BN, visits, axis=1)
        for start in range(0, rows_BN.shape[1], batch):
            picked = shuffled[:, start : start + batch]
            x, y = x_ND[picked], y_N[picked]
            slope = _slope(x @ weight + bias[:, None], y)
            states[0].step(np.swapaxes(x, 1, 2) @ slope)
            states[1].step(slope.sum(axis=1))
    return weight, bias


def _slope(z_BMC: Array, y_BM: NDArray[np.int64]) -> Array:
    """Gradient of the mean cross entropy with respect to the logits, in place."""
    z_BMC -= z_BMC.max(axis=2, keepdims=True)
    np.exp(z_BMC, out=z_BMC)
    z_BMC /= z_BMC.sum(axis=2, keepdims=True)
    fit, row = np.ogrid[: y_BM.shape[0], : y_BM.shape[1]]
    z_BMC[fit, row, y_BM] -= 1.0
    z_BMC /= np.float32(y_BM.shape[1])
    return z_BMC


class _Adam:
    """Kingma & Ba 2015 with bias correction, in torch's order of operations; `value` changes in place."""

    def __init__(self, value: Array, lr: float) -> None:
        self.value, self.lr, self.steps = value, lr, 0
        self.first, self.second, self.scratch = np.zeros_like(value), np.zeros_like(value), np.empty_like(value)

    def step(self, slope: Array) -> None:
        self.steps += 1
        one, two = (np.float32(b) for b in BETAS)
        self.first += (slope - self.first) * (1 - one)
        self.second *= two
        np.multiply(slope, slope, out=self.scratch)
        self.scratch *= 1 - two
        self.second += self.scratch
        np.sqrt(self.second, out=self.scratch)
        self.scratch /= np.float32((1 - BETAS[1] ** self.steps) ** 0.5)
        self.scratch += np.float32(EPSILON)
        np.divide(self.first, self.scratch, out=self.scratch)
        self.scratch *= np.float32(self.lr / (1 - BETAS[0] ** self.steps))
        self.value -= self.scratch
