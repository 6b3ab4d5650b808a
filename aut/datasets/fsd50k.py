"""FSD50K: 51,197 Freesound recordings, labelled by people with 200 classes of AudioSet's ontology, several a clip.

In    FSD50K.ground_truth/{dev,eval}.csv (fname, labels, mids; dev has split: train or val),
      FSD50K.metadata/{dev,eval}_clips_info_FSD50K.json (fname -> title, license, uploader ...),
      FSD50K.metadata/collection/collection_{dev,eval}.csv, FSD50K.{dev,eval}_audio/<fname>.wav, as the archives of
      zenodo.org/records/4060432 unpack. `fname` is the Freesound id.
Why   dev.csv carries the ancestors of each label as well (Guitar, Musical_instrument, Music); the collection tables
      have what people chose, and captions are put together from those where they are there. `label` is given where
      there is just one. Licences differ by clip: CC0, CC BY, CC BY-NC and Sampling+.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aut.contracts import Card, Clip
from aut.datasets._checked import each, facts
from aut.datasets._metadata import caption_of, csv_rows, json_members, licence_of, several

CARD = Card(
    name="fsd50k",
    title="FSD50K",
    licence="CC BY 4.0 (the collection); CC0, CC BY, CC BY-NC or CC Sampling+ by clip",
    citation="E. Fonseca, X. Favory, J. Pons, F. Font, X. Serra. FSD50K: An Open Dataset of Human-Labeled Sound "
    "Events. IEEE/ACM TASLP 30, 2022. arXiv:2010.00475",
    domain="environment",
    clips=51_197,
    hours=108.3,
    classes=200,
    text_origin="template",
    homepage="https://zenodo.org/records/4060432",
)
SPLITS = {"train": "dev", "validation": "dev", "test": "eval"}
WHAT = "FSD50K download"


def matches(root: Path) -> bool:
    return (root / "FSD50K.ground_truth").is_dir()


def clips(root: Path, splits: Sequence[str] = ("train",)) -> Iterator[Clip]:
    """Clips in the order of dev.csv, then eval.csv; `splits` of train, validation, test."""
    chosen = several("splits", splits, SPLITS)
    for part in dict.fromkeys(SPLITS[s] for s in chosen):
        metadata = root / "FSD50K.metadata"
        infos, licences = metadata / f"{part}_clips_info_FSD50K.json", dict[str, Any]()
        yield from facts(infos.name, json_members(infos, WHAT, ("license",)), _licence, licences)
        collection, told = metadata / f"collection/collection_{part}.csv", dict[str, list[str]]()
        if collection.is_file():
            yield from facts(collection.name, csv_rows(collection, WHAT, ("fname", "labels")), _labels, told)
        columns = ("fname", "labels", *(("split",) if part == "dev" else ()))
        table = root / f"FSD50K.ground_truth/{part}.csv"
        yield from each(table.name, csv_rows(table, WHAT, columns), partial(_clip, part, chosen, told, licences))


def _clip(
    part: str,
    chosen: Sequence[str],
    told: Mapping[str, list[str]],
    licences: Mapping[str, Any],
    row: Mapping[str, str],
) -> Iterator[Clip]:
    fname = row["fname"]
    split = {"train": "train", "val": "validation"}.get(row["split"], "") if part == "dev" else "test"
    if split not in chosen:
        return
    labels = told.get(fname) or row["labels"].split(",")
    yield Clip(
        key=fname,
        uri=f"FSD50K.{part}_audio/{fname}.wav",
        text=caption_of(labels, fname),
        text_origin="template",
        label=labels[0] if len(labels) == 1 else None,
        split=split,
        source_id=fname,
        licence=licence_of(licences.get(fname, "")) or "not stated",
        extra={"freesound_id": fname, "label_kind": "sound"},
    )


def _licence(row: tuple[str, Mapping[str, Any]]) -> tuple[str, Any]:
    return row[0], row[1]["license"]


def _labels(row: Mapping[str, str]) -> tuple[str, list[str]] | None:
    """fname, and the labels that people chose."""
    return (row["fname"], row["labels"].split(",")) if row["labels"] else None
