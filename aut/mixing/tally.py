"""Tally: clips and hours by source, licence, text origin and duration, added up in any order to the same sums.

In    taken rows, those that are not blocked
Out   stats.json's entries, and the CSV behind the plot of the composition
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

EDGES_S = [0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 15.0, 20.0, 30.0]  # of the duration histogram
LENGTHS = ["", *(f"to {e:g} s" for e in EDGES_S), f"over {EDGES_S[-1]:g} s"]
KINDS = ("source", "licence", "text_origin", "duration")


@dataclass
class Tally:
    """Counts by (kind, value), kind as in stats.json. Milliseconds are whole: any order of adding, one sum."""

    clips: Counter[tuple[str, str]] = field(default_factory=Counter)
    milliseconds: Counter[tuple[str, str]] = field(default_factory=Counter)

    @classmethod
    def of(cls, source: str, rows: pa.RecordBatch, dead: NDArray[np.int64]) -> Tally:
        """Counts `rows` less those at indices `dead`."""
        out, live = cls(), np.ones(len(rows), np.bool_)
        live[dead] = False
        ms = np.round(np.nan_to_num(rows["duration_s"].to_numpy(zero_copy_only=False)) * 1000)[live]
        for kind in ("licence", "text_origin"):
            coded = rows[kind]
            codes = coded.indices.fill_null(-1).to_numpy()[live] + 1
            out._count(kind, ["unknown", *coded.dictionary.to_pylist()], codes, ms)
        out._count("duration", LENGTHS, np.searchsorted(EDGES_S, ms / 1000) + 1, ms)
        out._count("source", [source], np.zeros(len(ms), np.int64), ms)
        return out

    def add(self, other: Tally) -> None:
        self.clips.update(other.clips)
        self.milliseconds.update(other.milliseconds)

    def _count(self, kind: str, names: list[str], codes: NDArray[Any], ms: NDArray[Any]) -> None:
        clips = np.bincount(codes, minlength=len(names))
        lasted = np.bincount(codes, weights=ms, minlength=len(names))  # whole numbers below 2^53: exact in any order
        for i in np.flatnonzero(clips).tolist():
            self.clips[kind, names[i]] += int(clips[i])
            self.milliseconds[kind, names[i]] += int(lasted[i])


def merge(stats: dict[str, Any], tally: Tally, weight: float) -> None:
    """Adds a source's counts to `stats[kind][value]`; a clip's share of an epoch is `weight`."""
    for (kind, name), clips in sorted(tally.clips.items()):
        entry = stats[kind].setdefault(name, {"clips": 0, "hours": 0.0, "share": 0.0})
        entry["clips"] += clips
        entry["hours"] = round(entry["hours"] + tally.milliseconds[kind, name] / 3.6e6, 6)
        entry["share"] = round(entry["share"] + clips * weight, 9)


def shares(stats: Mapping[str, Any]) -> bytes:
    """CSV part,share: domains, then sources, licences, text origins, durations."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["part", "share"])
    for kind in ("domain", *KINDS):
        names = [name for name in LENGTHS if name in stats[kind]] if kind == "duration" else stats[kind]
        rows.writerows([f"{kind.replace('_', ' ')}: {name}", stats[kind][name]["share"]] for name in names)
    return text.getvalue().encode()
