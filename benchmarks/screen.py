"""Screen: are planted copies of real clips found, is nothing else, and how fast?

In    real recordings (--audio FOLDER or AUT_TEST_AUDIO: folders with <folder>.csv and audio/), else generated ones
Out   recall_<change> (percent of copies of clips of 3 s and more that the gates content and acoustic tie to their
      original, the whole collection indexed; recall_identical_acoustic without the content gate), false_pair_rate
      (share of pairs of distinct recordings, each an ordered query, that it flags), realtime_x (decode and
      fingerprint as the index stage does, one core; by format beside it), lookup_ms, lookup_index_gb (all that a
      look-up reads) and lookup_recall_<change> (among 20M clips, --quick 150,000, all but the real ones made up:
      _crowd.py; a quarter of the keys is indexed there, and all of them where the screen indexes probes)
      held_out: the threshold that one half of the clips would choose, and what it gives on the other half
Why   the peers see the same copies: Shazam-style landmarks (peers/landmarks.py), chromaprint where its library is
Run   python -m benchmarks.screen [--quick] [--audio FOLDER] [--keep]
"""

from __future__ import annotations

import csv
import io
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

from aut.audio.decode import content_hash, decode
from aut.audio.fingerprint import HOP, HOP_S, fingerprint
from aut.audio.keys import Words
from aut.audio.match import EVERY, FEW, Index
from benchmarks._common import arguments, finish, machine, say
from benchmarks._crowd import Crowd
from benchmarks.peers import chromaprint, landmarks

Pcm = NDArray[np.float32]
RATE = 16_000
LONG_S = 3.0
THRESHOLD, MIN_MATCH_S = 0.25, 2.0  # conf/common.yaml
GRID = [round(0.15 + 0.01 * n, 2) for n in range(36)]  # thresholds that a half may choose
TARGETS = {"identical": 100.0, "gain": 99.0, "codec": 99.0, "8k": 98.0, "crop": 95.0, "noise": 95.0, "speed": 90.0}

Found = dict[int, float]
"""Indexed recordings that a clip overlaps, and their scores."""


@dataclass(frozen=True)
class Recording:
    name: str
    domain: str
    origin: str  # clips of one origin may share sound
    data: bytes  # as stored
    pcm_T: Pcm


# --- what a copy goes through ------------------------------------------------------------------------------------


def _codec(fmt: str, subtype: str, level: float) -> Callable[[Pcm, np.random.Generator], Pcm]:
    def through(x: Pcm, _: np.random.Generator) -> Pcm:
        stream = io.BytesIO()
        mode = {"bitrate_mode": "CONSTANT"} if fmt == "MP3" else {}
        sf.write(stream, x, RATE, format=fmt, subtype=subtype, compression_level=level, **mode)
        stream.seek(0)
        return np.asarray(sf.read(stream, dtype="float32")[0])

    return through


def _gain(db: float) -> Callable[[Pcm, np.random.Generator], Pcm]:
    """In 16 bits, as a copy is kept: what is too loud for them is clipped."""

    def through(x: Pcm, _: np.random.Generator) -> Pcm:
        y: Pcm = np.clip(np.rint(x * np.float32(10 ** (db / 20) * 32768)), -32768, 32767)
        return np.asarray(y / 32768, np.float32)

    return through


def _eight_khz(x: Pcm, _: np.random.Generator) -> Pcm:
    return np.asarray(soxr.resample(soxr.resample(x, RATE, 8000), 8000, RATE), np.float32)


def _half(x: Pcm, rng: np.random.Generator) -> Pcm:
    """Drawn again while the half holds no sound (40 dB below the clip): ESC-50 pads with digital silence."""
    half = len(x) // 2
    for _ in range(50):
        start = int(rng.integers(0, len(x) - half))
        if np.mean(x[start : start + half] ** 2) > 1e-4 * np.mean(x**2):
            break
    return x[start : start + half]


