"""Log-mel: Whisper's input features for a batch of clips, at their own length or padded to 30 s.

In    x_BT waveforms at 16 kHz in [-1, 1], n_B valid samples of each; samples beyond n_B are ignored
Out   mel_BMF, m_B valid frames of 10 ms; equals `transformers.WhisperFeatureExtractor` to 1e-4
Why   Whisper's extractor always computes 30 s. A frame only sees 400 samples, and silence is a constant, so the
      frames of a clip can be had from the clip alone: a 5-s clip costs a sixth. Price: the clamp to 8 decades below
      the clip's loudest bin must look two frames beyond the clip's end, where the last window still hears it.
Run   `log_mel(torch.randn(2, 16000), torch.tensor([16000, 8000]), 80)`

`B` batch, `T` samples, `M` mel bins, `F` mel frames, `K` frequency bins.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from aut.units import MEL_HOP, RATE_HZ, WINDOW_S

N_FFT = 400  # 25 ms (Radford et al. 2022, section 2.2)
MAX_SAMPLES = int(WINDOW_S * RATE_HZ)
MAX_FRAMES = MAX_SAMPLES // MEL_HOP
FLOOR = 1e-10  # power below this is silence
RANGE = 8.0  # decades kept below a clip's loudest bin
_REACH = 2  # frames beyond the last one that still hear the clip: half a window is 200 samples, a hop 160
_CHUNK_FRAMES = 1024  # of one pass on a CPU: windows and spectra (5 MB) stay in a core's caches


def log_mel(x_BT: Tensor, n_B: Tensor, mels: int, padded: bool = False) -> tuple[Tensor, Tensor]:
    """Whisper's log-mel of each clip -> (mel_BMF float32, m_B int64 = ceil(n / 160)).

    Native (the default): F is ceil(T / 160), frames beyond m_B are zero, and each row equals the first m_B
    frames of the same clip padded to 30 s. Padded: F is 3,000 and silence has the value Whisper gives it.
    Clips over 30 s are cut there, as Whisper's extractor does. Runs on x_BT's device, without looking at
    values on the host; float32 under autocast too. Not for torch.compile: the FFT is one kernel already.
    """
    x_BT = x_BT[:, :MAX_SAMPLES]
    n_B = n_B.to(x_BT.device).clamp(max=x_BT.shape[1])
    frames = -(-x_BT.shape[1] // MEL_HOP)
    heard = min(frames + _REACH, MAX_FRAMES)
    m_B = (n_B + MEL_HOP - 1) // MEL_HOP
    with torch.autocast(x_BT.device.type, enabled=False):
        x_BT = _silenced(x_BT.float(), n_B)
        x_BT = pad(pad(x_BT, (0, heard * MEL_HOP - x_BT.shape[1])), (N_FFT // 2, N_FFT // 2), mode="reflect")
        log_BMF = _mel_power(x_BT, heard, mels).clamp(min=FLOOR).log10()
        floor_B = log_BMF.amax(dim=(1, 2), keepdim=True) - RANGE
        mel_BMF = (torch.maximum(log_BMF, floor_B) + 4.0) / 4.0
        if padded:
            silence_B = (floor_B.clamp(min=float(np.log10(FLOOR))) + 4.0) / 4.0
            rest = silence_B.expand(-1, mels, MAX_FRAMES - heard)
            return torch.cat([mel_BMF, rest], dim=2), m_B
        return _silenced(mel_BMF[:, :, :frames], m_B[:, None]), m_B


def _silenced(x: Tensor, n: Tensor) -> Tensor:
    """Zero beyond n along the last axis."""
    beyond = torch.arange(x.shape[-1], device=x.device) >= n[..., None]
    return x.masked_fill(beyond, 0.0)


def _mel_power(x_BT: Tensor, frames: int, mels: int) -> Tensor:
    """Mel-weighted power of the first `frames` windows -> [B, M, F].

    A CPU works in chunks that stay in its caches. The weighted sums have no negative terms, so a matrix
    product in TF32 still keeps the result within 1e-4.
    """
    windows = x_BT.unfold(1, N_FFT, MEL_HOP)[:, :frames]
    window, filters_KM = _window(x_BT.device), _filters(mels, x_BT.device)
    rows = max(1, _CHUNK_FRAMES // frames) if x_BT.device.type == "cpu" else max(1, len(x_BT))
    chunks = []
    for start in range(0, max(1, len(windows)), rows):
        spectrum = torch.fft.rfft(windows[start : start + rows] * window)
        power = spectrum.real.square() + spectrum.imag.square()  # a sum over view_as_real takes four times as long
        chunks.append(power @ filters_KM)
    return torch.cat(chunks).transpose(1, 2)


@cache
def _window(device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a tensor born in inference mode can never meet autograd
        return torch.hann_window(N_FFT, device=device)


@cache
def _filters(mels: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(mel_filters(mels)).to(device)


def mel_filters(mels: int) -> NDArray[np.float32]:
    """Triangular filters of unit area on Slaney's mel scale, 0 to 8 kHz -> [201, mels].

    Slaney, Auditory Toolbox (Interval Research TR 1998-010): linear to 1 kHz, then logarithmic.
    """
    centres_hz = _mel_to_hz(np.linspace(0.0, _hz_to_mel(RATE_HZ / 2), mels + 2))
    bins_hz = np.linspace(0.0, RATE_HZ / 2, N_FFT // 2 + 1)[:, None]
    left, centre, right = centres_hz[:-2], centres_hz[1:-1], centres_hz[2:]
    rising = (bins_hz - left) / (centre - left)
    falling = (right - bins_hz) / (right - centre)
    triangles = np.clip(np.minimum(rising, falling), 0.0, None)
    return np.asarray(triangles * (2.0 / (right - left)), dtype=np.float32)


_LINEAR_HZ = 200.0 / 3.0  # width of a mel below the break
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ
_LOG_STEP = np.log(6.4) / 27.0  # 27 mels from 1 to 6.4 kHz


def _hz_to_mel(hz: float) -> float:
    return float(_BREAK_MEL + np.log(hz / _BREAK_HZ) / _LOG_STEP) if hz >= _BREAK_HZ else hz / _LINEAR_HZ


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    logarithmic = _BREAK_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _BREAK_MEL) - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _LINEAR_HZ, logarithmic)
