"""Pressure: whether more comes than can be computed, told by how many are refused.

In    each refusal for want of room or time, those dropped while they waited included; clips admitted
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
    """On while more than `crowd` were refused within a second, or within the time that computing a crowd takes; also
    where those, with the clips admitted, are more than `most`: a flood is told from a crowd as soon as it is larger."""

    def __init__(self, crowd: int, most: int) -> None:
        self._most = most
        self._refusals: deque[float] = deque(maxlen=crowd + 1)

    def on(self, crowd_s: float, admitted: int) -> bool:
        since = time.monotonic() - max(CALM_S, crowd_s)
        while self._refusals and self._refusals[0] <= since:
            self._refusals.popleft()
        refused = len(self._refusals)
        return refused == self._refusals.maxlen or bool(refused and refused + admitted > self._most)

    def refused(self, count: int = 1) -> None:
        self._refusals.extend([time.monotonic()] * count)