def _noise(x: Pcm, rng: np.random.Generator) -> Pcm:
    return np.asarray(x + rng.standard_normal(len(x)) * np.sqrt(np.mean(x**2) / 100), np.float32)


def _speed(ratio: float) -> Callable[[Pcm, np.random.Generator], Pcm]:
    return lambda x, _: np.asarray(soxr.resample(x, RATE * ratio, RATE), np.float32)


# figure -> the changes it averages. 64 kbit/s at 16 kHz mono: MP3 level 0.6 (CBR), Vorbis level 0.1 (VBR).
CHANGES: dict[str, dict[str, Callable[[Pcm, np.random.Generator], Pcm]]] = {
    "identical": {"same": lambda x, _: x},
    "gain": {"-12 dB": _gain(-12), "+12 dB, clipped": _gain(12)},  # most clips are normalised to full scale
    "codec": {"mp3": _codec("MP3", "MPEG_LAYER_III", 0.6), "ogg": _codec("OGG", "VORBIS", 0.1)},
    "8k": {"8 kHz": _eight_khz},
    "crop": {"half": _half},
    "noise": {"20 dB": _noise},
    "speed": {"+2 %": _speed(1.02), "-2 %": _speed(0.98)},
}


# --- recordings --------------------------------------------------------------------------------------------------

_DOMAINS = {"esc": "environment", "speech": "speech", "spoken": "speech", "music": "music", "jamendo": "music"}


def real(root: Path) -> list[Recording]:
    """Every clip of every `<folder>/<folder>.csv`. ESC folders share their Freesound sources."""
    found = []
    for table in sorted(root.glob("*/*.csv")):
        if table.stem != table.parent.name:
            continue
        domain = next((d for word, d in _DOMAINS.items() if word in table.stem), "speech")
        family = "esc" if table.stem.startswith("esc") else table.stem
        with table.open() as rows:
            for row in csv.DictReader(rows):
                data = (table.parent / row["filename"]).read_bytes()
                pcm = np.asarray(sf.read(io.BytesIO(data), dtype="float32")[0])
                found.append(Recording(row["filename"], domain, f"{family}:{row['source_id']}", data, pcm))
    return found


def generated(count: int) -> list[Recording]:
    """Recordings of about 5 s made of five generated clips of one part."""
    from aut.datasets import toy

    found = []
    with tempfile.TemporaryDirectory() as folder:
        for part, domain in zip(toy.PARTS, ("speech", "environment", "music"), strict=True):
            toy.prepare(Path(folder), part, 5 * count, 0, workers=1)
            rows = list(toy.clips(Path(folder), part, 5 * count, 0))
            for n in range(count):
                uris = [Path(folder) / row.uri for row in rows[n::count]]
                pcm = np.concatenate([sf.read(uri, dtype="float32")[0] for uri in uris])
                stream = io.BytesIO()
                sf.write(stream, pcm, RATE, format="FLAC")
                found.append(Recording(f"{part}-{n}", domain, f"{part}-{n}", stream.getvalue(), pcm))
    return found


# --- figures -----------------------------------------------------------------------------------------------------


def ours(recordings: Sequence[Recording]) -> Callable[[Pcm], Found]:
    """A function that names the indexed recordings a clip may overlap, from the lowest threshold of the grid on."""
    index = Index([fingerprint(r.pcm_T) for r in recordings])
    return lambda x: {m.probe: m.score for m in index.search([fingerprint(x)], GRID[0], MIN_MATCH_S)[0]}


def with_content(recordings: Sequence[Recording], find: Callable[[Pcm], Found]) -> Callable[[Pcm], Found]:
    """The same with the content gate beside it, as the screen has."""
    same = {content_hash(r.pcm_T): i for i, r in enumerate(recordings)}

    def both(x: Pcm) -> Found:
        known = same.get(content_hash(x))
        return find(x) | ({known: 1.0} if known is not None else {})

    return both


