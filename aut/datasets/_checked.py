"""Checked: rows of metadata become clips one by one; a row that cannot be a clip is refused, and the rest are read.

In    a table's rows, as an adapter reads them, and the function that makes clips of one
Out   its clips; for a row that raises, and for a clip that no index could hold, one refused as `bad_metadata`
Why   metadata come from outside: a number where a name should be, a null time, half a surrogate pair. One such row of
      millions must not stop a source, nor go unseen; quarantine_max_fraction says how many are too many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from aut.contracts import Clip
from aut.datasets._captions import humanise

R = TypeVar("R")
V = TypeVar("V")
BAD = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)
"""What a row of the wrong shape raises; errors that name a whole file (DataError) or an option pass."""
TEXTS = ("key", "uri", "text_origin", "split", "source_id", "licence")
LONGEST = 200  # characters of a reason's detail


class Bad(ValueError):
    """In place of a row that could not be read whole: why."""


def refused(key: str, uri: str, reason: str, detail: str) -> Clip:
    """A row that must not be read: `index` quarantines it."""
    return Clip(key=plain(key), uri=plain(uri), extra={"refused": reason, "detail": plain(detail)})


def each(table: str, rows: Iterable[R | Bad], make: Callable[[R], Iterable[Clip]], above: str = "") -> Iterator[Clip]:
    """Clips of the rows. One that cannot be made into clips is refused under the table's name and the row's number.

    `above` numbers the row that these are part of: "3." makes them 3.1, 3.2 ...
    """
    for number, row in enumerate(rows, start=1):
        try:
            if isinstance(row, Bad):
                raise row
            found = list(make(row))
            if fault := next(filter(None, map(fault_of, found)), ""):
                raise ValueError(fault)
        except BAD as error:
            why = str(error) if type(error) in (ValueError, Bad) else f"{type(error).__name__}: {error}"
            why = " ".join(why.split())[:LONGEST]
            at = f"{above}{number}"
            found = [refused(f"{table}#{at}", "", "bad_metadata", f"{table}, row {at}: {why}")]
        yield from found


def numbered(rows: Iterable[R | Bad], start: int) -> Iterator[tuple[int, R] | Bad]:
    """The rows with their numbers."""
    for number, row in enumerate(rows, start):
        yield row if isinstance(row, Bad) else (number, row)


def facts(
    table: str, rows: Iterable[R | Bad], told: Callable[[R], tuple[str, V] | None], into: dict[str, V]
) -> Iterator[Clip]:
    """Fills `into` from a table about clips that another lists; no clip but refusals of rows that cannot be used."""

    def learn(row: R) -> tuple[()]:
        into.update(filter(None, [told(row)]))
        return ()

    yield from each(table, rows, learn)


def checked(clip: Clip) -> Clip:
    """The clip, or its refusal where an index could not hold it."""
    fault = fault_of(clip)
    return refused(str(clip.key), str(clip.uri), "bad_metadata", fault) if fault else clip


def fault_of(clip: Clip) -> str:
    """What makes a clip one that no index can hold; '' for all others."""
    try:  # nearly every clip: one look at all its texts, for millions are listed
        text, label = ("" if t is None else t for t in (clip.text, clip.label))
        known = (clip.key, clip.uri, text, clip.text_origin, label, clip.split, clip.source_id, clip.licence)
        "".join((*known, *clip.extra.values())).encode()
        if math.isfinite(clip.start_s + (clip.length_s or 0.0)) and "\0" not in clip.uri and not _blank(label):
            return ""
    except (TypeError, UnicodeEncodeError):
        pass
    return _fault(clip)


def _blank(label: str) -> bool:
    return bool(label) and not humanise(label)


def _fault(clip: Clip) -> str:
    named = [(name, getattr(clip, name)) for name in TEXTS]
    named += [(name, value) for name in ("text", "label") if (value := getattr(clip, name)) is not None]
    for name, value in [*named, *clip.extra.items()]:
        if not isinstance(value, str):
            return f"{name} is {plain(repr(value))[:LONGEST]}, no text"
        if not value.isascii() and plain(value) != value:
            return f"{name} '{plain(value)[:LONGEST]}' is no valid UTF-8"
    if "\0" in clip.uri:
        return "uri holds a NUL"
    if clip.label and _blank(clip.label):
        return f"label '{clip.label}' holds no word"
    for name, at in (("start_s", clip.start_s), ("length_s", clip.length_s)):
        if at is not None and not (isinstance(at, int | float) and math.isfinite(at)):
            return f"{name} is {at!r}, no time"
    return ""


def plain(text: Any) -> str:
    """Text with halves of surrogate pairs, and bytes that were no UTF-8, spelled out."""
    return str(text).encode("utf-8", "backslashreplace").decode()
