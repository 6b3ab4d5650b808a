"""Keys: a keyed 64-bit hash of each clip's id, which decides whether it is taken and in which part it lies.

In    ids, a seed
Out   keys [N] uint64; hash ranges of keys; which keys are blocked
Why   defined here because the hashes of polars and pandas may change between versions, and would move every row;
      blake2b of 24.5M Python strings takes a minute. Not cryptographic: ids are the user's own, none tries to collide.
      Keys are as uniform as threshold and ranges need (a test counts them), and an id met twice is an equal key.
Price 40 ns an id, on one core
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aut.order import key64, mix64

if TYPE_CHECKING:
    import pyarrow as pa

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

LANE_ROWS = 1 << 16  # ids hashed at once: their words stay in the second-level cache
WORD = np.uint64(0x9FB21C651E98DF25)  # odd multiplier between words of an id
COARSE_BITS = 20  # a table of 1 MiB that says of most keys that they are not blocked


def row_keys(ids: pa.StringArray, seed: int) -> U64:
    """Keyed 64-bit hash of each id: words of 8 bytes folded by multiply and shift, finished by SplitMix64."""
    import pyarrow as pa

    if not pa.types.is_string(ids.type):
        ids = ids.cast(pa.string())
    start = np.frombuffer(ids.buffers()[1] or b"\0" * 4, "<i4")[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    text = bytes(ids.buffers()[2] or b"")[int(start[0]) : int(start[-1])] + b"\0" * 8
    start -= start[0]
    words: U64 = np.ndarray(len(text) - 7, "<u8", text, strides=(1,))  # the 8 bytes at any offset
    out = np.empty(len(ids), np.uint64)
    for lane in range(0, len(ids), LANE_ROWS):
        stop = min(lane + LANE_ROWS, len(ids))
        out[lane:stop] = _fold(words, start[lane:stop], start[lane + 1 : stop + 1], np.uint64(key64(seed, 0)))
    return out


def _fold(words: U64, start: I64, stop: I64, key: np.uint64) -> U64:
    left = stop - start
    h = key ^ mix64(left.astype(np.uint64))
    row = np.flatnonzero(left > 0)
    at, rest = start[row], left[row]
    while row.size:
        spare = (np.maximum(0, 8 - rest) * 8).astype(np.uint64)
        word = (words[at] << spare) >> spare
        here = row if len(row) < len(h) else slice(None)  # ids are of like length: mostly all of them
        folded = (h[here] ^ word) * WORD
        h[here] = folded ^ (folded >> np.uint64(29))
        more = np.flatnonzero(rest > 8)
        if len(more) < len(row):
            row, at, rest = row[more], at[more], rest[more]
        at, rest = at + 8, rest - 8
    return mix64(h)


def ranges(keys: U64, parts: int) -> NDArray[np.uint32]:
    """Hash range of each key: equal stretches of the key space, the same whatever the threshold."""
    return (((keys >> np.uint64(32)) * np.uint64(parts)) >> np.uint64(32)).astype(np.uint32)


class Blocked:
    """The blocked keys. `keys` ascend; `rows` asks of many keys in any order."""

    def __init__(self, keys: U64) -> None:
        self.keys: U64 = np.sort(keys)
        self._coarse = np.zeros(1 << COARSE_BITS, np.bool_)
        self._coarse[self._top(keys)] = True

    def rows(self, keys: U64) -> I64:
        """Indices of the keys that are blocked. A binary search of each would cost a second a core for 20M keys."""
        near = np.flatnonzero(self._coarse[self._top(keys)])
        return near[among(keys[near], self.keys)]

    @staticmethod
    def _top(keys: U64) -> U64:
        return keys >> np.uint64(64 - COARSE_BITS)


def among(keys: U64, others: U64) -> NDArray[np.bool_]:
    """Which keys are in `others`, which ascend; quick where `keys` ascend too."""
    if not len(others):
        return np.zeros(len(keys), np.bool_)
    near = np.searchsorted(others, keys)
    found: NDArray[np.bool_] = others[np.minimum(near, len(others) - 1)] == keys
    return found
