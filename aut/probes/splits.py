"""How a probe set is divided: a protocol of params becomes a list of (training rows, test rows).

In    split, class and recording of each clip
Out   divisions, the same on every machine and for every encoder: only labels, recordings and the protocol enter
Why   a recording is never cut in two, and whatever is chosen (C) is chosen on inner folds of the training rows.
      Price: a set whose recordings are few or long gives unequal folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aut.config import Protocol
from aut.errors import ConfigError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]

TEST = ("test", "testing", "eval", "evaluation")
TRAIN = ("train", "training")
VALIDATION = ("validation", "valid", "val", "dev")


@dataclass(frozen=True)
class Division:
    """One test part and what may be learnt from; `repeat` numbers random divisions."""

    fold: str
    repeat: int
    train: Rows
    test: Rows


def divide(
    protocol: Protocol,
    split_N: NDArray[np.str_],
    y_N: Rows,
    group_N: Rows,
    labels: Sequence[str],
    what: str,
    seeds: Sequence[int] = (0,),
) -> list[Division]:
    """The divisions of a set; y_N class numbers, group_N recording numbers, `what` names the set in errors.

    ConfigError: the set has no such folds. DataError: a class is tested that no training part has, a clip is in none of
    the lists.
    """
    if protocol.stratified_fraction is not None:
        found = [_shuffled(protocol.stratified_fraction, r, s, y_N) for r, s in enumerate(seeds)]
    elif protocol.folds == "official":
        found = _official(split_N, what)
    elif protocol.folds == "split":
        found = _listed(split_N, what)
    else:
        found = [
            Division(f"fold{k + 1}", repeat, np.flatnonzero(fold != k), np.flatnonzero(fold == k))
            for repeat in range(protocol.repeats)
            for fold in [grouped_folds(y_N, group_N, protocol.folds, [repeat])]
            for k in range(protocol.folds)
        ]
    if protocol.test_fold is not None:
        found = [d for d in found if d.fold == protocol.test_fold]
        if not found:
            raise ConfigError(f"{what} has no fold '{protocol.test_fold}'", "see its index's column `split`")
    for division in found:
        _check(division, y_N, labels, what)
    return found


def grouped_folds(y_N: Rows, group_N: Rows, folds: int, seed: Sequence[int]) -> Rows:
    """Fold number [N] in 0 ... folds - 1; groups stay whole, classes are spread as evenly as that allows.

    Groups come in order of size, ties at random, and each goes where its classes are rarest.
    """
    _, group = np.unique(group_N, return_inverse=True)
    classes = int(y_N.max()) + 1
    counts = np.zeros((int(group.max()) + 1, classes))
    np.add.at(counts, (group, y_N), 1.0)
    share = counts / np.maximum(counts.sum(axis=0), 1.0)  # of its class that a group holds
    rng = np.random.default_rng([*seed, folds, len(y_N)])
    ties = rng.permutation(len(counts))
    held, size = np.zeros((folds, classes)), np.zeros(folds)
    fold_of = np.empty(len(counts), np.int64)
    for g in np.lexsort((ties, -counts.sum(axis=1))):
        crowd = held @ share[g] + 1e-6 * size / len(y_N)
        fold = int(crowd.argmin())
        held[fold] += share[g]
        size[fold] += counts[g].sum()
        fold_of[g] = fold
    return fold_of[group]


def inner_folds(division_train: Rows, y_N: Rows, group_N: Rows, folds: int) -> list[tuple[Rows, Rows]]:
    """(fit rows, validation rows) inside a training part; fewer folds where it has fewer recordings."""
    folds = min(folds, len(np.unique(group_N[division_train])))
    if folds < 2:
        return []
    fold = grouped_folds(y_N[division_train], group_N[division_train], folds, [7])
    return [(division_train[fold != k], division_train[fold == k]) for k in range(folds)]


def _official(split_N: NDArray[np.str_], what: str) -> list[Division]:
    names = sorted(set(split_N.tolist()))
    if len(names) < 2 or "" in names:
        raise ConfigError(
            f"{what} has no official folds: its clips' `split` holds {', '.join(repr(n) for n in names[:5])}",
            "use a protocol with folds: 5, or give the corpus a split column",
        )
    return [Division(n, 0, np.flatnonzero(split_N != n), np.flatnonzero(split_N == n)) for n in names]


def _listed(split_N: NDArray[np.str_], what: str) -> list[Division]:
    test = np.isin(split_N, TEST)
    train = np.isin(split_N, (*TRAIN, *VALIDATION))
    if not test.any() or not train.any():
        raise ConfigError(
            f"{what} has no train and test lists: its clips' `split` holds "
            + ", ".join(repr(n) for n in sorted(set(split_N.tolist()))[:5]),
            "use a protocol with folds: 5, or give the corpus a split column",
        )
    odd = split_N[~test & ~train]
    if len(odd):
        told = f"the `split` '{odd[0]}', which is" if odd[0] else "no `split`, so they are"
        raise DataError(
            f"{what}: {(odd == odd[0]).sum()} of {len(split_N)} clips have {told} neither train, validation nor test",
            "mend the column `split` of its index, or name these clips in the protocol's `exclude`",
        )
    return [Division("test", 0, np.flatnonzero(train), np.flatnonzero(test))]


def _shuffled(fraction: float, repeat: int, seed: int, y_N: Rows) -> Division:
    """A random test share of each class; recordings may be cut, as the paper's division does."""
    rng = np.random.default_rng([seed, len(y_N)])
    test = np.zeros(len(y_N), bool)
    for label in np.unique(y_N):
        rows = rng.permutation(np.flatnonzero(y_N == label))
        test[rows[: max(1, round(fraction * len(rows)))]] = True
    return Division("random", repeat, np.flatnonzero(~test), np.flatnonzero(test))


def _check(division: Division, y_N: Rows, labels: Sequence[str], what: str) -> None:
    if not len(division.test) or not len(division.train):
        part = "test" if not len(division.test) else "training"
        raise DataError(f"{what}, {division.fold}: the {part} part is empty", "use fewer folds")
    unseen = sorted(set(y_N[division.test].tolist()) - set(y_N[division.train].tolist()))
    if unseen:
        name = labels[unseen[0]]
        clips = int((y_N == unseen[0]).sum())
        raise DataError(
            f"{what}, {division.fold}: class '{name}' ({clips} clip{'s' if clips != 1 else ''} in all) is tested but "
            "not in the training part",
            "drop the class, give it more recordings, or use another protocol",
        )
