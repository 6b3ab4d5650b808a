"""Groups: a step's rows as micro-batches of like length, divided where that costs the least time.

In    the rows' seconds; how many clips a micro-batch may hold, and how long one takes, by its padded seconds
Out   groups of rows, each dealt out to the processes
Why   every clip is padded to the longest beside it, and every micro-batch has a price of its own: launches, weights
      cast, gradients summed. Which of the two weighs more is the device's to say, so that the best division is
      computed from what a micro-batch takes there. Packed clips (aut/encoders/attention.py) cost their own seconds:
      few large micro-batches are best then, and fit as many clips of their mean length do. It only reorders in a step.
      Price: about rows x clips of a micro-batch evaluations a step, beside the device's work: for 16 rows of a process
      half a millisecond, for 128 some twenty.
Run   `divide([8.0, 3.5, 12.0], sizes, world)`

Python only, so that a bare GPU host can import it (benchmarks/train.py does).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import inf
from typing import Protocol


class Limits(Protocol):
    """Clips of a micro-batch whose longest (packed: whose mean) lasts so many seconds."""

    @property
    def packed(self) -> bool: ...

    def __call__(self, seconds: float) -> int: ...

    def took(self, computed_s: float) -> float:
        """What a micro-batch of so many seconds, its padding included, takes, in any one unit."""


def sized_s(share_s: Sequence[float], packed: bool) -> float:
    """By which the size of a micro-batch of such clips is looked up."""
    return sum(share_s) / len(share_s) if packed else max(share_s)


def divide(seconds: Sequence[float], sizes: Limits, world: int) -> list[list[int]]:
    """Indices of a step's rows, longest first, in groups of `world` micro-batches of no more clips than `sizes` allows.

    A group is dealt out `group[rank::world]` and holds `world` rows at least, so that every process has the same
    number of micro-batches of almost the same length: collectives never wait for one that is missing. Rows that are
    left when all are dealt out evenly are the shortest, and go with the last group, one clip a process at most.
    """
    order = sorted(range(len(seconds)), key=lambda i: (-seconds[i], i))
    rounds, left = divmod(len(order), world)
    if not rounds:
        return [order] if order else []
    first_s = [seconds[i] for i in order[::world]]  # the first process's, which are the longest
    before_s = [0.0, *accumulate(first_s)]
    least, cut = [0.0] + [inf] * rounds, [0] * (rounds + 1)  # cost of the first j rounds; where its last group begins
    for i in range(rounds):
        for j in range(i + 1, rounds + 1):
            end = j + (j == rounds and left > 0)
            clips = end - i
            size_s = (before_s[end] - before_s[i]) / clips if sizes.packed else first_s[i]
            if clips > sizes(size_s) and j > i + 1:
                if sizes.packed:  # more may fit where they are shorter
                    continue
                break
            cost = least[i] + sizes.took(clips * size_s)
            if cost < least[j]:
                least[j], cut[j] = cost, i
    ends = [rounds]
    while ends[-1]:
        ends.append(cut[ends[-1]])
    ends.reverse()
    groups = [order[a * world : b * world] for a, b in pairwise(ends)]
    groups[-1] += order[rounds * world :]
    return groups
