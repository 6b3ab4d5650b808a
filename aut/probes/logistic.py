"""Multinomial logistic regression: one training part, a path of C values, scikit-learn's objective.

In    x_ND float32 features of a part's clips, y_N class numbers, the values of C in the order they are fitted
Out   a Linear for each C: weights in the coordinates of x, the largest gradient left, the products it took
Why   the objective (mean log loss + |W|^2 / (2 C N), features standardised by the part itself, intercepts free) and
      the stop (no mean gradient above the tolerance) are scikit-learn's, the work is not. With few clips the unknowns
      are one number a clip and class: the gradient, seen through the Gram matrix, is then the residual itself, and a
      step costs one small product instead of two wide ones. Newton's equations are solved by conjugate gradients
      whose first directions, the leading ones of the features, come ready. Each C starts from the one before.
      Price: a Gram matrix a part (4 N^2 bytes), and only where N is below twice D: beyond, the wide products.
Run   python -m benchmarks.probe

`N` clips, `D` features, `C` classes, `P` unknowns a class (N, or D + 1), `K` leading directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Operator = Callable[[Array], Array]

DIRECTIONS = 64  # leading ones that come ready; half as many need twice the products, twice as many save few
PATIENCE = 5  # Newton steps without a smaller gradient: as far as float32 goes
INNER_STEPS = 25  # beyond, another Newton step is worth more
HALVINGS = 12
ARMIJO = 1e-4
NOISE = 3e-5  # relative: losses are sums of float32 terms, and Newton's full step is nearly always the right one
LOOSE, EXACT = 0.5, 1e-3  # how far the first Newton equations are solved, and the last at most: it is float32


@dataclass(frozen=True)
class Linear:
    """logits = (x - mean) / scale @ weight.T + bias; weight [C, D], bias [C] (-inf: a class the part has not)."""

    weight: Array
    bias: Array
    mean: Array
    scale: Array
    c: float
    gradient: float  # largest of the mean gradient, in scikit-learn's coordinates
    products: int  # with the features or the Gram matrix, counted as one each

    def predict(self, x_ND: Array) -> NDArray[np.int64]:
        """Class numbers [N]."""
        weight = self.weight / self.scale
        return np.asarray((x_ND @ weight.T + (self.bias - weight @ self.mean)).argmax(axis=1))


def path(x_ND: Array, y_N: NDArray[np.int64], classes: int, cs: Sequence[float], tolerance: float) -> Iterator[Linear]:
    """One fit a value of C, each from the one before. x_ND finite, y_N in 0 ... classes - 1, at least one clip.

    A class without a clip gets the bias -inf, as scikit-learn would not know it.
    """
    mean, scale = standard(x_ND)
    z_ND = (x_ND - mean) / scale
    present, y = np.unique(y_N, return_inverse=True)
    space: Space = Gram(z_ND) if len(z_ND) < 2 * z_ND.shape[1] else Features(z_ND)
    state: Array = np.zeros((space.unknowns, len(present)), np.float32)
    for c in cs:
        before = space.products
        state, gradient = _newton(space, y, state, np.float32(1.0 / (c * len(y))), tolerance)
        found = space.weights(state)
        weight, bias = np.zeros((classes, len(mean)), np.float32), np.full(classes, -np.inf, np.float32)
        weight[present], bias[present] = found[:-1].T, found[-1]
        yield Linear(weight, bias, mean, scale, c, gradient, space.products - before)


def standard(x_ND: Array) -> tuple[Array, Array]:
    """Mean and deviation of each feature; one that does not vary keeps its unit, as with scikit-learn's scaler."""
    mean = x_ND.mean(axis=0, dtype=np.float64)
    spread = np.sqrt(np.square(x_ND - mean.astype(np.float32)).mean(axis=0, dtype=np.float64))
    return mean.astype(np.float32), np.where(spread > 1e-7 * np.abs(mean), spread, 1.0).astype(np.float32)


class Space(Protocol):
    """Where the unknowns u [P, C] live. `leading` are its K first directions and their shares of the features."""

    unknowns: int
    products: int
    leading: tuple[Array, Array]

    def logits(self, u: Array) -> Array:
        """[N, C], intercept included."""

    def pull(self, q: Array) -> Array:
        """The gradient [P, C] of a function of the logits whose gradient there is q [N, C]."""

    def ridge(self, u: Array) -> Array:
        """The gradient of half the squared weights: u without its intercepts."""

    def inner(self, u: Array, logits: Array, v: Array) -> float:
        """Of the weights that u and v stand for; `logits` are u's."""

    def weights(self, u: Array) -> Array:
        """[D + 1, C] in standardised coordinates, the intercepts last."""


class Features:
    """The unknowns are the weights and, last, the intercepts: for many clips."""

    def __init__(self, z_ND: Array) -> None:
        self.z: Array = np.concatenate([z_ND, np.ones((len(z_ND), 1), np.float32)], axis=1)
        self.unknowns, self.products = self.z.shape[1], 0
        self.leading = _leading(lambda u: self.z.T @ (self.z @ u), self.unknowns, len(z_ND))

    def logits(self, u: Array) -> Array:
        self.products += 1
        return self.z @ u

    def pull(self, q: Array) -> Array:
        self.products += 1
        return self.z.T @ q

    def ridge(self, u: Array) -> Array:
        rest = u.copy()
        rest[-1] = 0.0
        return rest

    def inner(self, u: Array, logits: Array, v: Array) -> float:
        return float(np.vdot(u, v))

    def weights(self, u: Array) -> Array:
        return u


