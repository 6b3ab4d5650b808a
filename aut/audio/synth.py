"""Synth: the few primitives that the generated corpora are made of, numpy alone.
In    a random generator tied to one clip
Out   float32 mono signals at 16 kHz
Why   a demo and a test need audio that anyone may have, with known causes. Price: it is no recording; scores on it
      say that the pipeline works, not how an encoder hears the world.
Run   see aut/datasets/toy.py
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aut.units import RATE_HZ

Signal = NDArray[np.float32]
HOP = 80  # 5 ms: formants move over tens of milliseconds
WINDOW = 320
FFT = 512
TABLE = 2048
CUTS = 2


@dataclass(frozen=True, slots=True)
class Rendered:
    """One clip: samples, what is true of it in words, its class, and the recording it was 'cut' from."""

    pcm_T: Signal
    text: str
    label: str | None
    source_id: str


def recording(seed: int, number: int) -> int:
    """Which recording a clip is cut from: each its own in a pool (even seed), CUTS from one in a probe set."""
    return number // CUTS if seed % 2 else number


def choose(rng: np.random.Generator, options: list[str] | tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Uniform over ratios: pitches, rates and gains are heard so."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def length(rng: np.random.Generator, low_s: float = 0.6, high_s: float = 1.4) -> int:
    """Samples of a clip, mean 1 s."""
    return int(rng.integers(int(low_s * RATE_HZ), int(high_s * RATE_HZ)))


def noise(rng: np.random.Generator, n: int) -> Signal:
    return rng.standard_normal(n, dtype=np.float32)


def shaped(x_T: Signal, gain_F: NDArray[np.float64]) -> Signal:
    """Filters by a gain curve sampled at equal steps from 0 Hz to Nyquist; the last 20 ms are padded, not wrapped."""
    size = 1 << (len(x_T) + WINDOW - 1).bit_length()
    spectrum = np.fft.rfft(x_T, size)
    curve = np.interp(np.linspace(0, 1, len(spectrum)), np.linspace(0, 1, len(gain_F)), gain_F)
    return np.asarray(np.fft.irfft(spectrum * curve, size)[: len(x_T)], dtype=np.float32)


def band(centre_hz: float, width_octaves: float, points: int = 257) -> NDArray[np.float64]:
    """Gain curve: a bell on the log-frequency axis."""
    hz = np.linspace(0, RATE_HZ / 2, points) + 10.0
    return np.asarray(np.exp(-0.5 * (np.log2(hz / centre_hz) / width_octaves) ** 2))


def room(rng: np.random.Generator, decibels: float = 9.0) -> NDArray[np.float64]:
    """Gain curve of an unknown microphone and place: smooth, up to +-`decibels`, drawn at six octaves."""
    knots_hz = np.array([60, 250, 700, 1500, 3200, 8000.0])
    hz = np.linspace(1, RATE_HZ / 2, 257)
    curve = np.interp(np.log(hz), np.log(knots_hz), rng.uniform(-decibels, decibels, len(knots_hz)))
    return np.asarray(10 ** (curve / 20))


def oscillate(
    hz_T: NDArray[np.float64] | float, n: int, harmonics_K: NDArray[np.floating[Any]], start: float = 0.0
) -> Signal:
    """Additive tone by table: harmonics above Nyquist are left out for the highest frequency met."""
    top = float(np.max(hz_T))
    kept = harmonics_K[: max(1, min(len(harmonics_K), int(RATE_HZ / 2 / max(top, 1.0))))]
    table = _table(tuple(kept.tolist()))
    phase = np.cumsum(np.broadcast_to(np.asarray(hz_T, dtype=np.float64), n)) / RATE_HZ + start
    tone_T: Signal = table[(phase * TABLE).astype(np.int64) % TABLE]
    return tone_T


@lru_cache(maxsize=256)
def _table(harmonics: tuple[float, ...]) -> Signal:
    spectrum = np.zeros(TABLE // 2 + 1, dtype=np.complex128)
    k = np.arange(1, len(harmonics) + 1)
    spectrum[1 : len(harmonics) + 1] = np.asarray(harmonics) * np.exp(1j * k * k * 0.7)  # spread phases: low crest
    wave = np.fft.irfft(spectrum, TABLE)
    return np.asarray(wave / (np.abs(wave).max() + 1e-12), dtype=np.float32)


def decay(n: int, attack_s: float, decay_s: float) -> Signal:
    """Linear rise, then exponential fall; decay_s is the time to 1/e."""
    t = np.arange(n) / RATE_HZ
    rise_T, fall_T = np.minimum(t / max(attack_s, 1e-4), 1.0), np.exp(-np.maximum(t - attack_s, 0) / decay_s)
    return np.asarray(rise_T * fall_T, dtype=np.float32)


def place(target_T: Signal, x_T: Signal, at: int) -> None:
    """Adds x to target from sample `at`; what hangs over either end is cut."""
    if at < 0:
        x_T, at = x_T[-at:], 0
    room_left = max(0, len(target_T) - at)
    target_T[at : at + len(x_T)] += x_T[:room_left]


def formants(source_T: Signal, gain_MF: NDArray[np.float64]) -> Signal:
    """Time-varying filter: frame m (5 ms apart) of the source is multiplied by gain_MF[m] (257 bins)."""
    frames = len(gain_MF)
    padded = np.zeros(frames * HOP + WINDOW, dtype=np.float32)
    padded[: min(len(source_T), len(padded))] = source_T[: len(padded)]
    window = np.hanning(WINDOW + 1)[:-1]
    cut_MW = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[: frames * HOP : HOP] * window
    out_MW = np.fft.irfft(np.fft.rfft(cut_MW, FFT) * gain_MF, FFT)
    out_T = np.zeros(frames * HOP + FFT + HOP)
    chunks = -(-FFT // HOP)
    wide = np.zeros((frames, chunks * HOP))
    wide[:, :FFT] = out_MW
    for c in range(chunks):  # overlap-add, one hop-wide column at a time
        out_T[c * HOP : (c + frames) * HOP][: frames * HOP] += wide[:, c * HOP : (c + 1) * HOP].reshape(-1)[
            : len(out_T) - c * HOP
        ]
    return (out_T[: len(source_T)] / 2).astype(np.float32)  # a Hann window at a quarter hop sums to 2


def rms(x_T: Signal) -> float:
    return float(np.sqrt(np.mean(np.square(x_T), dtype=np.float64))) + 1e-9


def finish(rng: np.random.Generator, x_T: Signal, snr_db: float, eq_db: float = 9.0) -> Signal:
    """Room, coloured background noise at snr_db, and a random level: peak between -20 and -1 dBFS."""
    heard = shaped(x_T, room(rng, eq_db))
    back = shaped(noise(rng, len(x_T)), room(rng, 12.0) * (np.linspace(0.02, 1, 257) ** rng.uniform(-0.7, 0.2)))
    mixed = heard / rms(heard) + back / rms(back) * 10 ** (-snr_db / 20)
    peak = 10 ** (rng.uniform(-20, -1) / 20)
    return np.asarray(mixed * (peak / (np.abs(mixed).max() + 1e-9)), dtype=np.float32)
