"""Synth sounds: twelve kinds of everyday sound with wide parameters, and captions from the true parameters.
In    seed, number of the clip
Out   Rendered; two clips in a row of a probe set share a source_id and its parameters, as cuts of one recording do
Why   several classes share a spectrum and differ in time (knocks and footsteps, siren and whistles, rain and
      crickets), so mean spectra alone do not name them. Price: stylised; a listener knows they are synthetic.
Run   see aut/datasets/toy.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aut.audio import synth
from aut.units import RATE_HZ

RICH = 1.0 / np.arange(1, 13)
SOFT = 1.0 / np.arange(1, 6) ** 2
BACKGROUNDS = ("in a quiet place", "in a noisy place")


@dataclass(frozen=True, slots=True)
class Scene:
    """What all cuts of one recording share: pitch 0..1, rate 0..1, tone 0..1 (dark to bright)."""

    pitch: float
    rate: float
    tone: float


def _between(x: float, low: float, high: float) -> float:
    return float(low * (high / low) ** x)


def _events(rng: np.random.Generator, n: int, gap_s: float, jitter: float) -> list[int]:
    """Onsets about gap_s apart, the first within one gap: at least one falls in the clip."""
    at, onsets = rng.uniform(0, min(gap_s, 0.3)), []
    while at < n / RATE_HZ - 0.05:
        onsets.append(int(at * RATE_HZ))
        at += gap_s * (1 + jitter * rng.uniform(-1, 1))
    return onsets


def _hits(rng: np.random.Generator, n: int, onsets: list[int], centre_hz: float, ring_s: float) -> synth.Signal:
    out = np.zeros(n, dtype=np.float32)
    for at in onsets:
        size = min(n - at, int(6 * ring_s * RATE_HZ))
        hit = synth.shaped(synth.noise(rng, size), synth.band(centre_hz, 0.7)) * synth.decay(size, 0.002, ring_s)
        synth.place(out, hit * np.float32(rng.uniform(0.6, 1)), at)
    return out


def _knocks(rng: np.random.Generator, n: int, s: Scene) -> synth.Signal:
    return _hits(rng, n, _events(rng, n, _between(1 - s.rate, 0.12, 0.28), 0.05), _between(s.tone, 250, 1800), 0.03)


def _footsteps(rng: np.random.Generator, n: int, s: Scene) -> synth.Signal:
    heels = _events(rng, n, _between(1 - s.rate, 0.35, 0.6), 0.1)
    toes = [at + int(0.07 * RATE_HZ) for at in heels if at + int(0.1 * RATE_HZ) < n]
    centre = _between(s.tone, 250, 1800)
    return _hits(rng, n, heels, centre, 0.02) + 0.7 * _hits(rng, n, toes, centre * 1.3, 0.025)


def _rain(rng: np.random.Generator, n: int, s: Scene) -> synth.Signal:
    grains = synth.noise(rng, n) * (rng.random(n) < _between(s.rate, 0.01, 0.1)) * 4
    both = grains.astype(np.float32) + 0.3 * synth.noise(rng, n)
    return synth.shaped(both, synth.band(_between(s.tone, 900, 4500), 1.3))


def _wind(rng: np.random.Generator, n: int, s: Scene) -> synth.Signal:
    t = np.arange(n) / RATE_HZ
    gust = 0.55 + 0.45 * np.sin(2 * np.pi * (_between(s.rate, 0.6, 1.8) * t + rng.random()))
    return (synth.shaped(synth.noise(rng, n), synth.band(_between(s.tone, 500, 3500), 1.2)) * gust).astype(np.float32)


def _thunder(rng: np.random.Generator, n: int, s: Scene) -> synth.Signal:
    clap = synth.decay(n, 0.02, _between(1 - s.rate, 0.15, 0.4))
    rolls = 1 + 0.6 * np.interp(np.arange(n), np.linspace(0, n, 16), rng.uniform(-1, 1, 16))
    body = synth.shaped(synth.noise(rng, n), synth.band(_between(s.tone, 150, 900), 1.3)) * clap * rolls
    out = np.zeros(n, dtype=np.float32)
    synth.place(out, body.astype(np.float32), int(rng.uniform(0, 0.2) * RATE_HZ))
    return out


def _engine(rng: np.random.Generator, n: int, s: Scene) -> synth.Signal:
    t = np.arange(n) / RATE_HZ
    firing = _between(s.rate, 14, 32) * (1 + 0.05 * np.sin(2 * np.pi * (0.8 * t + rng.random())))
    pulse = synth.oscillate(firing, n, np.ones(8)) ** 2
    return synth.shaped(synth.noise(rng, n) * pulse, synth.band(_between(s.tone, 300, 2500), 1.2))


def _tone(
    rng: np.random.Generator, s: Scene, n: int, bend_T: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> synth.Signal:
    """The five pitched classes share range and spectrum; only what `bend_T` does in time differs."""
    return synth.oscillate(_between(s.pitch, 500, 1400) * bend_T, n, RICH if s.tone > 0.5 else SOFT, rng.random())


def _siren(rng: np.random.Generator, n: int, s: Scene) -> synth.Signal:
    t = np.arange(n) / RATE_HZ
    return _tone(rng, s, n, 1 + 0.3 * np.sin(2 * np.pi * (_between(s.rate, 1.5, 4) * t + rng.random())))


def _slide(rng: np.random.Generator, n: int, s: Scene, way: float) -> synth.Signal:
    t = np.arange(n) / RATE_HZ
    turn = (t / _between(1 - s.rate, 0.3, 0.6) + rng.random() * 0.3) % 1.0
    return (
        _tone(rng, s, n, 0.7 * (1.3 / 0.7) ** (turn if way > 0 else 1 - turn))
        * np.sin(np.pi * turn).astype(np.float32) ** 0.5
    )


def _alarm(rng: np.random.Generator, n: int, s: Scene) -> synth.Signal:
    t = np.arange(n) / RATE_HZ
    gate = ((t * _between(s.rate, 2.5, 7) + rng.random()) % 1.0) < 0.5
    return _tone(rng, s, n, np.ones(n)) * gate.astype(np.float32)


def _bell(rng: np.random.Generator, n: int, s: Scene) -> synth.Signal:
    out = np.zeros(n, dtype=np.float32)
    for at in _events(rng, n, _between(1 - s.rate, 0.35, 0.9), 0.1):
        for ratio, level in ((1.0, 1.0), (2.76, 0.5 * s.tone), (1.5, 0.5)):
            ring = synth.oscillate(_between(s.pitch, 500, 1400) * ratio, n, np.ones(1), rng.random())
            synth.place(out, level * ring * synth.decay(n, 0.002, 0.22 / ratio**0.5), at)
    return out


def _dog(rng: np.random.Generator, n: int, s: Scene) -> synth.Signal:
    out = np.zeros(n, dtype=np.float32)
    for at in _events(rng, n, _between(1 - s.rate, 0.25, 0.5), 0.2):
        size = int(rng.uniform(0.1, 0.18) * RATE_HZ)
        arc = np.sin(np.pi * np.linspace(0, 1, size))
        bark = synth.oscillate(_between(s.pitch, 250, 600) * (0.7 + 0.5 * arc), size, RICH) + 0.25 * synth.noise(
            rng, size
        )
        synth.place(out, (bark * arc).astype(np.float32), at)
    return synth.shaped(out, synth.band(_between(s.tone, 600, 1800), 1.3))


def _crickets(rng: np.random.Generator, n: int, s: Scene) -> synth.Signal:
    t = np.arange(n) / RATE_HZ
    trill = 0.5 - 0.5 * np.cos(2 * np.pi * _between(s.rate, 22, 45) * t)
    burst = ((t * rng.uniform(2, 3.5) + rng.random()) % 1.0) < 0.6
    return (_band_noise(rng, n, _between(s.tone, 1500, 4800)) * trill * burst).astype(np.float32)


def _drops(rng: np.random.Generator, n: int, s: Scene) -> synth.Signal:
    out = np.zeros(n, dtype=np.float32)
    for at in _events(rng, n, _between(1 - s.rate, 0.15, 0.5), 0.6):
        size = int(0.12 * RATE_HZ)
        rise = _between(s.pitch, 500, 1400) * rng.uniform(0.8, 1.3) * np.linspace(0.8, 1.8, size)
        synth.place(out, synth.oscillate(rise, size, SOFT) * synth.decay(size, 0.003, 0.025), at)
    return out


def _band_noise(rng: np.random.Generator, n: int, centre_hz: float) -> synth.Signal:
    return synth.shaped(synth.noise(rng, n), synth.band(centre_hz, 0.35))


Maker = Callable[[np.random.Generator, int, Scene], synth.Signal]
# class: its maker, what a caption calls it, and the words for a low and a high rate
KINDS: dict[str, tuple[Maker, str, str, str]] = {
    "knocks": (_knocks, "knocks on wood", "slow", "fast"),
    "footsteps": (_footsteps, "footsteps on a floor", "slow", "fast"),
    "rain": (_rain, "rain", "light", "heavy"),
    "wind": (_wind, "wind", "slow", "gusty"),
    "thunder": (_thunder, "thunder", "long", "short"),
    "engine": (_engine, "an engine running", "slow", "fast"),
    "siren": (_siren, "a siren going up and down", "slow", "fast"),
    "rising": (lambda r, n, s: _slide(r, n, s, 1.0), "a rising whistle", "slow", "fast"),
    "falling": (lambda r, n, s: _slide(r, n, s, -1.0), "a falling whistle", "slow", "fast"),
    "alarm": (_alarm, "alarm beeps", "slow", "fast"),
    "bell": (_bell, "a bell ringing", "slow", "fast"),
    "dog": (_dog, "a dog barking", "slow", "fast"),
    "crickets": (_crickets, "crickets", "slow", "fast"),
    "drops": (_drops, "water drops", "slow", "fast"),
}
LABELS = tuple(KINDS)


def render(seed: int, number: int) -> synth.Rendered:
    """One clip; the recording decides class and parameters, the clip its own events, length and noise."""
    recording = synth.recording(seed, number)
    label = LABELS[recording % len(LABELS)]
    whole = np.random.default_rng([seed, 11, recording])
    scene, snr_db = Scene(*whole.uniform(0, 1, 3)), whole.uniform(6, 28)
    rng = np.random.default_rng([seed, 1, number])
    maker, name, low, high = KINDS[label]
    pcm_T = synth.finish(rng, maker(rng, synth.length(rng), scene), snr_db, eq_db=5.0)
    bright = "bright" if scene.tone > 0.5 else "dark"
    text = f"{name}, {low if scene.rate < 0.5 else high} and {bright}, {BACKGROUNDS[int(snr_db < 12)]}"
    return synth.Rendered(pcm_T, text, label, f"recording-{seed}-{recording:05d}")