class Gram:
    """The unknowns are one weight a clip (Kimeldorf & Wahba 1971): w = z.T @ u, intercept = sum of u.

    Features sum to zero over the part, so the constant feature of the intercepts is orthogonal to all others, and
    what it adds to u is u's mean.
    """

    def __init__(self, z_ND: Array) -> None:
        self.z = z_ND
        self.gram: Array = z_ND @ z_ND.T + np.float32(1.0)
        self.unknowns, self.products = len(z_ND), 0
        self.leading = _leading(lambda u: self.gram @ u, self.unknowns, len(z_ND))

    def logits(self, u: Array) -> Array:
        self.products += 1
        logits: Array = self.gram @ u
        return logits

    def pull(self, q: Array) -> Array:
        return q

    def ridge(self, u: Array) -> Array:
        rest: Array = u - u.mean(axis=0)
        return rest

    def inner(self, u: Array, logits: Array, v: Array) -> float:
        return float(np.vdot(logits, v))

    def weights(self, u: Array) -> Array:
        return np.concatenate([self.z.T @ u, u.sum(axis=0)[None]])


def _leading(operator: Operator, size: int, clips: int) -> tuple[Array, Array]:
    """Directions [P, K] and their eigenvalues [K] over the clips, by a random range finder (Halko et al. 2011)."""
    count = min(DIRECTIONS, size)
    start = np.random.default_rng([size, count]).normal(size=(size, count)).astype(np.float32)
    basis = np.linalg.qr(operator(start))[0]
    within = basis.T @ operator(basis)
    values, vectors = np.linalg.eigh((within + within.T) / 2)
    return basis @ vectors, np.maximum(values, 0.0) / np.float32(clips)


def _newton(space: Space, y_N: NDArray[np.int64], u: Array, penalty: np.float32, stop: float) -> tuple[Array, float]:
    """Minimises from u; returns the best point and the largest gradient there."""
    logits = space.logits(u)
    loss, best, since, found, first = _loss(space, u, logits, y_N, penalty), np.inf, 0, u, 0.0
    while best > stop and since < PATIENCE:
        p = _softmax(logits)
        residual = p / np.float32(len(p))
        residual[np.arange(len(p)), y_N] -= np.float32(1.0 / len(p))
        gradient = space.pull(residual) + penalty * space.ridge(u)
        largest = float(np.abs(space.weights(gradient)).max())
        since += 1
        if largest < best:
            best, since, found = largest, 0, u
        if largest > stop:
            first = first or largest
            # The closer, the more exactly, so that steps shrink faster and faster; never beyond what is asked for.
            share = max(min(LOOSE, (largest / first) ** 0.5), 0.5 * stop / largest, EXACT)
            step, along = _solve(space, p, penalty, -gradient, share)
            length, loss = _descend(
                space, u, logits, step, along, y_N, penalty, loss, space.inner(step, along, gradient)
            )
            u, logits = u + length * step, logits + length * along
    return found, best


def _solve(space: Space, p: Array, penalty: np.float32, right: Array, share: float) -> tuple[Array, Array]:
    """Newton's step and its logits, by conjugate gradients until `share` of the right side is left.

    The logits of a direction follow its recurrence, so a turn costs one product with the Gram matrix, or two with
    the features. Leading directions are scaled as if every clip were as undecided as the mean clip.
    """
    basis, values = space.leading
    undecided = float((p * (1.0 - p)).mean())
    gain = (undecided * values[0] + penalty) / (undecided * values + penalty) - 1.0
    clips = np.float32(1.0 / len(p))

    def scaled(r: Array) -> tuple[Array, Array, float]:
        d: Array = r + basis @ (gain[:, None] * (basis.T @ r))
        seen = space.logits(d)
        return d, seen, space.inner(d, seen, r)

    left = right.copy()
    direction, logits, size = scaled(left)
    step, along, enough = np.zeros_like(right), np.zeros_like(logits), share * share * size
    for _ in range(INNER_STEPS):
        curved = p * logits
        curved -= p * curved.sum(axis=1, keepdims=True)
        curved *= clips
        image = space.pull(curved) + penalty * space.ridge(direction)
        length = np.float32(size / space.inner(direction, logits, image))
        step += length * direction
        along += length * logits
        left -= length * image
        fresh, fresh_logits, now = scaled(left)
        if now <= enough or not now > 0.0:
            break
        direction = fresh + np.float32(now / size) * direction
        logits = fresh_logits + np.float32(now / size) * logits
        size = now
    return step, along


def _descend(
    space: Space,
    u: Array,
    logits: Array,
    step: Array,
    along: Array,
    y_N: NDArray[np.int64],
    penalty: np.float32,
    loss: float,
    slope: float,
) -> tuple[np.float32, float]:
    """Halves a step until it descends; the full one nearly always does. Returns its length and the loss there."""
    for length in 0.5 ** np.arange(HALVINGS, dtype=np.float32):
        there = _loss(space, u + length * step, logits + length * along, y_N, penalty)
        if there <= loss + ARMIJO * float(length) * slope + NOISE * abs(loss):
            break
    return length, there


def _softmax(logits: Array) -> Array:
    p: Array = logits - logits.max(axis=1, keepdims=True)
    np.exp(p, out=p)
    p /= p.sum(axis=1, keepdims=True)
    return p


def _loss(space: Space, u: Array, logits: Array, y_N: NDArray[np.int64], penalty: np.float32) -> float:
    top = logits.max(axis=1)
    mean = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - logits[np.arange(len(y_N)), y_N]
    return float(mean.mean(dtype=np.float64)) + 0.5 * float(penalty) * space.inner(u, logits, space.ridge(u))
