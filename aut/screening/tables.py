"""Tables: index parts and fingerprint parts of the sources that params name.

In    data/index/<role>/<source>/part-*.parquet, data/fingerprints/<role>/<source>/part-*.parquet
Out   one polars frame a part, with the columns the gates need; fingerprints as views into one buffer
Why   a part is the unit of work and of memory: the pool streams through, however long it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aut.config import Params
from aut.errors import DataError, MissingInput
from aut.layout import Layout

if TYPE_CHECKING:
    import polars as pl

COLUMNS = [
    "id", "domain", "source", "uri", "offset_b", "size_b", "start_s", "content_hash", "freesound_id", "youtube_id"
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an index, and the fingerprints of the same rows in the same order."""

    source: str
    index: Path
    fingerprints: Path

    def table(self) -> pl.DataFrame:
        import polars as pl

        return pl.read_parquet(self.index, columns=COLUMNS)

    def words(self, ids: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Fingerprints of `ids`, which must be this part's ids in order. DataError where they are not."""
        import pyarrow.parquet as pq

        if not self.fingerprints.exists():
            raise MissingInput(f"{self.fingerprints} is missing", f"run `aut index {self.source}`")
        table = pq.read_table(self.fingerprints, columns=["id", "fingerprint"])
        if table.column("id").to_pylist() != list(ids):
            raise DataError(
                f"{self.fingerprints} does not hold the rows of {self.index} in their order",
                f"run `aut index {self.source}` again",
            )
        return [np.frombuffer(b.as_buffer() if b.is_valid else b"", "<u4") for b in table.column("fingerprint")]


def pool_parts(params: Params, layout: Layout) -> list[Part]:
    """Parts of every source that feeds the training pool, in a fixed order."""
    return [p for n, s in sorted(params.sources.items()) if s.role != "probe" for p in _parts(layout, s.role, n)]


def probe_parts(params: Params, layout: Layout) -> list[Part]:
    """Parts of every probe set, in a fixed order."""
    return [p for n, s in sorted(params.sources.items()) if s.role == "probe" for p in _parts(layout, s.role, n)]


def _parts(layout: Layout, role: str, source: str) -> Iterator[Part]:
    folder = layout.index(role, source)  # type: ignore[arg-type]  # a Source's role, already checked
    found = sorted(folder.glob("part-*.parquet"))
    if not found:
        raise MissingInput(f"{folder} holds no part-*.parquet", f"run `aut index {source}`")
    for path in found:
        yield Part(source, path, layout.fingerprints(role, source) / path.name)  # type: ignore[arg-type]
