"""Features of a clip for a picture: the envelope of its waveform, and the log-mel that the encoder hears.

In    16 kHz mono, its first 30 s
Out   JSON: minima and maxima of equal spans; log-mel as bytes, base64, row after row of frames
Why   the server decodes every format and computes the encoder's own features: the page needs no decoder of its own
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aut.units import RATE_HZ, WINDOW_S

SPANS = 600
COLUMNS = 750  # of the picture: longer log-mels are thinned
MELS = 80


def heard(clip: NDArray[np.float32]) -> dict[str, Any]:
    """{seconds, shown_s, low, high, mel: {frames, bins, data}}."""
    shown = clip[: int(WINDOW_S * RATE_HZ)]
    edges = np.linspace(0, len(shown), min(SPANS, len(shown)) + 1).astype(int)[:-1]
    low, high = np.minimum.reduceat(shown, edges), np.maximum.reduceat(shown, edges)
    mel_FM = picture(shown)
    data = base64.b64encode(mel_FM.tobytes()).decode()
    return {
        "seconds": round(len(clip) / RATE_HZ, 3),
        "shown_s": round(len(shown) / RATE_HZ, 3),
        "low": np.round(low, 4).tolist(),
        "high": np.round(high, 4).tolist(),
        "mel": {"frames": len(mel_FM), "bins": MELS, "data": data},
    }


def picture(clip: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Log-mel [F, M], its range of 8 decades spread over 0 to 255."""
    import torch

    from aut.audio.mel import log_mel

    with torch.inference_mode():
        mel_BMF, _ = log_mel(torch.from_numpy(clip)[None], torch.tensor([len(clip)]), MELS)
    mel_FM = mel_BMF[0].T.numpy()
    mel_FM = mel_FM[:: max(1, -(-len(mel_FM) // COLUMNS))]
    top = float(mel_FM.max())
    return np.ascontiguousarray(np.clip((mel_FM - (top - 2.0)) / 2.0 * 255.0, 0, 255).astype(np.uint8))
