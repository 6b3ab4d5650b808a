"""Nearest neighbours by cosine: what the space says before anything is fitted to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 512  # test clips compared at once


def predict(
    x_ND: NDArray[np.float32],
    y_N: NDArray[np.int64],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    classes: int,
    neighbours: int,
) -> NDArray[np.int64]:
    """Class numbers [len(test)]: the majority of the nearest training clips, the sum of cosines where votes tie.

    x_ND [N, D]; train and test are row numbers; fewer training clips than `neighbours` all vote.
    """
    unit = x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
    known, k = unit[train], min(neighbours, len(train))
    found = np.empty(len(test), np.int64)
    for start in range(0, len(test), BLOCK):
        near = unit[test[start : start + BLOCK]] @ known.T
        top = np.argpartition(-near, k - 1, axis=1)[:, :k]
        votes = np.zeros((len(near), classes))
        row = np.repeat(np.arange(len(near)), k)
        # A vote outweighs any cosine: |cosine| sums to at most k.
        value = 1.0 + np.take_along_axis(near, top, axis=1).ravel() / (2.0 * k + 1.0)
        np.add.at(votes, (row, y_N[train][top].ravel()), value)
        found[start : start + BLOCK] = votes.argmax(axis=1)
    return found
