"""Metadata: tables and JSON files read row by row, whatever their size, with errors that name file and place.

In    CSV, TSV, JSON lines (gzipped too), and JSON files of gigabytes that are one value
Out   rows, one at a time; one that cannot be used is a `Bad`, which `each` refuses
Why   GigaSpeech.json has a gigabyte, NSynth's examples.json 200 MB: json.load took 720 MB for a fifth of the former.
      Here one element is held, with a block of the file: 7 MB, and no slower, for less is allocated.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO, cast

from aut.datasets import columns_of, needs
from aut.datasets._captions import fill, humanise, pick_of
from aut.datasets._checked import Bad
from aut.datasets._columns import Columns
from aut.errors import ConfigError, DataError

Row = dict[str, Any]
BLOCK = 1 << 20  # characters read at a time
LARGEST = 1 << 28  # characters of one element: beyond, the file is taken for broken
SOUNDS = (
    "the sound of {label}",
    "{label} can be heard",
    "a recording of {label}",
    "this clip contains {label}",
    "sounds: {label}",
    "one hears {label}",
)
"""For clips with several labels at once; articles are left out, for most of AudioSet's names take none."""
CELL = 1 << 24  # characters of a CSV cell; Python's own limit is 128 Ki, FMA's biographies come close


def csv_rows(
    path: Path,
    what: str,
    wanted: Sequence[str] | None,
    delimiter: str = ",",
    quoted: bool = True,
    encoding: str = "utf-8-sig",
) -> Iterator[dict[str, str] | Bad]:
    """Rows of a table with a header; `wanted` columns must be there and filled, null: all that the header has.

    DataError names the file and the column it lacks, or the line where it is no table any more.
    """
    csv.field_size_limit(CELL)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    with needs(path, what).open(newline="", encoding=encoding, errors="surrogateescape") as f:
        reader = csv.DictReader(f, delimiter=delimiter, quoting=quoting)
        try:
            columns_of(path, reader.fieldnames, wanted or ())
            columns = Columns(path, (reader.fieldnames or ()) if wanted is None else wanted)
            for row in reader:
                where = f"line {reader.line_num}"
                yield columns.of(_filled(cast(dict[str | None, Any], row), where), where)
            columns.settle()
        except csv.Error as error:
            raise DataError(f"{path}, after line {reader.line_num}: {error}", "download the file again") from None


def _filled(row: dict[str | None, Any], where: str) -> dict[str | None, Any] | Bad:
    """Without what `csv` adds to a short row; a long one is bad, for its cells may have moved."""
    if any(cell.strip() for cell in row.pop(None, ())):
        return Bad(f"{where} has more cells than there are columns")
    return row if None not in row.values() else {c: v for c, v in row.items() if v is not None}


def json_lines(path: Path, what: str, wanted: Sequence[str]) -> Iterator[Row | Bad]:
    """Objects of a file that has one a line, gzipped where its name ends so. DataError for a gzip cut short."""
    opened = gzip.open if needs(path, what).suffix == ".gz" else open
    columns, number = Columns(path, wanted), 0
    try:
        with opened(path, "rb") as f:
            for line in f:
                number += 1
                if line.strip():
                    yield columns.of(_parsed(line, number), f"line {number}")
            columns.settle()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}, line {number}: {error}", "download the file again") from None


