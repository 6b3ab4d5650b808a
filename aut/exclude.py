"""Exclude: the clips that a person leaves out, whatever the screen says: a takedown, a recording that is no good.

In    data/exclude.txt: an id (<source>/<key>) a line; lines that begin with # are comments
Out   the ids
Why   one file of a known name, committed, mostly empty: DVC depends on it, and git says who left out what, when and why
"""

from __future__ import annotations

from pathlib import Path

from aut.errors import DataError, MissingInput


def excluded_ids(path: Path) -> list[str]:
    """The ids, each once, sorted. MissingInput without the file, DataError where it is no UTF-8."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except FileNotFoundError:
        raise MissingInput(f"{path} is missing", "write one id a line to leave clips out, or leave it empty") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {error}", "write it as UTF-8, one id a line") from None
    return sorted({line for line in lines if line and not line.startswith("#")})
