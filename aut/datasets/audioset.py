"""AudioSet: 2.1M clips of 10 s from YouTube, labelled by people with 527 classes, several a clip.

In    {balanced_train,unbalanced_train,eval}_segments.csv (two comment lines, then the header as a third: YTID,
      start_seconds, end_seconds, positive_labels; a space after each comma, labels quoted) and class_labels_indices.csv
      (index, mid, display_name), both from research.google.com/audioset/download.html. The audio is not part of the
      release: options.files says how the ten seconds, cut and saved by whoever fetched them, are called.
Why   a video that has gone is listed and quarantined as missing: give the source a quarantine_max_fraction of its own,
      what the download lacks. Captions are put together from all labels; `label` is given where there is just one, so
      that a probe never takes a mixture for a class. Every MusicCaps clip is one of these: `youtube_id` lets the screen
      see that.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from aut.contracts import Card, Clip
from aut.datasets import columns_of, needs
from aut.datasets._checked import Bad, each, facts, numbered
from aut.datasets._metadata import caption_of, csv_rows, placed, several

CARD = Card(
    name="audioset",
    title="AudioSet",
    licence="CC BY 4.0 (labels); audio under YouTube's terms",
    citation="J. F. Gemmeke et al. Audio Set: An ontology and human-labeled dataset for audio events. ICASSP 2017. "
    "doi:10.1109/ICASSP.2017.7952261",
    domain="environment",
    clips=2_084_320,
    hours=5_790,
    classes=527,
    text_origin="template",
    homepage="https://research.google.com/audioset",
)
SUBSETS = {"balanced_train": "train", "unbalanced_train": "train", "eval": "test"}
CLASSES = "class_labels_indices.csv"
COLUMNS = ("YTID", "start_seconds", "end_seconds", "positive_labels")
PART = 50_000  # rows of a {part}: PANNs' scripts keep the unbalanced set in 41 folders


def matches(root: Path) -> bool:
    return (root / CLASSES).is_file() and any(root.glob("*_segments.csv"))


def clips(
    root: Path,
    subsets: Sequence[str] = ("balanced_train", "unbalanced_train"),
    files: str = "audio/{subset}/{ytid}.wav",
) -> Iterator[Clip]:
    """Clips by subset, in the order of its table.

    subsets   of balanced_train, unbalanced_train, eval
    files     path below root; its fields are subset, ytid, start_s, end_s, start_ms, end_ms, part
    """
    classes = csv_rows(root / CLASSES, "AudioSet download", ("mid", "display_name"))
    names: dict[str, str] = {}
    # 'Bird vocalization, bird call, bird song' are names of one class: the first will do.
    yield from facts(CLASSES, classes, lambda row: (row["mid"], row["display_name"].split(",")[0]), names)
    for subset in several("subsets", subsets, SUBSETS):
        table = needs(root / f"{subset}_segments.csv", "AudioSet download")
        yield from each(table.name, numbered(_segments(table), 0), partial(_clip, names, subset, files))


def _clip(names: Mapping[str, str], subset: str, files: str, row: tuple[int, list[str]]) -> Iterator[Clip]:
    number, (ytid, start, end, mids) = row
    if unknown := [m for m in mids.split(",") if m not in names]:
        raise ValueError(f"{CLASSES} has no class {unknown[0]}")
    labels = [names[m] for m in mids.split(",")]
    start_ms, end_ms = round(float(start) * 1000), round(float(end) * 1000)
    cut = {"start_s": start_ms // 1000, "end_s": end_ms // 1000, "start_ms": start_ms, "end_ms": end_ms}
    yield Clip(
        key=ytid,
        uri=placed("files", files, subset=subset, ytid=ytid, part=number // PART, **cut),
        text=caption_of(labels, ytid),
        text_origin="template",
        label=labels[0] if len(labels) == 1 else None,
        split=SUBSETS[subset],
        source_id=ytid,
        licence=CARD.licence,
        extra={"youtube_id": ytid, "label_kind": "sound"},
    )


def _segments(table: Path) -> Iterator[list[str] | Bad]:
    """Cells of COLUMNS. DataError names a column that the last comment line lacks."""
    header: list[str] = []
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as f:
        reader = csv.reader(f, skipinitialspace=True)
        for row in reader:
            if row and row[0].startswith("#"):
                header = [row[0].lstrip("# "), *row[1:]]
                continue
            if not row:  # a blank line, mostly the last
                continue
            columns_of(table, header, COLUMNS)
            short = Bad(f"line {reader.line_num} has not {len(header)} cells") if len(row) != len(header) else None
            yield short or [row[header.index(c)] for c in COLUMNS]
