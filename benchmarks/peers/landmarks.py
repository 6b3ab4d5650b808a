"""Landmarks: pairs of spectral peaks that vote for a common offset, after Wang (ISMIR 2003), as a baseline.

In    recordings at 16 kHz
Out   a function that names the recordings sharing at least VOTES aligned pairs with a clip
Why   the classic of audio search; parameters near those that audfprint publishes (about 20 hashes a second)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from scipy.signal import stft

Pcm = NDArray[np.float32]
WINDOW, HOP = 1024, 512  # 64 ms, 32 ms
PEAKS_S = 12.0  # a second, the loudest
FAN = 3  # pairs a peak
REACH = 63  # frames
VOTES = 5


def finder(recordings: Sequence[Pcm]) -> Callable[[Pcm], set[int]]:
    """Indexes the recordings."""
    found = [hashes(x) for x in recordings]
    key = np.concatenate([k for k, _ in found])
    order = np.argsort(key, kind="stable")
    clip = np.repeat(np.arange(len(found)), [len(k) for k, _ in found])[order]
    at = np.concatenate([t for _, t in found])[order]
    key = key[order]

    def find(x: Pcm) -> set[int]:
        mine, frame = hashes(x)
        low, high = np.searchsorted(key, mine, "left"), np.searchsorted(key, mine, "right")
        cells = [
            clip[a:b].astype(np.int64) * 65536 + (at[a:b] - f + 32768) for a, b, f in zip(low, high, frame, strict=True)
        ]
        if not cells:
            return set()
        cell, votes = np.unique(np.concatenate(cells), return_counts=True)
        return {int(c) // 65536 for c in cell[votes >= VOTES]}

    return find


def hashes(x: Pcm) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(frequency, frequency, distance) packed, and the frame of the first peak."""
    if len(x) < WINDOW:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    level = np.abs(stft(x, nperseg=WINDOW, noverlap=WINDOW - HOP, boundary=None)[2])[:256]
    peak = (level == maximum_filter(level, size=(15, 7))) & (level > 1e-6)
    bins, frames = np.nonzero(peak)
    loudest = np.argsort(-level[bins, frames], kind="stable")[: int(PEAKS_S * len(x) / 16_000) + 1]
    order = np.lexsort((bins[loudest], frames[loudest]))
    bins, frames = bins[loudest][order], frames[loudest][order]
    keys, at = [], []
    for n in range(len(bins)):
        near = [m for m in range(n + 1, min(n + 12, len(bins))) if 0 < frames[m] - frames[n] <= REACH][:FAN]
        keys += [int(bins[n]) << 14 | int(bins[m]) << 6 | int(frames[m] - frames[n]) for m in near]
        at += [int(frames[n])] * len(near)
    return np.array(keys, np.int64), np.array(at, np.int64)
