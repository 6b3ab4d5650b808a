"""Kept: an order in which the rows held out for evaluation are replaced by others of their domain.

In    an Order and the rows to hold out
Out   `rows`, `seconds`, `next_in_domain` by position, as the Order gives them, held-out rows never
Why   evaluation must be of clips not trained on, and every arm and seed must hold out the same ones. A row is named
      by where it is stored, so looking costs arithmetic and no file. Held-out rows stand together in one order, so
      we jump over as many windows as they fill; the same slot of another window has the same domain.
Run   `Kept(order, held_out(order, 128))`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aut.errors import DataError
from aut.units import DOMAINS

if TYPE_CHECKING:
    from aut.order import Order

I64 = NDArray[np.int64]
JUMPS = 100


def held_out(order: Order, clips: int) -> I64:
    """Names of the rows at the first `clips` positions of epoch 0: in a mixture they hold its domains in their shares.

    A small set keeps three quarters of itself for training.
    """
    return np.unique(names(order, np.arange(min(clips, order.length // 4), dtype=np.int64)))


def names(order: Order, positions: I64) -> I64:
    """One number a row: its domain, hash range and place there; the same in every order over the same files."""
    found = order.locate(positions)
    domain = np.array([DOMAINS.index(shelf.domain) for shelf in order.shelves], dtype=np.int64)
    return domain[found.domain_N] << 60 | found.range_N << 40 | found.row_N


class Kept:
    """An Order less the rows named in `held`."""

    def __init__(self, order: Order, held: I64) -> None:
        self.order, self.length, self.digest = order, order.length, order.digest
        self._held = held
        window = len(order.slots)
        self._jump = window * -(-len(held) // window)

    def rows(self, positions: I64) -> list[dict[str, Any]]:
        return self.order.rows(self.resolve(positions))

    def seconds(self, positions: I64) -> NDArray[np.float64]:
        return self.order.seconds(self.resolve(positions))

    def next_in_domain(self, position: int) -> int:
        return self.order.next_in_domain(position)

    def resolve(self, positions: I64) -> I64:
        """Positions whose rows are not held out. DataError where there is hardly another."""
        at = np.array(positions, dtype=np.int64)
        for _ in range(JUMPS):
            held = np.isin(names(self.order, at), self._held)
            if not held.any():
                return at
            at[held] += self._jump
        raise DataError("almost all clips of a domain are held out", "lower training.eval_clips or add clips")