def copies(
    recordings: Sequence[Recording], chosen: Sequence[int], find: Callable[[Pcm], Found]
) -> dict[str, NDArray[np.float64]]:
    """[changes, chosen] scores that tie a copy to its original, 0 where it is not found, by figure."""
    out = {}
    for figure, changes in CHANGES.items():
        scores = [
            [find(change(recordings[i].pcm_T, np.random.default_rng([1, i]))).get(i, 0.0) for i in chosen]
            for change in changes.values()
        ]
        out[figure] = np.array(scores)
        each = ", ".join(f"{name} {percent(v, THRESHOLD):.1f}" for name, v in zip(changes, out[figure], strict=True))
        say(f"  {figure}: {percent(out[figure], THRESHOLD):.1f} %" + (f" ({each})" if len(changes) > 1 else ""))
    return out


def percent(scores: NDArray[np.float64], threshold: float) -> float:
    return 100.0 * float(np.mean(scores >= threshold))


@dataclass(frozen=True)
class Strangers:
    """Pairs of distinct recordings that were asked, and those that score: (asked, indexed, score)."""

    pairs: int
    found: list[tuple[int, int, float]]

    def rate(self, threshold: float) -> float:
        return sum(score >= threshold for *_, score in self.found) / max(self.pairs, 1)


def strangers(recordings: Sequence[Recording], asked: Sequence[int], find: Callable[[Pcm], Found]) -> Strangers:
    pairs, found = 0, []
    origin = np.array([r.origin for r in recordings])
    for i in asked:
        pairs += int((origin != recordings[i].origin).sum())
        found += [(i, j, s) for j, s in sorted(find(recordings[i].pcm_T).items()) if origin[j] != origin[i]]
    return Strangers(pairs, found)


def held_out(
    scores: dict[str, NDArray[np.float64]],
    recordings: Sequence[Recording],
    asked: Sequence[int],
    find: Callable[[Pcm], Found],
) -> dict[str, object]:
    """The highest threshold at which every other clip meets the targets, and figures of the clips between at it.

    Strangers are parted likewise, by the recording that asks.
    """
    one = {k: v[:, ::2] for k, v in scores.items() if k in TARGETS}
    meets = [t for t in GRID if all(percent(v, t) >= TARGETS[k] for k, v in one.items())]
    chosen = meets[-1] if meets else GRID[0]
    rest = strangers(recordings, asked[1::2], find)
    at = {f"recall_{k}": round(percent(v[:, 1::2], chosen), 2) for k, v in scores.items() if k in TARGETS}
    used = {f"recall_{k}": round(percent(v[:, 1::2], THRESHOLD), 2) for k, v in scores.items() if k in TARGETS}
    return {
        "threshold_of_first_half": chosen,
        "first_half_meets_targets": bool(meets),
        "second_half": at | {"false_pair_rate": rest.rate(chosen)},
        f"second_half_at_{THRESHOLD:g}": used | {"false_pair_rate": rest.rate(THRESHOLD)},
    }


def realtime(files: Sequence[bytes]) -> float:
    """Seconds of audio decoded and fingerprinted in a second of one core."""
    start = time.process_time()
    seconds = 0.0
    for data in files:
        audio = decode(data)
        fingerprint(audio.pcm_T)
        seconds += audio.duration_s
    return seconds / (time.process_time() - start)


# Formats of the corpora, where they are not 16 kHz mono; GigaSpeech's and AudioSet's are the dearest.
FORMATS = {
    "flac, 44.1 kHz stereo": ("FLAC", "PCM_16", 44_100, 2),
    "mp3, 44.1 kHz stereo": ("MP3", "MPEG_LAYER_III", 44_100, 2),
    "vorbis, 44.1 kHz stereo": ("OGG", "VORBIS", 44_100, 2),
    "opus, 48 kHz": ("OGG", "OPUS", 48_000, 1),
}


