"""Contents: what lay under each id when a source was last indexed here, so that an id never changes its sound unseen.

In    the parts of an index that is about to be kept
Out   AUT_WORK/index/<source>-<key>.contents.parquet: id, content_hash of every clip ever kept
Why   a mixture, a blocklist and a result name clips by id. A recording that is replaced under its old name makes them
      speak of another sound, and an inventory of names and sizes does not see it. The file lies outside the stage's
      outs, which DVC removes before it runs. Price: a machine that never indexed the source can compare with nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aut.errors import DataError

if TYPE_CHECKING:
    import polars as pl

NAMED = 3  # changed clips that the message names


@dataclass(frozen=True)
class Contents:
    """The file, and whose it is."""

    path: Path
    source: str

    def refuse_changed(self, parts: Sequence[Path]) -> None:
        """DataError that names clips whose decoded samples are not those of before."""
        import polars as pl

        if not self.path.exists() or not parts:
            return
        both = _columns(parts).join(pl.scan_parquet(self.path), on="id")
        changed = both.filter(pl.col("content_hash") != pl.col("content_hash_right")).sort("id").collect()
        if len(changed):
            named = ", ".join(f"{i} (was {old[:8]}, is {new[:8]})" for i, new, old in changed.head(NAMED).iter_rows())
            raise DataError(
                f"{len(changed)} clips of {self.source} hold other audio than when they were last indexed: {named}"
                + (" ..." if len(changed) > NAMED else ""),
                "restore the files or give changed recordings other names; "
                f"if they were meant to change, `aut sources scan {self.source} --accept-changed`",
            )

    def remember(self, parts: Sequence[Path]) -> None:
        """Adds the parts' clips; those that are gone stay known."""
        import polars as pl

        if not parts:
            return
        known = _columns(parts)
        if self.path.exists():
            known = pl.concat([known, pl.scan_parquet(self.path).join(known, on="id", how="anti")])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        known.collect().write_parquet(draft, compression="zstd")
        os.replace(draft, self.path)


def _columns(parts: Sequence[Path]) -> pl.LazyFrame:
    import polars as pl

    return pl.scan_parquet(list(parts)).select("id", "content_hash")
