"""Table: a CSV, TSV, JSONL or Parquet file with a row a clip; the options say which column is what.

In    options.file, and the audio that its rows name, relative to options.audio
Why   most corpora are a table beside a folder. A mapping in params reads them without code; what a table does not say
      (licence, split, recording) is a constant, or a column of a second table.
Price CSV and JSONL stream; a joined table is held in memory.
Run   aut sources check PATH --dataset table
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from aut.contracts import Card, Clip
from aut.datasets import choice, columns_of, needs, refused
from aut.datasets._captions import TEMPLATES, fill
from aut.datasets._checked import Bad, each, facts, numbered
from aut.datasets._columns import FIRST
from aut.datasets._metadata import csv_rows, json_lines
from aut.errors import ConfigError, DataError

CARD = Card(
    name="table",
    title="A table with a row a clip",
    licence="given by a column or options.constants",
    citation="the corpus' own",
    domain=None,
)
EXTRA = ("freesound_id", "youtube_id")
FIELDS = (
    "uri", "key", "text", "text_origin", "label", "split", "source_id", "licence", "start_s", "length_s", *EXTRA
)  # fmt: skip
NAMES: dict[str, tuple[str, ...]] = {
    "uri": ("uri", "filename", "file", "path", "file_name", "audio_filepath"),
    "key": ("key",),
    "text": ("text", "caption", "sentence", "transcript"),
    "label": ("label", "category", "class"),
    "split": ("split", "fold_or_split", "fold"),
    "source_id": ("source_id",),
    "licence": ("licence", "license"),
    "freesound_id": ("freesound_id",),
    "youtube_id": ("youtube_id",),
}
"""Columns that are taken where options.columns is not given: the first of each that the table has."""

JSON = (".jsonl", ".json")

Row = dict[str, Any]


def clips(
    root: Path,
    file: str,
    columns: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
    formats: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
    join: Sequence[Mapping[str, str]] | None = None,
    templates: Sequence[str] | None = None,
    label_kind: str | None = None,
    audio: str = "",
) -> Iterator[Clip]:
    """Rows in the table's order; `extra` has each one's number, from 1 below the header.

    columns      field -> column; null: the columns whose names say so (NAMES)
    constants    field -> value for every row, where the column says nothing
    formats      field -> text with {}, around the value: {split: "fold{}"}
    where        column -> value, or list of values, of the rows to read; null stands for an empty cell
    join         [{file, left, right}]: columns of a second table, as `<its stem>.<column>`, where its column `right`
                 equals ours `left`
    templates    captions for rows without text; {label} and {a_label} are filled in, one is picked by the row's hash
    label_kind   sound, instrument, genre, word ...: which of the built-in templates fit; null: the domain's
    audio        folder, below root, that the uri column starts at

    Raises ConfigError for options, DataError naming file and column.
    """
    if label_kind is not None:
        choice("label_kind", label_kind, tuple(TEMPLATES))
    for option, given in (("columns", columns), ("constants", constants), ("formats", formats)):
        if unknown := sorted(set(given or {}) - set(FIELDS)):
            raise ConfigError(f"option {option} names '{unknown[0]}'", f"the fields are {', '.join(FIELDS)}")
    _check_templates(templates)
    path = needs(root / file, "table")
    joined = [_Join.of(root, j) for j in join or ()]
    header = [*_header(path), *(name for j in joined for name in j.names)]
    mapping = dict(columns) if columns is not None else _named(header)
    if "uri" not in mapping:
        raise DataError(f"{path} has no column that names the audio file", "say which in options.columns.uri")
    wanted = (*mapping.values(), *(where or {}), *(j.left for j in joined))
    lacking = set(wanted).difference(header) if path.suffix in JSON else set()  # a key may first come in a later row
    columns_of(path, [*header, *lacking], wanted)
    for j in joined:
        yield from j.read()
    recipe = _Recipe(mapping, constants or {}, formats or {}, templates, label_kind, audio)

    def listed(at: tuple[int, Row]) -> Iterator[Clip]:
        number, row = at
        lacking.difference_update(row)
        for j in joined:
            row |= j.rows.get(_cell(row, j.left) or "", {})
        if all(_cell(row, c) in _values(v) for c, v in (where or {}).items()):
            yield recipe.clip(row, number)

    yield from each(file, numbered(_rows(path), 1), listed)
    columns_of(path, header, sorted(lacking))


@dataclass(frozen=True)
class _Recipe:
    """How a row becomes a clip: the options of `clips`."""

    columns: Mapping[str, str]
    constants: Mapping[str, str]
    formats: Mapping[str, str]
    templates: Sequence[str] | None
    label_kind: str | None
    audio: str

    def clip(self, row: Row, number: int) -> Clip:
        known = self._fields(row)
        if "uri" not in known:
            return refused(f"row-{number}", "", "missing", f"row {number} names no file")
        try:
            start_s = float(known.get("start_s", 0.0))
            length_s = float(known["length_s"]) if "length_s" in known else None
        except ValueError:
            return refused(f"row-{number}", known["uri"], "bad_cut", f"row {number}: start_s or length_s is no number")
        cut = f"@{start_s:g}" if start_s or length_s is not None else ""
        key = known.get("key", known["uri"] + cut)
        text, origin = self._text(known, key)
        return Clip(
            key=key,
            uri=f"{self.audio}/{known['uri']}" if self.audio else known["uri"],
            text=text,
            text_origin=origin,
            label=known.get("label"),
            split=known.get("split", ""),
            source_id=known.get("source_id", ""),
            licence=known.get("licence", ""),
            start_s=start_s,
            length_s=length_s,
            extra=self._extra(known, number),
        )

    def _fields(self, row: Row) -> dict[str, str]:
        cells = {f: v for f, c in self.columns.items() if (v := _cell(row, c)) is not None}
        return dict(self.constants) | {f: self.formats.get(f, "{}").format(v) for f, v in cells.items()}

    def _text(self, known: Mapping[str, str], key: str) -> tuple[str | None, str]:
        """(text, its origin)."""
        if "text" in known:
            return known["text"], known.get("text_origin", "human")
        if self.templates:
            return fill(self.templates, known.get("label") or "", key), "template"
        return None, "none"

    def _extra(self, known: Mapping[str, str], number: int) -> dict[str, str]:
        kind = {"label_kind": self.label_kind} if self.label_kind else {}
        return {f: known[f] for f in EXTRA if f in known} | kind | {"row": str(number)}


def _named(header: Sequence[str]) -> dict[str, str]:
    found = {field: next((n for n in names if n in header), None) for field, names in NAMES.items()}
    return {field: name for field, name in found.items() if name}


def _check_templates(templates: Sequence[str] | None) -> None:
    for template in templates or ():
        try:
            fill([template], "label", "")
        except (KeyError, IndexError, ValueError):
            raise ConfigError(
                f"option templates holds '{template}'", "only {label} and {a_label} can be filled in"
            ) from None


def _cell(row: Row, column: str) -> str | None:
    """Text of a cell; None where it is empty."""
    value = row.get(column)
    return None if value is None or str(value).strip() == "" else str(value)


def _values(wanted: Any) -> set[str | None]:
    return {None if v is None else str(v) for v in (wanted if isinstance(wanted, list | tuple) else [wanted])}


@dataclass
class _Join:
    """A second table: our column `left` holds what its column `right` does."""

    path: Path
    left: str
    right: str
    names: list[str]
    rows: dict[str, Row] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path, join: Mapping[str, str]) -> _Join:
        if set(join) != {"file", "left", "right"}:
            raise ConfigError(f"option join has the keys {', '.join(join)}", "it takes file, left and right")
        path = needs(root / join["file"], "table")
        names = _header(path)
        columns_of(path, names, (join["right"],))
        return cls(path, join["left"], join["right"], [f"{path.stem}.{name}" for name in names])

    def read(self) -> Iterator[Clip]:
        """Fills `rows`; refusals of those that cannot be read."""
        yield from facts(self.path.name, _rows(self.path), self._told, self.rows)

    def _told(self, row: Row) -> tuple[str, Row]:
        return _cell(row, self.right) or "", {f"{self.path.stem}.{k}": v for k, v in row.items()}


# --- the formats --------------------------------------------------------------------------------------------------


def _header(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        with _parquet_file(path) as table:
            return list(table.schema_arrow.names)
    if path.suffix in JSON:  # of the first rows
        return list(dict.fromkeys(key for row in islice(_rows(path), FIRST) if not isinstance(row, Bad) for key in row))
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as f:
        try:
            return next(csv.reader(f, delimiter=_delimiter(path)), [])
        except csv.Error as error:
            raise DataError(f"{path}, line 1: {error}", "mend it") from None


def _rows(path: Path) -> Iterator[Row | Bad]:
    if path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.suffix in JSON:
        yield from json_lines(path, "table", ())
    elif path.suffix in (".csv", ".tsv", ".txt"):
        yield from csv_rows(path, "table", None, _delimiter(path))
    else:
        raise ConfigError(f"option file is '{path.name}'", "give a .csv, .tsv, .jsonl or .parquet file")


def _delimiter(path: Path) -> str:
    return "," if path.suffix == ".csv" else "\t"


def _parquet(path: Path) -> Iterator[Row]:
    with _parquet_file(path) as table:
        for batch in table.iter_batches(batch_size=8192):
            yield from batch.to_pylist()


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            yield table
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        why = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as Parquet: {why}", "write it again") from None
