"""Pressure: whether more comes than can be computed, told by how many are refused.

In    each refusal for want of room or time
Out   `on`: a newcomer is then let in only where it waits about as short as if the server were idle
Why   while the server keeps up, a long queue is good: a crowd of clients that ask again when they are answered fills
      its passes and is never refused. Under overload it is always full, and all it does is to make every answer late.
      Refused clients come again after a second: so many refusals in that time as a crowd has clients are no overload
Price a short queue fills fewer passes: about half of the clips a second
"""

from __future__ import annotations

import time
from collections import deque

CALM_S = 1.0


class Pressure:
    """On while more than `crowd` were refused within a second, or within the time that computing a crowd takes."""

    def __init__(self, crowd: int) -> None:
        self._refusals: deque[float] = deque(maxlen=crowd + 1)

    def on(self, crowd_s: float) -> bool:
        many = len(self._refusals) == self._refusals.maxlen
        return many and time.monotonic() - self._refusals[0] < max(CALM_S, crowd_s)

    def refused(self) -> None:
        self._refusals.append(time.monotonic())
