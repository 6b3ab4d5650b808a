"""Features of a clip for a picture: the envelope of its waveform, and a log-mel.

In    16 kHz mono, its first 30 s
Out   JSON: minima and maxima of equal spans; log-mel as bytes, base64, row after row of columns
Why   the server decodes every format and computes Whisper's log-mel: the page needs no decoder of its own. A column is
      the maximum of its frames, so that a click of 10 ms is seen in 30 s.
Price 80 bins whatever number the encoder hears: a decoder knows no version
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aut.units import RATE_HZ, WINDOW_S

SPANS = 600
COLUMNS = 750  # of the picture, at most
MELS = 80
SILENCE = -1.5  # log-mel of no power at all
DEPTH = 2.0  # log-mel of 8 decades, which Whisper keeps


def heard(clip: NDArray[np.float32]) -> dict[str, Any]:
    """{seconds, shown_s, low, high, mel: {frames, bins, data}}."""
    shown = clip[: int(WINDOW_S * RATE_HZ)]
    starts = _starts(len(shown), SPANS)
    low, high = np.minimum.reduceat(shown, starts), np.maximum.reduceat(shown, starts)
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
    """Log-mel [F, M], the 8 decades below its loudest bin spread over 0 to 255; silence is black."""
    import torch

    from aut.audio.mel import log_mel

    with torch.inference_mode():
        mel_BMF, _ = log_mel(torch.from_numpy(clip)[None], torch.tensor([len(clip)]), MELS)
    mel_FM = mel_BMF[0].T.numpy()
    mel_FM = np.maximum.reduceat(mel_FM, _starts(len(mel_FM), COLUMNS))
    bottom = max(float(mel_FM.max()) - DEPTH, SILENCE)
    return np.ascontiguousarray(np.clip((mel_FM - bottom) / DEPTH * 255.0, 0, 255).astype(np.uint8))


def _starts(length: int, most: int) -> NDArray[np.intp]:
    """Where equal spans of a row begin, at most so many."""
    return np.linspace(0, length, min(most, length) + 1).astype(np.intp)[:-1]
