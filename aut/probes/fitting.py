"""Fits a protocol's divisions: C chosen inside each training part, then one prediction a test clip.

In    x_ND, y_N, group_N, divisions
Out   Fit rows (division, seed, predicted classes, C), and one head fitted on all clips, for serving
Why   whatever is chosen is chosen on inner folds of the training rows. Test labels are read by nobody here but the
      caller who scores. Price: inner fits are looser, as they only rank values of C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aut.config import Probe
from aut.probes import adam, knn
from aut.probes.logistic import path
from aut.probes.splits import Division, inner_folds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Fit:
    """Predictions [len(division.test)] of one fit; `c` and the gradient left are None where nothing was chosen."""

    division: Division
    seed: int
    predicted: Rows
    c: float | None = None
    gradient: float | None = None


@dataclass(frozen=True)
class Head:
    """logits = (x - mean) / scale @ weight.T + bias; weight [C, D], bias [C], mean and scale [D]."""

    weight: Array
    bias: Array
    mean: Array
    scale: Array
    c: float | None


def logistic(
    x_ND: Array, y_N: Rows, group_N: Rows, divisions: Sequence[Division], classes: int, probe: Probe, whole: bool
) -> tuple[list[Fit], Head | None]:
    """Every division at its own C; with `whole` also the head on all clips, at the median of the chosen C."""
    chosen = choose_c(x_ND, y_N, group_N, [d.train for d in divisions], classes, probe)
    fits = []
    for d, c in zip(divisions, chosen, strict=True):
        head = next(path(x_ND[d.train], y_N[d.train], classes, [c], probe.tolerance))
        fits.append(Fit(d, 0, head.predict(x_ND[d.test]), c, head.gradient))
    if not whole:
        return fits, None
    c = sorted(chosen)[(len(chosen) - 1) // 2]
    found = next(path(x_ND, y_N, classes, [c], probe.tolerance))
    return fits, Head(found.weight, found.bias, found.mean, found.scale, c)


def choose_c(x_ND: Array, y_N: Rows, group_N: Rows, parts: Sequence[Rows], classes: int, probe: Probe) -> list[float]:
    """For each training part the C with the most right inner predictions, the smallest where several tie."""
    grid = sorted(probe.c_grid)
    right = np.zeros((len(parts), len(grid)))
    for part, rows in enumerate(parts if len(grid) > 1 else []):
        for fit, held in inner_folds(rows, y_N, group_N, probe.inner_folds):
            heads = path(x_ND[fit], y_N[fit], classes, grid, probe.inner_tolerance)
            right[part] += [(head.predict(x_ND[held]) == y_N[held]).sum() for head in heads]
    return [grid[k] for k in right.argmax(axis=1).tolist()]


def linear_adam(
    x_ND: Array, y_N: Rows, divisions: Sequence[Division], classes: int, probe: Probe, whole: bool, paired: bool
) -> tuple[list[Fit], Head | None]:
    """Every division with every seed; `paired`: random division r with seed r only."""
    settings = (probe.adam.lr, probe.adam.batch, probe.adam.epochs)
    jobs = [(d, s) for d in divisions for s in ([probe.seeds[d.repeat]] if paired else probe.seeds)]
    parts = [d.train for d, _ in jobs] + ([np.arange(len(y_N))] if whole else [])
    seeds = [s for _, s in jobs] + ([probe.seeds[0]] if whole else [])
    weight, bias = adam.fit(x_ND, y_N, parts, seeds, classes, *settings)
    fits = [
        Fit(d, s, np.asarray((x_ND[d.test] @ weight[i].T + bias[i]).argmax(axis=1))) for i, (d, s) in enumerate(jobs)
    ]
    if not whole:
        return fits, None
    width = x_ND.shape[1]
    return fits, Head(weight[-1], bias[-1], np.zeros(width, np.float32), np.ones(width, np.float32), None)


def nearest(x_ND: Array, y_N: Rows, divisions: Sequence[Division], classes: int, neighbours: int) -> list[Fit]:
    return [Fit(d, 0, knn.predict(x_ND, y_N, d.train, d.test, classes, neighbours)) for d in divisions]
