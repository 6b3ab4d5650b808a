"""Causes: why clips of the pools must not be taken, by id; the licences that are left out are found in plan.py.

In    data/screen/blocklist.parquet, data/exclude.txt
Out   keys of their ids, and for stats.json and warnings how many of them the pools hold
Why   an id that no source has is a list out of date, or a typing mistake: it is counted and told. Ids of a source whose
      domain has no quota are neither: its index is not read, so they are counted apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aut.config import Params
from aut.errors import MissingInput
from aut.exclude import excluded_ids
from aut.layout import Layout
from aut.mixing.keys import U64, row_keys
from aut.units import DOMAINS

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Cause:
    """A list of ids. `keys` ascend and are looked for; `unused` ids are of sources whose domain has no quota."""

    name: str
    ids: str  # what they are called
    keys: U64
    unused: int

    def coverage(self, known: int) -> dict[str, int]:
        """Counts for stats.json, where the pools hold `known` of the keys."""
        all_ids = len(self.keys) + self.unused
        return {"ids": all_ids, "in_pool": known, "unused": self.unused, "unknown": len(self.keys) - known}

    def warning(self, known: int) -> str:
        """'' where every id is known."""
        count = self.coverage(known)
        if not count["unknown"]:
            return ""
        apart = f"; {self.unused} more are of sources whose domain has no quota" if self.unused else ""
        return f"{count['unknown']} of {count['ids']} {self.ids} are in no pool source{apart}"


def causes(params: Params, layout: Layout) -> list[Cause]:
    """The screen's list, then the person's. MissingInput for a file that is not there."""
    import pyarrow as pa

    listed = pa.array(excluded_ids(layout.exclude), pa.string())
    return [
        _cause("blocklist", "blocked ids", _blocklist(layout.screen / "blocklist.parquet"), params),
        _cause("exclude", f"ids of {layout.exclude.relative_to(layout.root)}", listed, params),
    ]


def _cause(name: str, called: str, ids: pa.StringArray, params: Params) -> Cause:
    import pyarrow as pa
    import pyarrow.compute as pc

    unused = np.zeros(len(ids), np.bool_)
    for domain in DOMAINS:
        for source in () if params.mixture.quota.get(domain) else params.pool(domain):
            unused |= pc.starts_with(ids, pattern=f"{source}/").to_numpy(zero_copy_only=False)
    keys = row_keys(ids.filter(pa.array(~unused)), params.seed)
    return Cause(name, called, np.sort(keys), int(unused.sum()))


def _blocklist(path: Path) -> pa.StringArray:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not path.exists():
        raise MissingInput(f"{path} is missing", "run `aut screen`")
    ids = pc.unique(pq.read_table(path, columns=["id"])["id"])
    return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