def by_format(recordings: Sequence[Recording]) -> dict[str, float]:
    """`realtime` of the same sound in other files."""
    out = {}
    for name, (fmt, subtype, rate, channels) in FORMATS.items():
        files = []
        for r in recordings:
            x_T = soxr.resample(r.pcm_T, RATE, rate)
            stream = io.BytesIO()
            sf.write(stream, np.repeat(x_T[:, None], channels, axis=1), rate, format=fmt, subtype=subtype)
            files.append(stream.getvalue())
        out[name] = round(realtime(files), 1)
    return out


def lookup(recordings: Sequence[Recording], chosen: Sequence[int], clips: int) -> dict[str, Any]:
    """Look-ups among `clips` clips, all but the real ones made up: milliseconds, memory, and what is still found."""
    long = [i for i, r in enumerate(recordings) if len(r.pcm_T) >= LONG_S * RATE]
    words = {i: fingerprint(recordings[i].pcm_T) for i in long}
    asked = {recordings[i].origin for i in chosen}
    like = [words[i] for i in long if recordings[i].origin not in asked]
    crowd = Crowd(list(words.values()), like, clips, FEW)
    where = dict(enumerate(long))

    def find(x: Pcm) -> Found:
        (found,) = crowd.search([fingerprint(x)], GRID[0], MIN_MATCH_S)
        return {where[m.probe]: m.score for m in found if m.probe in where}

    scores = copies(recordings, chosen, with_content(recordings, find))
    queries = [words[i] for i in chosen]
    strange = sum(m.probe >= len(long) for found in crowd.search(queries, THRESHOLD, MIN_MATCH_S) for m in found)
    ten_s = [np.resize(np.concatenate([a, b]), 10 * RATE // HOP) for a, b in pairwise(queries)]
    there, expected = crowd.met(queries)
    return {
        "clips": clips,
        "keys_a_frame": FEW,
        "index_gb": crowd.nbytes / 1e9,
        "postings_gb": crowd.postings.nbytes / 1e9,
        "words_gb": crowd.words.nbytes / 1e9,
        "ms": _a_query(crowd, queries),
        "ms_of_10_s": _a_query(crowd, ten_s),
        "mean_s": float(np.mean([len(w) for w in queries])) * HOP_S,
        "recall": {k: percent(v, THRESHOLD) for k, v in scores.items()},
        "made_up_clips_flagged": strange,
        "postings_met_a_frame": {"in_the_crowd": there, "expected_of_real_clips": expected},
    }


def _a_query(index: Index, queries: Sequence[Words]) -> float:
    """Milliseconds of processor time a clip, all looked up in one call as the screen does; the median of five."""
    rounds = []
    for _ in range(5):
        start = time.process_time()
        index.search(queries, THRESHOLD, MIN_MATCH_S)
        rounds.append(1000 * (time.process_time() - start) / len(queries))
    return float(np.median(rounds))


def by_length(recordings: Sequence[Recording], find: Callable[[Pcm], Found], limit: int) -> dict[str, float]:
    """Percent of MP3 copies found, for clips shorter than 3 s."""
    out = {}
    mp3 = CHANGES["codec"]["mp3"]
    for low, high in ((0.0, 0.5), (0.5, 1.0), (1.0, 3.0)):
        some = [i for i, r in enumerate(recordings) if low <= len(r.pcm_T) / RATE < high][:limit]
        if some:
            rng = np.random.default_rng(0)
            out[f"{low:g}-{high:g} s"] = 100.0 * float(
                np.mean([find(mp3(recordings[i].pcm_T, rng)).get(i, 0.0) >= THRESHOLD for i in some])
            )
    return out


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--audio", type=Path, default=os.environ.get("AUT_TEST_AUDIO"))
    args = parser.parse_args()
    recordings = real(Path(args.audio)) if args.audio else generated(30 if args.quick else 150)
    say(f"{len(recordings)} recordings, {'real' if args.audio else 'generated'}")
    rng = np.random.default_rng(0)
    long = [i for i, r in enumerate(recordings) if len(r.pcm_T) >= LONG_S * RATE]
    chosen = sorted(rng.choice(long, min(len(long), 60 if args.quick else 400), replace=False).tolist())
    find = ours(recordings)
    say("ours")
    scores = copies(recordings, chosen, with_content(recordings, find))
    found = {figure: percent(values, THRESHOLD) for figure, values in scores.items()}
    found["gain_clipped"] = percent(scores["gain"][1], THRESHOLD)
    found["identical_acoustic"] = percent(np.array([find(recordings[i].pcm_T).get(i, 0.0) for i in chosen]), THRESHOLD)
    asked = range(len(recordings)) if not args.quick else range(0, len(recordings), 8)
    distinct = strangers(recordings, asked, find)
    told = [(recordings[i], recordings[j]) for i, j, score in distinct.found if score >= THRESHOLD]
    clips = 150_000 if args.quick else 20_000_000
    say(f"ours, among {clips:,} clips")
    among = lookup(recordings, chosen, clips)
    figures = {f"recall_{k}": v for k, v in found.items()} | {
        "false_pair_rate": distinct.rate(THRESHOLD),
        "false_pairs_across_domains": float(sum(a.domain != b.domain for a, b in told)),
        "realtime_x": realtime([r.data for r in recordings[:: 8 if args.quick else 1]]),
        "lookup_ms": among["ms"],
        "lookup_index_gb": among["index_gb"],
    }
    figures |= {f"lookup_recall_{k}": v for k, v in among["recall"].items()}
    few = chosen[:: max(1, len(chosen) // (15 if args.quick else 50))]
    peers = {
        name: _peer(name, module.finder, recordings, few)
        for name, module in (("landmarks", landmarks), ("chromaprint", chromaprint))
    }
    facts = {
        "machine": machine("numpy", "scipy", "soundfile", "soxr"),
        "cores_used": 1,
        "load_average_1min": round(os.getloadavg()[0], 1),
        "recordings": len(recordings),
        "copies_of": len(chosen),
        "threshold": THRESHOLD,
        "min_match_s": MIN_MATCH_S,
        "keys_a_frame": EVERY,
        "lookup": among,
        "realtime_x_by_format": by_format(recordings[:: max(1, len(recordings) // (10 if args.quick else 100))]),
        "short_clips_mp3_recall": by_length(recordings, find, 30 if args.quick else 10_000),
        "held_out": held_out(scores, recordings, asked, find),
        "false_pairs": [f"{a.name} | {b.name}" for a, b in told],
        "peers": peers,
    }
    finish("screen", figures, args.keep, facts)


def _peer(
    name: str,
    finder: Callable[[Sequence[Pcm]], Callable[[Pcm], set[int]] | None],
    recordings: Sequence[Recording],
    chosen: Sequence[int],
) -> dict[str, object]:
    say(name)
    start = time.process_time()
    find = finder([r.pcm_T for r in recordings])
    if find is None:
        say("  missing")
        return {"missing": "its library is not on this machine"}
    indexed = time.process_time() - start

    def scored(x: Pcm) -> Found:
        return dict.fromkeys(find(x), 1.0)

    found = {figure: percent(values, 1.0) for figure, values in copies(recordings, chosen, scored).items()}
    start = time.process_time()
    distinct = strangers(recordings, chosen, scored)
    return {
        **found,
        "copies_of": len(chosen),
        "false_pair_rate": distinct.rate(1.0),
        "false_pairs_across_domains": sum(recordings[i].domain != recordings[j].domain for i, j, _ in distinct.found),
        "realtime_x_without_decoding": sum(len(r.pcm_T) for r in recordings) / RATE / indexed,
        "ms_a_query": 1000 * (time.process_time() - start) / len(chosen),
    }


if __name__ == "__main__":
    main()
