"""Columns: a row that lacks a cell or a key is refused, a table of which every row lacks it is an error.

In    a table's rows as they are read
Out   the whole ones, and `Bad` ones for `each` (_checked.py) to refuse; DataError that names the table and the column
Why   one row of millions that was cut or garbled must not stop a source, while a release whose columns are called
      otherwise must not end as millions of refusals. JSON has no header that could tell: the first FIRST rows do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aut.datasets import columns_of
from aut.datasets._checked import Bad
from aut.errors import DataError

FIRST = 100  # rows without a whole one among them, and the table is not what it was taken for


class Columns:
    """What the rows of one table have had so far, of what is wanted."""

    def __init__(self, table: Path, wanted: Sequence[str]) -> None:
        self._table, self._wanted = table, wanted
        self._known: dict[str, None] = {}  # keys of the rows before the first whole one
        self._rows, self._whole, self._first = 0, False, ""

    def of(self, row: Any, where: str) -> Any:
        """The row, a dict, or a `Bad` that says what it lacks; `where` names the row. DataError as `settle`."""
        self._rows += 1
        if not isinstance(row, Bad):
            row = self._checked(row, where)
        if not isinstance(row, Bad):
            self._whole = True
        else:
            self._first = self._first or str(row)
            if self._rows == FIRST:
                self.settle()
        return row

    def settle(self) -> None:
        """At a table's end: DataError where it had rows and none was whole."""
        if self._rows and not self._whole:
            columns_of(self._table, list(self._known), self._wanted if self._known else ())
            raise DataError(f"{self._table}: {self._first}; none of {self._rows} rows can be read", "mend it")

    def _checked(self, row: Any, where: str) -> Any:
        if not isinstance(row, dict):
            return Bad(f"{where} is a {type(row).__name__} where an object should be")
        if not self._whole:
            self._known |= dict.fromkeys(row)
        return row if all(c in row for c in self._wanted) else Bad(f"{where} has no '{self._lacking(row)}'")

    def _lacking(self, row: dict[str, Any]) -> str:
        return next(c for c in self._wanted if c not in row)
