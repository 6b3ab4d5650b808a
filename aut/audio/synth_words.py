"""Synth words: invented words by source and filter, for a speech pool and a spoken-word probe.
In    seed, number of the clip
Out   Rendered: a pool clip (even seed) says one or two words, a probe clip (odd seed) one labelled word
Why   four pairs of words hold the same syllables in the other order, so their mean spectra agree and an encoder has to
      hear order. Price: eleven phonemes, no prosody beyond a falling pitch.
Run   see aut/datasets/toy.py
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aut.audio import synth
from aut.units import RATE_HZ

PROBED = ("bana", "naba", "sumi", "misu", "doli", "lido", "gelo", "loge", "shova", "wado", "mibu", "sagu")
WORDS = (*PROBED, "nado", "dona", "lume", "melu", "shubi", "bishu", "wagi", "giwa", "dusa", "sadu", "nolu", "beso")
VOWELS = {
    "a": (730, 1190, 2500),
    "e": (500, 1880, 2520),
    "i": (290, 2250, 2950),
    "o": (510, 880, 2450),
    "u": (310, 900, 2260),
}
# formant targets, voice, noise, noise centre in Hz, length in s; vowels are above (after Peterson and Barney 1952)
CONSONANTS: dict[str, tuple[tuple[int, int, int], float, float, float, float]] = {
    "b": ((200, 800, 2200), 0.12, 0.02, 900, 0.06),
    "d": ((200, 1750, 2650), 0.12, 0.05, 3500, 0.06),
    "g": ((200, 2100, 2250), 0.12, 0.05, 1900, 0.07),
    "m": ((260, 1000, 2200), 0.40, 0.0, 1000, 0.08),
    "n": ((260, 1600, 2600), 0.40, 0.0, 1000, 0.08),
    "l": ((360, 1250, 2900), 0.55, 0.0, 1000, 0.07),
    "w": ((300, 650, 2200), 0.50, 0.0, 1000, 0.08),
    "v": ((250, 1100, 2300), 0.30, 0.12, 4500, 0.07),
    "s": ((300, 1700, 2600), 0.0, 0.55, 5800, 0.11),
    "S": ((300, 1800, 2500), 0.0, 0.60, 3000, 0.11),
}
SPEAKERS = 400
HZ_F = np.linspace(0, RATE_HZ / 2, synth.FFT // 2 + 1)


def render(seed: int, number: int) -> synth.Rendered:
    """One clip. Speakers belong to a seed: no two seeds share one."""
    rng = np.random.default_rng([seed, 0, number])
    speaker = int(rng.integers(SPEAKERS))
    voice = np.random.default_rng([seed, 10, speaker])
    pitch_hz, tract = synth.log_uniform(voice, 85, 260), voice.uniform(0.86, 1.18)
    pool = seed % 2 == 0
    words = (
        [synth.choose(rng, WORDS) for _ in range(int(rng.integers(1, 3)))] if pool else [PROBED[number % len(PROBED)]]
    )
    speed = synth.log_uniform(rng, 0.8, 1.25) * (1.0, 1.0, 1.15)[len(words)]
    said = _say(rng, words, pitch_hz * synth.log_uniform(rng, 0.85, 1.18), tract * rng.uniform(0.97, 1.03), speed)
    lead, tail = (int(rng.uniform(0.03, 0.2) * RATE_HZ) for _ in range(2))
    pcm_T = synth.finish(rng, np.pad(said, (lead, tail)), snr_db=rng.uniform(8, 28), eq_db=6.0)
    return synth.Rendered(pcm_T, " ".join(words), None if pool else words[0], f"speaker-{seed}-{speaker:03d}")


def _say(rng: np.random.Generator, words: list[str], pitch_hz: float, tract: float, speed: float) -> synth.Signal:
    formants_MK, voice_M, noise_M, centre_M = _tracks(rng, words, speed)
    n = len(voice_M) * synth.HOP
    t = np.linspace(0, 1, n)
    bend = 1 + rng.uniform(-0.2, 0.05) * t + 0.03 * np.sin(2 * np.pi * (rng.uniform(2, 5) * t + rng.random()))
    glottis_T = synth.oscillate(pitch_hz * bend, n, 1.0 / np.arange(1, 90) ** 1.1)
    vowel_MF = np.zeros((len(voice_M), len(HZ_F)))
    for k, width_hz in enumerate((80.0, 110.0, 170.0)):
        distance = (HZ_F[None] - formants_MK[:, k : k + 1] * tract) / width_hz
        vowel_MF += (1.0, 0.7, 0.4)[k] / (1 + distance**2)
    voiced_T = synth.formants(glottis_T, vowel_MF * voice_M[:, None])
    breath_MF = np.exp(-0.5 * ((HZ_F[None] - centre_M[:, None] * tract) / 900) ** 2) * noise_M[:, None]
    return voiced_T + 0.12 * synth.formants(synth.noise(rng, n), breath_MF)


def _tracks(
    rng: np.random.Generator, words: list[str], speed: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Targets of each phoneme held for its length, then smoothed over 30 ms: that is coarticulation."""
    rows: list[tuple[float, ...]] = []
    for w, word in enumerate(words):
        if w:
            rows += [(500, 1500, 2500, 0, 0, 2000)] * int(rng.integers(3, 10))
        for sign in word.replace("sh", "S"):
            target, voice, hiss, centre, length_s = (
                (VOWELS[sign], 1.0, 0.02, 2000.0, 0.13) if sign in VOWELS else CONSONANTS[sign]
            )
            frames = max(4, round(length_s / speed * rng.uniform(0.75, 1.3) * RATE_HZ / synth.HOP))
            rows += [(*target, voice, hiss, centre)] * frames
    held_MK = np.asarray(
        [(500, 1500, 2500, 0, 0, 2000)] * 3 + rows + [(500, 1500, 2500, 0, 0, 2000)] * 6, dtype=np.float64
    )
    smooth = np.hanning(9)[1:-1] / np.hanning(9).sum()
    tracks = np.stack([np.convolve(np.pad(c, 3, mode="edge"), smooth, "valid") for c in held_MK.T], axis=1)
    return tracks[:, :3], tracks[:, 3], tracks[:, 4], tracks[:, 5]
