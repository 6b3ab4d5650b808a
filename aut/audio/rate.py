"""Rate: mono samples at another rate, within full scale. What files, arrays and served clips pass through alike.

In    pcm_T float32 mono
Out   the same at the rate asked for, clipped to [-1, 1]
Why   a resampler overshoots at full scale, and lossy codecs decode to more than it: where one path clips and another
      does not, the same sound has two embeddings. Clipped last, after mixing and resampling
"""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

LOUDEST = 8.0  # float samples above are integers, or garbage


def resampled(pcm_T: NDArray[np.float32], rate_hz: int, to_hz: int) -> NDArray[np.float32]:
    """soxr HQ. Very short clips may be left without a sample."""
    return within(pcm_T if rate_hz == to_hz else soxr.resample(pcm_T, rate_hz, to_hz, quality="HQ"))


def within(pcm_T: NDArray[np.float32]) -> NDArray[np.float32]:
    """Clipped to full scale; the same array where nothing was beyond it, as nearly always."""
    if max(float(pcm_T.max(initial=0.0)), -float(pcm_T.min(initial=0.0))) <= 1.0:  # not of NaN
        return pcm_T.astype(np.float32, copy=False)
    return np.clip(pcm_T, -1.0, 1.0).astype(np.float32, copy=False)
