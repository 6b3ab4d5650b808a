"""Groups: a step's rows as micro-batches of like length, divided where that costs the least time.

In    the rows' seconds; how many clips a micro-batch may hold, and how long one takes, by its padded seconds
Out   groups of rows, each dealt out to the processes
Why   every clip is padded to the longest beside it, and every micro-batch has a price of its own: launches, weights
      cast, gradients summed. Which of the two weighs more is the device's to say, so that the best division is
      computed from what a micro-batch takes there. It only reorders inside a step.
      Price: about rows x clips of a micro-batch evaluations a step, some milliseconds, beside the device's work.
Run   `divide([8.0, 3.5, 12.0], sizes, world)`

Python only, so that a bare GPU host can import it (benchmarks/train.py does).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import inf
from typing import Protocol


class Limits(Protocol):
    """Clips of a micro-batch whose longest lasts so many seconds."""

    def __call__(self, seconds: float) -> int: ...

    def took(self, padded_s: float) -> float:
        """What a micro-batch of so many padded seconds takes, in any one unit."""


def divide(seconds: Sequence[float], sizes: Limits, world: int) -> list[list[int]]:
    """Indices of a step's rows, longest first, in groups of `world` micro-batches; at most `sizes(longest)` clips each.

    A group is dealt out `group[rank::world]` and holds `world` rows at least, so that every process has the same
    number of micro-batches of almost the same length: collectives never wait for one that is missing. Rows that are
    left when all are dealt out evenly are the shortest, and go with the last group, one clip a process at most.
    """
    order = sorted(range(len(seconds)), key=lambda i: (-seconds[i], i))
    rounds, left = divmod(len(order), world)
    if not rounds:
        return [order] if order else []
    least, cut = [0.0] + [inf] * rounds, [0] * (rounds + 1)  # cost of the first j rounds; where its last group begins
    for i in range(rounds):
        longest_s = seconds[order[i * world]]
        most = sizes(longest_s)
        for j in range(i + 1, rounds + 1):
            clips = j - i + (j == rounds and left > 0)
            if clips > most and j > i + 1:
                break
            cost = least[i] + sizes.took(clips * longest_s)
            if cost < least[j]:
                least[j], cut[j] = cost, i
    ends = [rounds]
    while ends[-1]:
        ends.append(cut[ends[-1]])
    ends.reverse()
    groups = [order[a * world : b * world] for a, b in pairwise(ends)]
    groups[-1] += order[rounds * world :]
    return groups
