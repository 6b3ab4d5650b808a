"""Multinomial logistic regression, many fits over one feature matrix at once.

In    x_ND float32 features of all clips, y_N class numbers, use_BN which clips each of B fits trains on, c_B
Out   weights in the coordinates of x: weight_BCD, bias_BC, and how many iterations were needed
Why   the objective is scikit-learn's (mean log loss + |W|^2 / (2 C n), features standardised by each fit's own
      training part), the work is not: folds share their clips, so one matrix product serves every fit, and a
      preconditioner from the features' covariance makes L-BFGS need a tenth of the iterations. Price: clips a fit
      leaves out are computed and masked.

`B` fits, `N` clips, `D` features, `C` classes, `P` parameters of a fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

MEMORY = 10  # pairs L-BFGS keeps, scikit-learn's number
MAX_ITERATIONS = 300
HALVINGS = 12
ARMIJO = 1e-4
NOISE = 1e-6  # relative: losses are sums of float32 terms


@dataclass(frozen=True)
class Heads:
    """B linear classifiers: logits = x @ weight.T + bias. `state` starts a next fit (same x, same fits)."""

    weight_BCD: Array
    bias_BC: Array
    mean_BD: Array
    scale_BD: Array
    iterations: int
    state: Array

    def predict(self, fit: int, x_ND: Array) -> NDArray[np.int64]:
        """Class numbers [N] by one of the fits."""
        return np.asarray((x_ND @ self.weight_BCD[fit].T + self.bias_BC[fit]).argmax(axis=1))


class Problem:
    """Features, classes and training parts, prepared once for a whole path of C values.

    x_ND finite; y_N in 0 ... classes - 1; use_BN bool, at least one clip a fit.
    """

    def __init__(self, x_ND: Array, y_N: NDArray[np.int64], use_BN: NDArray[np.bool_], classes: int) -> None:
        x = np.asarray(x_ND, np.float64)
        self.shift, self.unit = x.mean(axis=0), _nonzero(x.std(axis=0))
        centred = (x - self.shift) / self.unit
        self.use = use_BN.astype(np.float64)
        self.n_B = self.use.sum(axis=1)
        self.mean_BD = self.use @ centred / self.n_B[:, None]
        spread = self.use @ (centred * centred) / self.n_B[:, None] - self.mean_BD**2
        self.scale_BD = _nonzero(np.sqrt(np.maximum(spread, 0.0)), 1e-6)
        self.x = centred.astype(np.float32)
        self.y, self.classes = y_N, classes
        share = 1.0 / classes
        self.covariance = (centred.T @ centred / len(x)) * share * (1.0 - share)
        self.curvature = share * (1.0 - share)

    def fit(self, c: float, tolerance: float, rows: NDArray[np.int64], start: Array | None = None) -> Heads:
        """Fits `rows` of the B training parts at one C; stops where no mean gradient exceeds `tolerance`."""
        part = _Part(self, rows, c)
        state = np.zeros((len(rows), part.width, self.classes), np.float32) if start is None else start.copy()
        iterations = _minimise(part, state, tolerance)
        scale, mean = self.scale_BD[rows], self.mean_BD[rows]
        weight = np.swapaxes(state[:, :-1], 1, 2) / (scale * self.unit)[:, None]
        offset = mean * self.unit + self.shift
        bias = state[:, -1] - np.einsum("bcd,bd->bc", weight, offset)
        as32 = np.float32
        return Heads(
            weight.astype(as32),
            bias.astype(as32),
            offset.astype(as32),
            (scale * self.unit).astype(as32),
            iterations,
            state,
        )


class _Part:
    """The objective of some of the fits at one C: state [B, D + 1, C] -> loss [B], gradient of the same shape."""

    def __init__(self, problem: Problem, rows: NDArray[np.int64], c: float) -> None:
        self.problem, self.rows, self.c = problem, rows, c
        self.n = problem.n_B[rows]
        self.penalty = (1.0 / (c * self.n)).astype(np.float32)
        self.mask = (problem.use[rows] / self.n[:, None]).astype(np.float32)
        self.mean = problem.mean_BD[rows].astype(np.float32)
        self.scale = problem.scale_BD[rows].astype(np.float32)
        self.width = problem.x.shape[1] + 1
        ridge = float(np.median(self.penalty)) + 1e-7
        inverse = np.linalg.inv(problem.covariance + ridge * np.eye(self.width - 1))
        self.inverse = np.asarray(inverse, np.float32)
        self.last = np.float32(1.0 / problem.curvature)

    def keep(self, on: NDArray[np.bool_]) -> _Part:
        """The same objective for the fits that still move."""
        part = object.__new__(_Part)
        part.__dict__ = self.__dict__ | {k: getattr(self, k)[on] for k in ("rows", "n", "penalty", "mask")}
        part.mean, part.scale = self.mean[on], self.scale[on]
        return part

    def __call__(self, state: Array) -> tuple[NDArray[np.float64], Array]:
        x, y = self.problem.x, self.problem.y
        fits, width, classes = state.shape
        weight = state[:, :-1] / self.scale[:, :, None]
        bias = state[:, -1] - np.einsum("bd,bdc->bc", self.mean, weight)
        flat = weight.transpose(1, 0, 2).reshape(width - 1, fits * classes)
        z = (x @ flat).reshape(len(x), fits, classes)
        z += bias
        z -= z.max(axis=2, keepdims=True)
        truth = np.take_along_axis(z, y[:, None, None], axis=2)[:, :, 0]
        np.exp(z, out=z)
        total = z.sum(axis=2)
        loss = np.einsum("nb,bn->b", np.log(total) - truth, self.mask, dtype=np.float64)
        z *= (self.mask.T / total)[:, :, None]
        at = np.arange(len(x))
        z[at, :, y] -= self.mask.T
        slope_bias = z.sum(axis=0)
        slope = (x.T @ z.reshape(len(x), -1)).reshape(width - 1, fits, classes).transpose(1, 0, 2)
        slope = (slope - self.mean[:, :, None] * slope_bias[:, None]) / self.scale[:, :, None]
        slope += self.penalty[:, None, None] * state[:, :-1]
        loss += 0.5 * self.penalty * np.einsum("bdc,bdc->b", state[:, :-1], state[:, :-1], dtype=np.float64)
        return loss, np.concatenate([slope, slope_bias[:, None]], axis=1)

    def precondition(self, gradient: Array) -> Array:
        fits, width, classes = gradient.shape
        flat = gradient[:, :-1].transpose(1, 0, 2).reshape(width - 1, fits * classes)
        body = (self.inverse @ flat).reshape(width - 1, fits, classes).transpose(1, 0, 2)
        return np.concatenate([body, gradient[:, -1:] * self.last], axis=1)


def _minimise(part: _Part, state: Array, tolerance: float) -> int:
    """Preconditioned L-BFGS on every fit in step, those that have converged leaving; `state` is filled in place."""
    alive = np.arange(len(state))
    here = state
    loss, slope = part(here)
    memory: list[tuple[Array, Array, Array]] = []
    for iteration in range(MAX_ITERATIONS):
        moving = np.abs(slope).max(axis=(1, 2)) > tolerance
        if not moving.all():
            state[alive] = here
            if not moving.any():
                return iteration
            alive, here, loss, slope = alive[moving], here[moving], loss[moving], slope[moving]
            part = part.keep(moving)
            memory = [(s[moving], y[moving], r[moving]) for s, y, r in memory]
        step = -_direction(part, slope, memory)
        there, new_loss, new_slope = _advance(part, here, step, loss, slope)
        s, y = there - here, new_slope - slope
        curvature = np.einsum("bdc,bdc->b", s, y, dtype=np.float64)
        rho = np.where(curvature > 1e-20, 1.0 / np.maximum(curvature, 1e-20), 0.0).astype(np.float32)
        memory = [*memory[-(MEMORY - 1) :], (s, y, rho)]
        here, loss, slope = there, new_loss, new_slope
    state[alive] = here
    return MAX_ITERATIONS


def _direction(part: _Part, slope: Array, memory: list[tuple[Array, Array, Array]]) -> Array:
    """Two-loop recursion (Nocedal & Wright, algorithm 7.4); a pair with rho = 0 is skipped."""
    q = slope.copy()
    used = []
    for s, y, rho in reversed(memory):
        alpha = rho * np.einsum("bdc,bdc->b", s, q)
        q -= alpha[:, None, None] * y
        used.append(alpha)
    q = part.precondition(q)
    if memory:
        s, y, rho = memory[-1]
        size = np.einsum("bdc,bdc->b", y, part.precondition(y))
        q *= np.where(rho > 0, 1.0 / np.maximum(rho * size, 1e-20), 1.0).astype(np.float32)[:, None, None]
    for (s, y, rho), alpha in zip(memory, reversed(used), strict=True):
        beta = rho * np.einsum("bdc,bdc->b", y, q)
        q += (alpha - beta)[:, None, None] * s
    return q


def _advance(
    part: _Part, here: Array, step: Array, loss: NDArray[np.float64], slope: Array
) -> tuple[Array, NDArray[np.float64], Array]:
    """Halves each fit's step until it descends; the full step nearly always does."""
    descent = np.einsum("bdc,bdc->b", step, slope, dtype=np.float64)
    length = np.ones(len(here), np.float32)
    for _ in range(HALVINGS):
        there = here + length[:, None, None] * step
        new_loss, new_slope = part(there)
        bad = new_loss > loss + ARMIJO * length * descent + NOISE * np.abs(loss)
        if not bad.any():
            break
        length[bad] *= 0.5
    return there, new_loss, new_slope


def _nonzero(scale: NDArray[np.float64], floor: float = 1e-12) -> NDArray[np.float64]:
    """A feature that does not vary keeps its unit, as in scikit-learn's StandardScaler."""
    return np.where(scale > floor, scale, 1.0)