def _parsed(line: bytes, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return Bad(f"line {number}, character {error.pos}: {error.msg}")
    except (ValueError, RecursionError) as error:
        return Bad(f"line {number}: {error}")


def json_array(path: Path, what: str, key: str, wanted: Sequence[str]) -> Iterator[Row | Bad]:
    """Objects of the array under `key` of the object that a JSON file is, one in memory at a time."""
    columns = Columns(path, wanted)
    for name, stream in _members(needs(path, what)):
        if name != key:
            stream.value()
            continue
        for _ in stream.elements("[", "]"):
            yield columns.of(stream.value(), f"an element of '{key}'")
        columns.settle()
        return
    raise DataError(f"{path} has no key '{key}'", "download the file again")


def json_members(path: Path, what: str, wanted: Sequence[str]) -> Iterator[tuple[str, Row] | Bad]:
    """(name, object) pairs of the object that a JSON file is, one in memory at a time."""
    columns = Columns(path, wanted)
    for name, stream in _members(needs(path, what)):
        row = columns.of(stream.value(), f"'{name}'")
        yield row if isinstance(row, Bad) else (name, row)
    columns.settle()


def several(option: str, values: Sequence[str], known: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """The values of an option that takes more than one, in their known order; ConfigError for others or none."""
    if isinstance(values, str) or not values or set(values) - set(known):
        raise ConfigError(f"option {option} is {values!r}", f"give a list of: {', '.join(known)}")
    return [k for k in known if k in values]


def placed(option: str, pattern: str, **fields: Any) -> str:
    """`pattern` with its {fields} filled in. ConfigError names the fields where it has another."""
    try:
        return pattern.format(**fields)
    except (KeyError, IndexError, ValueError, AttributeError):
        raise ConfigError(f"option {option} is '{pattern}'", f"its fields are {{{'}, {'.join(fields)}}}") from None


def licence_of(url: str) -> str:
    """'http://creativecommons.org/licenses/by-nc/3.0/' -> 'CC BY-NC 3.0'; what is no such address stays as it is."""
    parts = url.strip().rstrip("/").split("/")
    if "creativecommons.org" not in url or len(parts) < 3:
        return url.strip()
    kind, version = parts[-2], parts[-1]
    if kind == "zero":
        return f"CC0 {version}"
    return f"CC {kind.capitalize() if kind.startswith('sampling') else kind.upper()} {version}"


def in_words(labels: Sequence[str]) -> str:
    """['Dog', 'Loud_rain', 'R&B'] -> 'dog, loud rain and R&B': several labels as one phrase."""
    words = [" ".join(w if w.isupper() else w.lower() for w in humanise(label).split()) for label in labels]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def one_of(texts: Sequence[str], key: str) -> str:
    """The text that the key's hash picks: the same on every machine."""
    return texts[pick_of(key, len(texts))]


def caption_of(labels: Sequence[str], key: str) -> str:
    """A caption that claims the labels and no more, one of several by the key's hash."""
    return fill(SOUNDS, in_words(labels), key)


# --- JSON, a value at a time --------------------------------------------------------------------------------------


def _members(path: Path) -> Iterator[tuple[str, _Stream]]:
    """(name, the stream at its value) for each member of the object at the top; the caller takes the value."""
    with path.open(encoding="utf-8") as f:
        stream = _Stream(f, path)
        for _ in stream.elements("{", "}"):
            name = stream.value()
            stream.take(":")
            yield str(name), stream


class _Stream:
    """A JSON text that is read as it is needed: `elements` walks an array or object, `value` takes one value."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file, self._path = file, path
        self._text, self._at, self._before = "", 0, 0
        self._decode = json.JSONDecoder().raw_decode

    def elements(self, opening: str, closing: str) -> Iterator[None]:
        self.take(opening)
        if self._peek() == closing:
            self.take(closing)
            return
        while True:
            yield
            if self.take("," + closing) == closing:
                return

    def take(self, one_of: str) -> str:
        found = self._peek()
        if not found or found not in one_of:
            raise self._broken(f"{found or 'the end'} where {' or '.join(one_of)} should be")
        self._at += 1
        return found

    def value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                size = end - self._at
                # A number that ends where the block ends may go on in the next.
                if end < len(self._text) or not self._more():
                    self._at += size
                    return value
            except json.JSONDecodeError as error:
                if not self._more():
                    raise self._broken(error.msg) from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets
                raise self._broken(str(error)) from None

    def _peek(self) -> str:
        """The next character that is no space; '' at the end."""
        while True:
            rest = self._text[self._at : self._at + 1]
            if rest and not rest.isspace():
                return rest
            if not rest and not self._more():
                return ""
            self._at += bool(rest)

    def _more(self) -> bool:
        kept = self._text[self._at :]
        if len(kept) > LARGEST:
            raise self._broken(f"one value of more than {LARGEST:,} characters")
        try:
            read = self._file.read(max(BLOCK, len(kept)))  # doubling: a large value is not tried over and over
        except UnicodeDecodeError as error:
            raise self._broken(str(error)) from None
        self._before += self._at
        self._text, self._at = kept + read, 0
        return bool(read)

    def _broken(self, why: str) -> DataError:
        return DataError(f"{self._path}, character {self._before + self._at}: {why}", "download the file again")
