"""Clotho: 5,929 Freesound recordings of 15 to 30 s with five captions each, written by people (version 2.1).

In    clotho_captions_<split>.csv (file_name, caption_1 .. caption_5), clotho_metadata_<split>.csv (file_name, sound_id,
      license ...; not UTF-8 but ISO-8859-1) and <split>/<file_name>, for development, validation and evaluation, as
      zenodo.org/records/4783391 has them. The separate `test` split has no captions and is not read.
Why   a clip is listed once, with the caption that its key's hash picks, so that its audio does not count fivefold;
      options.every lists all five. `sound_id` is Freesound's, or 'Not found'. Licences differ by clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from aut.contracts import Card, Clip
from aut.datasets._checked import each, facts
from aut.datasets._metadata import csv_rows, licence_of, one_of, several

CARD = Card(
    name="clotho",
    title="Clotho",
    licence="captions for research only (Tampere University licence); audio CC by clip",
    citation="K. Drossos, S. Lipping, T. Virtanen. Clotho: an Audio Captioning Dataset. ICASSP 2020. arXiv:1910.09387",
    domain="environment",
    clips=5_929,
    hours=37,
    text_origin="human",
    homepage="https://zenodo.org/records/4783391",
)
SPLITS = {"train": "development", "validation": "validation", "test": "evaluation"}
CAPTIONS = tuple(f"caption_{n}" for n in range(1, 6))
WHAT = "Clotho download"


def matches(root: Path) -> bool:
    return any((root / f"clotho_captions_{part}.csv").is_file() for part in SPLITS.values())


def clips(root: Path, splits: Sequence[str] = ("train",), every: bool = False, audio: str = "") -> Iterator[Clip]:
    """Clips in the order of the caption tables.

    splits   of train, validation, test
    every    a row for each of a clip's five captions
    audio    folder below root that has development/ and the others
    """
    for split in several("splits", splits, SPLITS):
        part = SPLITS[split]
        columns = ("file_name", "sound_id", "license")
        metadata = root / f"clotho_metadata_{part}.csv"
        table = csv_rows(metadata, WHAT, columns, encoding="iso-8859-1")
        known: dict[str, tuple[str, str]] = {}
        yield from facts(metadata.name, table, _known, known)
        captions = root / f"clotho_captions_{part}.csv"
        rows = csv_rows(captions, WHAT, ("file_name", *CAPTIONS))
        yield from each(captions.name, rows, partial(_clips, known, split, every, audio))


def _known(row: Mapping[str, str]) -> tuple[str, tuple[str, str]]:
    return row["file_name"], (row["sound_id"], licence_of(row["license"]))


def _clips(
    known: Mapping[str, tuple[str, str]], split: str, every: bool, audio: str, row: Mapping[str, str]
) -> Iterator[Clip]:
    part, name = SPLITS[split], row["file_name"]
    sound_id, licence = known.get(name, ("", ""))
    key = f"{part}/{name.removesuffix('.wav')}"
    captions = [row[c] for c in CAPTIONS]
    for number, text in enumerate(captions if every else [one_of(captions, key)], start=1):
        yield Clip(
            key=f"{key}#{number}" if every else key,
            uri=f"{audio}/{part}/{name}" if audio else f"{part}/{name}",
            text=text,
            text_origin="human",
            split=split,
            source_id=sound_id if sound_id.isdigit() else name,
            licence=licence or "not stated",
            extra={"freesound_id": sound_id} if sound_id.isdigit() else {},
        )
