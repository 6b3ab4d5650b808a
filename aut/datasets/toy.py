"""Toy: generated words, sounds and tunes, so that the demo and the tests need no recording.
In    options part (words, sounds, tunes), clips, seed
Out   <root>/<part>-<seed>-<clips>/<block>/<number>.wav (16 kHz, 16-bit), metadata.jsonl, complete.json
Why   each clip has its own random generator, so blocks, workers and interruptions leave the same samples.
      Price: samples may differ between CPU kinds in the last bit; lengths and texts do not.
      Even seeds are pools (words: phrases; every clip a recording of its own), odd seeds are probe sets (words: one
      labelled word a clip; two clips a recording); no two seeds
      share a speaker, a recording or a song.
Run   python -c 'from pathlib import Path; from aut.datasets import toy; toy.prepare(Path("."), "words", 100, 0)'
"""

from __future__ import annotations

import json
import os
import wave
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from aut.contracts import Card, Clip
from aut.errors import ConfigError, MissingInput
from aut.files import digest_json, locked, read_json, replacing, write_bytes, write_json
from aut.progress import progress
from aut.units import RATE_HZ

CARD = Card(
    name="toy",
    title="Generated words, sounds and tunes",
    licence="CC0-1.0",
    citation="aut, aut/datasets/toy.py",
    domain=None,
    text_origin="template",
)
PARTS = ("words", "sounds", "tunes")
BLOCK = 250
ALONE = 10  # blocks: below, starting workers costs more than it saves, with another stage on the other cores
VERSION = 3  # of the generators: raise it when a sample changes


def prepare(root: Path, part: str, clips: int, seed: int, workers: int | None = None) -> None:
    """Writes the corpus where it is missing or of another version; an interrupted call resumes by blocks of 250."""
    name, digest = _check(part, clips, seed), _digest(part, clips, seed)
    out = root / name
    if _complete(out, digest):
        return
    with locked(root / f".{name}.lock", f"writing {out}", wait=True):
        if _complete(out, digest):
            return
        with replacing(out, draft=root / f".{name}.{digest}") as draft:
            _render_missing(draft, part, clips, seed, workers)
            blocks = sorted(draft.glob("*/rows.jsonl"))
            write_bytes(draft / "metadata.jsonl", b"".join(p.read_bytes() for p in blocks))
            write_json(draft / "complete.json", {"digest": digest, "clips": clips})


def clips(root: Path, part: str, clips: int, seed: int) -> Iterator[Clip]:
    """Rows in order of number. Raises MissingInput where `prepare` has not run."""
    name = _check(part, clips, seed)
    if not _complete(root / name, _digest(part, clips, seed)):
        raise MissingInput(f"{root / name} is missing or of another version", "run `aut index`, which generates it")
    with (root / name / "metadata.jsonl").open() as lines:
        for line in lines:
            row = json.loads(line)
            uri = f"{name}/{row.pop('file')}"
            yield Clip(uri=uri, text_origin="template", licence=CARD.licence, **row)


def _check(part: str, clips: int, seed: int) -> str:
    if part not in PARTS:
        raise ConfigError(f"toy has no part '{part}'", f"choose one of {', '.join(PARTS)}")
    if clips < 1 or seed < 0:
        raise ConfigError(f"toy {part}: clips is {clips} and seed is {seed}", "clips >= 1 and seed >= 0")
    return f"{part}-{seed}-{clips}"


def _digest(part: str, clips: int, seed: int) -> str:
    return digest_json({"part": part, "clips": clips, "seed": seed, "version": VERSION})


def _complete(out: Path, digest: str) -> bool:
    marker = out / "complete.json"
    return marker.exists() and read_json(marker).get("digest") == digest


def _render_missing(draft: Path, part: str, clips: int, seed: int, workers: int | None) -> None:
    starts = [s for s in range(0, clips, BLOCK) if not (draft / f"{s // BLOCK:04d}/rows.jsonl").exists()]
    jobs: list[tuple[Any, ...]] = [(draft, part, seed, s, min(s + BLOCK, clips)) for s in starts]
    workers = workers or (1 if len(jobs) <= ALONE else min(os.cpu_count() or 1, len(jobs)))
    with progress(f"generate {part}", len(jobs) * BLOCK) as advance:
        if workers < 2:
            for job in jobs:
                _render_block(*job)
                advance(BLOCK)
            return
        # spawn: the caller may hold threads, which a fork would copy in an unknown state
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for future in [pool.submit(_render_block, *job) for job in jobs]:
                future.result()
                advance(BLOCK)


def _render_block(draft: Path, part: str, seed: int, start: int, stop: int) -> None:
    """Writes clips [start, stop), then the list of their rows: the list says that the block is whole."""
    import numpy as np

    render = import_module(f"aut.audio.synth_{part}").render
    block = f"{start // BLOCK:04d}"
    (draft / block).mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(start, stop):
        clip = render(seed, number)
        file = f"{block}/{number:06d}.wav"
        with wave.open(str(draft / file), "wb") as f:
            f.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
            f.writeframes(np.round(clip.pcm_T * 32767).astype("<i2").tobytes())
        key = f"{part}-{seed}-{number:06d}"
        rows.append({"key": key, "file": file, "text": clip.text, "label": clip.label, "source_id": clip.source_id})
    write_bytes(draft / block / "rows.jsonl", "".join(json.dumps(r) + "\n" for r in rows).encode())
