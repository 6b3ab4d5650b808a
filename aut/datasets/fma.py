"""FMA: 106,574 tracks of the Free Music Archive, 161 genres, under the licence each artist chose.

In    fma_metadata/tracks.csv (three header lines: groups, columns, then `track_id`; quoted cells run over lines),
      genres.csv (genre_id, title ...), and fma_<size>/NNN/NNNNNN.mp3, as the archives of github.com/mdeff/fma unpack
Why   `subset` is the smallest size that a track belongs to: medium holds small, large and full hold all. genre_top is
      empty for half of large; captions then name the genres in track.genres. The set's splits keep an artist whole, so
      the artist is `source_id`. A few MP3s of large are cut short or empty (the repository's wiki lists them): they are
      listed, and `index` says why it quarantines them. `full` has whole tracks: raise index.max_s.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from aut.contracts import Card, Clip
from aut.datasets import choice, columns_of, needs
from aut.datasets._captions import TEMPLATES, fill
from aut.datasets._checked import Bad, each, facts
from aut.datasets._metadata import CELL, csv_rows, in_words, licence_of, several

CARD = Card(
    name="fma",
    title="FMA: A Dataset For Music Analysis",
    licence="CC BY 4.0 (metadata); audio as each artist chose",
    citation="M. Defferrard, K. Benzi, P. Vandergheynst, X. Bresson. FMA: A Dataset for Music Analysis. ISMIR 2017. "
    "arXiv:1612.01840",
    domain="music",
    clips=106_574,
    hours=888,
    classes=161,
    text_origin="template",
    homepage="https://github.com/mdeff/fma",
)
SIZES = {"small": ("small",), "medium": ("small", "medium"), "large": ("small", "medium", "large")}
SPLITS = {"train": "training", "validation": "validation", "test": "test"}
COLUMNS = ("set.split", "set.subset", "track.genre_top", "track.genres", "track.license", "artist.id")
WHAT = "FMA metadata archive"


def matches(root: Path) -> bool:
    return (root / "fma_metadata/tracks.csv").is_file()


def clips(root: Path, size: str = "large", splits: Sequence[str] = ("train",)) -> Iterator[Clip]:
    """Tracks in the order of tracks.csv; `size` small, medium, large or full; `splits` of train, validation, test."""
    choice("size", size, (*SIZES, "full"))
    names = {SPLITS[s]: s for s in several("splits", splits, SPLITS)}
    genres = csv_rows(root / "fma_metadata/genres.csv", WHAT, ("genre_id", "title"))
    titles: dict[str, str] = {}
    yield from facts("genres.csv", genres, lambda row: (row["genre_id"], row["title"]), titles)
    table = root / "fma_metadata/tracks.csv"
    yield from each(table.name, _tracks(table), partial(_clip, size, names, titles))


def _clip(size: str, names: Mapping[str, str], titles: Mapping[str, str], row: tuple[str, list[str]]) -> Iterator[Clip]:
    track, (split, subset, top, ids, licence, artist) = row
    if split not in names or subset not in SIZES.get(size, SIZES["large"]):
        return
    found = [titles[str(i)] for i in json.loads(ids or "[]") if str(i) in titles]
    number = f"{int(track):06d}"
    text = fill(TEMPLATES["genre"], in_words(found), number) if found and not top else None
    yield Clip(
        key=number,
        uri=f"fma_{size}/{number[:3]}/{number}.mp3",
        text=text,
        text_origin="none" if text is None else "template",
        label=top or None,
        split=names[split],
        source_id=f"artist-{artist}",
        licence=licence_of(licence) or "not stated",
        extra={"label_kind": "genre"},
    )


def _tracks(table: Path) -> Iterator[tuple[str, list[str]] | Bad]:
    """(track id, cells of COLUMNS)."""
    csv.field_size_limit(CELL)
    with needs(table, WHAT).open(newline="", encoding="utf-8", errors="surrogateescape") as f:
        reader = csv.reader(f)
        groups, names = next(reader, []), next(reader, [])
        header = [f"{group}.{name}" for group, name in zip(groups, names, strict=False)]
        columns_of(table, header, COLUMNS)
        places = [header.index(c) for c in COLUMNS]
        for row in reader:
            if row and row[0].isdigit():  # not the third header line
                short = Bad(f"line {reader.line_num} has not {len(header)} cells") if len(row) != len(header) else None
                yield short or (row[0], [row[p] for p in places])
