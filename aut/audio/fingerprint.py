"""Acoustic fingerprint: 16 signs and 16 trusts a frame that survive codec, gain, resampling, cropping and noise.

In    pcm_T float32 mono at 16 kHz
Out   uint32 words, one each 32 ms: bit b says which way the amplitude of band b moved against band b + 1,
      bit 16 + b that it moved enough to be trusted; 0 marks a frame that says nothing (silence, a steady tone)
Why   signs of differences over time and frequency (Haitsma and Kalker, ISMIR 2002) need no training, no floats
      in the store, and compare by counting. The trust bits are what noise at 20 dB needs: without them a
      third of the signs of a single note are coin tosses. Bands end at 3.4 kHz, so an 8 kHz copy keeps them.
Price 125 bytes for a second of sound; a rumble below 150 Hz or a hiss above 3.4 kHz alone is not seen.
Run   python -m benchmarks.screen --quick
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from aut.units import RATE_HZ

WINDOW = 4096  # samples: 256 ms, so that a copy half a hop off moves little energy
HOP = 512  # samples: 32 ms
HOP_S = HOP / RATE_HZ
LAG = 3  # hops between the frames compared: at 1, neighbours share 87 % of their samples and differ by noise
BITS = 16
LOW_HZ, HIGH_HZ = 150.0, 3400.0
TRUST = 0.005  # of the frame's amplitude: smaller moves are noise
QUIET = 0.1  # of the clip's mean power: quieter frames are judged as if they were this loud
SILENCE = 1e-10  # mean square below the last bit of 16
BLOCK = 256  # frames transformed at once: bounds memory at 4 MB


def trits(words: NDArray[np.uint32]) -> NDArray[np.int8]:
    """[frames, 16]: +1 or -1 where a sign is trusted, 0 where not."""
    bits = np.unpackbits(np.ascontiguousarray(words, "<u4").view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
    signs, trusted = bits[:, :BITS].view(np.int8), bits[:, BITS:].view(np.int8)
    return (2 * signs - 1) * trusted


def fingerprint(pcm_T: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Words of a clip, word f about the samples from f * HOP on; empty for a clip under 0.35 s."""
    pcm_T = np.ascontiguousarray(pcm_T, dtype=np.float32)
    if len(pcm_T) < WINDOW + LAG * HOP:
        return np.zeros(0, np.uint32)
    power = _power(pcm_T)
    tilt = np.diff(np.sqrt(power), axis=1)
    move = tilt[:-LAG] - tilt[LAG:]
    loud = power.sum(axis=1)
    loud = loud[:-LAG] + loud[LAG:]
    heard = loud > SILENCE * WINDOW * WINDOW
    trusted = np.abs(move) > TRUST * np.sqrt(np.maximum(loud, QUIET * loud.mean()))[:, None]
    return _packed(move > 0, trusted & heard[:, None])


def _packed(sign: NDArray[np.bool_], trusted: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Signs that are not trusted stay: they are right more often than not, which a look-up by equal words uses."""
    telling: NDArray[np.bool_] = np.any(trusted, axis=1, keepdims=True)
    both: NDArray[np.bool_] = np.concatenate([sign & telling, trusted], axis=1)
    return np.packbits(both, axis=1, bitorder="little").view("<u4")[:, 0].astype(np.uint32)


def _power(pcm_T: NDArray[np.float32]) -> NDArray[np.float32]:
    """Power of each band in each frame, [frames, 17]."""
    from scipy.fft import rfft

    frames = np.lib.stride_tricks.sliding_window_view(pcm_T, WINDOW)[::HOP]
    edges = _edges()
    out = np.empty((len(frames), BITS + 1), np.float32)
    for at in range(0, len(frames), BLOCK):
        spectrum = rfft(frames[at : at + BLOCK] * _taper(), axis=1)[:, edges[0] : edges[-1]]
        power = spectrum.real**2 + spectrum.imag**2
        out[at : at + BLOCK] = np.add.reduceat(power, edges[:-1] - edges[0], axis=1)
    return out


@cache
def _taper() -> NDArray[np.float32]:
    return np.hanning(WINDOW).astype(np.float32)


@cache
def _edges() -> NDArray[np.int64]:
    """First FFT bin of each band and the end of the last, evenly spaced in log frequency."""
    edges_hz = np.geomspace(LOW_HZ, HIGH_HZ, BITS + 2)
    bins: NDArray[np.int64] = np.round(edges_hz * WINDOW / RATE_HZ).astype(np.int64)
    return bins
