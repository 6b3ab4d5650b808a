"""Contents: what lay under each id when a source was last indexed here, so that an id never changes its sound unseen.

In    the parts of an index that is about to be kept
Out   AUT_WORK/index/<source>-<key>.contents.parquet: id, content_hash of every clip ever kept, by id
Why   a mixture, a blocklist and a result name clips by id. A recording that is replaced under its old name makes them
      speak of another sound, and an inventory of names and sizes does not see it. The file lies outside the stage's
      outs, which DVC removes before it runs. Both are sorted by id, so they are walked side by side, a batch at a
      time. Price: a machine that never indexed the source can compare with nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from aut.errors import DataError

if TYPE_CHECKING:
    import polars as pl

NAMED = 3  # changed clips that the message names
ROWS = 1 << 16  # of a batch: about 5 MB
COLUMNS = ["id", "content_hash"]


@dataclass(frozen=True)
class Contents:
    """The file, and whose it is."""

    path: Path
    source: str

    def begins_anew(self) -> bool:
        """Whether the source was indexed here before, yet from another place, by another decoder or as accepted."""
        mine = re.compile(re.escape(self.source) + r"-[0-9a-f]{16}\.contents\.parquet")
        known = (p.name for p in self.path.parent.glob(f"{self.source}-*.contents.parquet"))
        return not self.path.exists() and any(map(mine.fullmatch, known))

    def refuse_changed(self, parts: Sequence[Path]) -> None:
        """DataError that names clips whose decoded samples are not those of before. `parts` follow each other by id."""
        import polars as pl

        changed, named = 0, list[str]()
        for new, old in _side_by_side(_batches(parts), _batches([self.path])):
            other = new.join(old, on="id").filter(pl.col("content_hash") != pl.col("content_hash_right")).sort("id")
            changed += len(other)
            rows = other.head(NAMED - len(named)).iter_rows()
            named += [f"{i} (was {old[:8]}, is {new[:8]})" for i, new, old in rows]
        if changed:
            raise DataError(
                f"{changed} clips of {self.source} hold other audio than when they were last indexed: "
                + ", ".join(named)
                + (" ..." if changed > NAMED else ""),
                "restore the files or give changed recordings other names; "
                f"if they were meant to change, `aut sources scan {self.source} --accept-changed`",
            )

    def remember(self, parts: Sequence[Path]) -> None:
        """Adds the parts' clips; those that are gone stay known."""
        import polars as pl

        if not parts:
            return
        pairs = _side_by_side(_batches(parts), _batches([self.path]))
        known = (pl.concat([new, old.join(new, on="id", how="anti")]).sort("id") for new, old in pairs)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            _write(known, draft)
            os.replace(draft, self.path)
        finally:
            draft.unlink(missing_ok=True)


def _batches(files: Sequence[Path]) -> Iterator[pl.DataFrame]:
    """Id and hash of each file that is there, never an empty frame."""
    import polars as pl
    import pyarrow.parquet as pq

    for file in files:
        if file.exists():
            with pq.ParquetFile(file) as opened:
                for batch in opened.iter_batches(ROWS, columns=COLUMNS, use_threads=False):
                    if batch.num_rows:
                        frame = pl.from_arrow(batch)
                        assert isinstance(frame, pl.DataFrame)
                        yield frame.cast(dict.fromkeys(COLUMNS, pl.String))


def _side_by_side(new: Iterator[pl.DataFrame], old: Iterator[pl.DataFrame]) -> Iterator[tuple[pl.DataFrame, ...]]:
    """(rows of new, rows of old) of one stretch of ids after another; both ascend."""
    import polars as pl

    none = pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.String))
    left, right = next(new, None), next(old, None)
    while left is not None and right is not None:
        until = min(left["id"][-1], right["id"][-1])
        yield tuple(frame.filter(pl.col("id") <= until) for frame in (left, right))
        left, right = _after(until, left, new), _after(until, right, old)
    yield from ((frame, none) for frame in chain([] if left is None else [left], new))
    yield from ((none, frame) for frame in chain([] if right is None else [right], old))


def _after(until: str, frame: pl.DataFrame, others: Iterator[pl.DataFrame]) -> pl.DataFrame | None:
    import polars as pl

    rest = frame.filter(pl.col("id") > until)
    return rest if len(rest) else next(others, None)


def _write(frames: Iterator[pl.DataFrame], path: Path) -> None:
    """One row group a batch's rows or more: stretches may be short, and each time would leave more of them."""
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        held: list[pl.DataFrame] = []
        for frame in frames:
            held.append(frame)
            if sum(map(len, held)) >= ROWS:
                out.write_table(pl.concat(held).to_arrow().cast(schema))
                held = []
        if held:
            out.write_table(pl.concat(held).to_arrow().cast(schema))
