"""ESC-50: 2,000 clips of 5 s at 44.1 kHz, 50 classes, 5 folds that keep a source recording whole.

In    the archive of github.com/karolpiczak/ESC-50: meta/esc50.csv (filename, fold, target, category, esc10, src_file,
      take), audio/*.wav. Its README says that clips cut from one Freesound recording share a fold, and that `src_file`
      is that recording's id: it is kept for the screen.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from aut.contracts import Card, Clip
from aut.datasets._checked import each
from aut.datasets._metadata import csv_rows

CARD = Card(
    name="esc50",
    title="ESC-50: Environmental Sound Classification",
    licence="CC BY-NC 3.0",
    citation="K. J. Piczak. ESC: Dataset for Environmental Sound Classification. ACM Multimedia 2015. "
    "doi:10.1145/2733373.2806390",
    domain="environment",
    clips=2_000,
    hours=2.78,
    classes=50,
    homepage="https://github.com/karolpiczak/ESC-50",
)
TABLE = "meta/esc50.csv"
COLUMNS = ("filename", "fold", "category", "src_file")


def matches(root: Path) -> bool:
    return (root / TABLE).is_file()


def clips(root: Path, esc10: bool = False) -> Iterator[Clip]:
    """Rows in the order of esc50.csv; `esc10` keeps the 10-class subset, which is CC BY."""
    rows = csv_rows(root / TABLE, "ESC-50 archive", (*COLUMNS, *(("esc10",) if esc10 else ())))
    yield from each("esc50.csv", rows, partial(_clip, esc10))


def _clip(esc10: bool, row: dict[str, Any]) -> Iterator[Clip]:
    if esc10 and row["esc10"] != "True":
        return
    yield Clip(
        key=Path(row["filename"]).stem,
        uri=f"audio/{row['filename']}",
        label=row["category"],
        split=f"fold{row['fold']}",
        source_id=row["src_file"],
        licence="CC BY 3.0" if esc10 else CARD.licence,
        extra={"freesound_id": row["src_file"], "label_kind": "sound"},
    )
