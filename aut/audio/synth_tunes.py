"""Synth tunes: chords, arpeggios, melodies and beats on ten instruments, with captions from the true parameters.
In    seed, number of the clip
Out   Rendered; two clips in a row of a probe set share a source_id: one song's instrument, key, tempo and texture
Why   instruments share their harmonics in pairs and differ in attack, decay, vibrato and tremolo, so a mean spectrum
      tells only half. Price: one instrument at a time, equal temperament, no voices.
Run   see aut/datasets/toy.py
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aut.audio import synth
from aut.units import RATE_HZ

K = np.arange(1, 25, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Instrument:
    """Harmonics fall as k**-slope, even ones times `even`; decay_s inf is a held tone."""

    slope: float
    even: float
    attack_s: float
    decay_s: float
    vibrato: float = 0.0
    tremolo: float = 0.0
    backwards: bool = False


# Each line but the last is a pair with one spectrum and two ways of moving in time.
INSTRUMENTS = {
    "organ": Instrument(0.2, 1.0, 0.01, np.inf),
    "strings": Instrument(0.2, 1.0, 0.12, np.inf, vibrato=0.012),
    "flute": Instrument(3.5, 1.0, 0.06, np.inf, tremolo=0.45),
    "marimba": Instrument(3.5, 1.0, 0.003, 0.07),
    "clarinet": Instrument(0.9, 0.04, 0.04, np.inf),
    "harp": Instrument(0.9, 0.04, 0.003, 0.14),
    "guitar": Instrument(1.2, 0.7, 0.003, 0.16),
    "accordion": Instrument(1.2, 0.7, 0.05, np.inf, tremolo=0.5),
    "piano": Instrument(2.0, 3.5, 0.005, 0.3),
    "swell": Instrument(2.0, 3.5, 0.005, 0.18, backwards=True),
    "drums": Instrument(0.0, 1.0, 0.002, 0.06),
}
LABELS = tuple(INSTRUMENTS)
TEXTURES = ("chords", "a rising arpeggio", "a falling arpeggio", "a melody")
BEATS = ("a steady beat", "a busy beat")
MODES = {"major": (0, 4, 7, 12, 16), "minor": (0, 3, 7, 12, 15)}


@dataclass(frozen=True, slots=True)
class Song:
    label: str
    texture: str
    mode: str
    root_hz: float
    gap_s: float
    slope: float  # this maker's instrument is brighter or darker than the next


def render(seed: int, number: int) -> synth.Rendered:
    """One clip; the song decides instrument, key, tempo and texture, the clip its own notes and noise."""
    at = synth.recording(seed, number)
    song = _song(np.random.default_rng([seed, 12, at]), LABELS[at % len(LABELS)])
    rng = np.random.default_rng([seed, 2, number])
    n = synth.length(rng)
    played = _beat(rng, n, song) if song.label == "drums" else _notes(rng, n, song)
    pcm_T = synth.finish(rng, played, snr_db=rng.uniform(14, 34), eq_db=1.5)
    return synth.Rendered(pcm_T, _caption(song), song.label, f"song-{seed}-{at:05d}")


def _song(rng: np.random.Generator, label: str) -> Song:
    texture = synth.choose(rng, BEATS if label == "drums" else TEXTURES)
    mode = synth.choose(rng, tuple(MODES))
    return Song(
        label,
        texture,
        mode,
        synth.log_uniform(rng, 160, 310),
        synth.log_uniform(rng, 0.13, 0.4),
        rng.uniform(-0.06, 0.06),
    )


def _caption(song: Song) -> str:
    tempo = "fast" if song.gap_s < 0.23 else "slow"
    if song.label == "drums":
        return f"drums play {song.texture}, {tempo}"
    register = "low" if song.root_hz < 220 else "high"
    return f"{song.label} plays {song.texture}, {tempo}, {register} and {song.mode}"


def _notes(rng: np.random.Generator, n: int, song: Song) -> synth.Signal:
    out = np.zeros(n, dtype=np.float32)
    scale, gap = MODES[song.mode], int(song.gap_s * RATE_HZ)
    first = int(rng.integers(len(scale)))
    for step, at in enumerate(range(-int(rng.integers(gap)), n, gap)):
        for degree in _degrees(rng, song.texture, first + step, len(scale)):
            synth.place(out, _note(rng, song, song.root_hz * 2 ** (scale[degree] / 12)), at)
    return out


def _degrees(rng: np.random.Generator, texture: str, step: int, size: int) -> list[int]:
    if texture == "chords":
        start = int(rng.integers(2))
        return [start, start + 1, start + 2]
    if texture == "a melody":
        return [int(rng.integers(size))]
    return [step % size if texture == "a rising arpeggio" else -1 - step % size]


def _note(rng: np.random.Generator, song: Song, hz: float) -> synth.Signal:
    kind = INSTRUMENTS[song.label]
    n = int(song.gap_s * RATE_HZ * (1.0 if np.isinf(kind.decay_s) or kind.backwards else 1.6))
    t = np.arange(n) / RATE_HZ
    harmonics = K ** -(kind.slope + song.slope) * np.where(K % 2 == 0, kind.even, 1.0)
    bend = 1 + kind.vibrato * np.sin(2 * np.pi * (rng.uniform(5, 7) * t + rng.random()))
    shape = synth.decay(n, kind.attack_s, min(kind.decay_s, 1e3)) * np.minimum((n - np.arange(n)) / (0.02 * RATE_HZ), 1)
    shape = shape[::-1] if kind.backwards else shape
    shake = 1 - kind.tremolo * (0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(8, 12) * t + rng.random())))
    return (synth.oscillate(hz * bend, n, harmonics, rng.random()) * shape * shake).astype(np.float32)


def _beat(rng: np.random.Generator, n: int, song: Song) -> synth.Signal:
    out = np.zeros(n, dtype=np.float32)
    gap, size = int(song.gap_s * RATE_HZ), int(0.25 * RATE_HZ)
    t = np.arange(size) / RATE_HZ
    kick = synth.oscillate(50 + 90 * np.exp(-t / 0.03), size, np.ones(2)) * synth.decay(size, 0.002, 0.07)
    snare = synth.shaped(synth.noise(rng, size), synth.band(1800, 1.4)) * synth.decay(size, 0.001, 0.05)
    step = int(rng.integers(2))
    for at in range(int(rng.integers(gap // 2)), n, gap):
        synth.place(out, kick if step % 2 == 0 else snare, at)
        if song.texture == "a busy beat":
            synth.place(out, 0.5 * snare[: size // 5], at + gap // 2)
        step += 1
    return out
