"""Fits a protocol's divisions: C chosen inside each training part, then one prediction a test clip.

In    x_ND, y_N, group_N, divisions
Out   Fit rows (division, seed, predicted classes, C), and one head fitted on all clips, for serving
Why   inner fits of all folds share a matrix product, and each C starts from the one before. Test labels are read
      by nobody here but the caller who scores. Price: inner folds are fitted to ten times the tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aut.config import Probe
from aut.probes import adam, knn
from aut.probes.logistic import Problem
from aut.probes.splits import Division, inner_folds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Rows = NDArray[np.int64]

INNER_SLACK = 10.0  # inner folds only rank values of C


@dataclass(frozen=True)
class Fit:
    """Predictions [len(division.test)] of one fit; `c` is None where nothing was chosen."""

    division: Division
    seed: int
    predicted: Rows
    c: float | None = None


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
    parts = [d.train for d in divisions]
    if whole:
        parts.append(np.arange(len(y_N)))
        chosen = [*chosen, sorted(chosen)[(len(chosen) - 1) // 2]]
    problem = Problem(x_ND, y_N, _mask(parts, len(y_N)), classes)
    fits: dict[int, Fit] = {}
    head = None
    for c in sorted(set(chosen)):
        rows = np.array([i for i, value in enumerate(chosen) if value == c])
        heads = problem.fit(c, probe.tolerance, rows)
        for place, i in enumerate(rows.tolist()):
            if i == len(divisions):
                mean, scale = heads.mean_BD[place], heads.scale_BD[place]
                weight = heads.weight_BCD[place]
                head = Head(weight * scale, heads.bias_BC[place] + weight @ mean, mean, scale, c)
            else:
                fits[i] = Fit(divisions[i], 0, heads.predict(place, x_ND[divisions[i].test]), c)
    return [fits[i] for i in range(len(divisions))], head


def choose_c(x_ND: Array, y_N: Rows, group_N: Rows, parts: Sequence[Rows], classes: int, probe: Probe) -> list[float]:
    """For each training part the C with the most right inner predictions, the smallest where several tie."""
    grid = sorted(probe.c_grid)
    inner = [(p, fit, held) for p, rows in enumerate(parts) for fit, held in _inner(rows, y_N, group_N, probe)]
    if len(grid) == 1 or not inner:
        return [grid[0]] * len(parts)
    problem = Problem(x_ND, y_N, _mask([fit for _, fit, _ in inner], len(y_N)), classes)
    right = np.zeros((len(parts), len(grid)))
    state = None
    for column, c in enumerate(grid):
        heads = problem.fit(c, probe.tolerance * INNER_SLACK, np.arange(len(inner)), state)
        state = heads.state
        for i, (part, _, held) in enumerate(inner):
            right[part, column] += (heads.predict(i, x_ND[held]) == y_N[held]).sum()
    return [grid[k] for k in right.argmax(axis=1).tolist()]


def linear_adam(
    x_ND: Array, y_N: Rows, divisions: Sequence[Division], classes: int, probe: Probe, whole: bool, paired: bool
) -> tuple[list[Fit], Head | None]:
    """Every division with every seed; `paired`: random division r with seed r only."""
    settings = (probe.adam["lr"], int(probe.adam["batch"]), int(probe.adam["epochs"]))
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


def _inner(rows: Rows, y_N: Rows, group_N: Rows, probe: Probe) -> list[tuple[Rows, Rows]]:
    return inner_folds(rows, y_N, group_N, probe.inner_folds)


def _mask(parts: Sequence[Rows], clips: int) -> NDArray[np.bool_]:
    mask = np.zeros((len(parts), clips), bool)
    for row, part in zip(mask, parts, strict=True):
        row[part] = True
    return mask
