"""Gates: three ways in which a training clip can be a probe clip in disguise.

In    a part of the pool (table and fingerprints), the probe clips
Out   flagged pairs (id, gate, probe_set, probe_id, score, offset_s)
Why   each sees what the others cannot: `id` a recording cut elsewhere (Freesound and YouTube ids, in columns or in
      the names that ESC-50, UrbanSound8K, AudioSet and MusicCaps give their files: NAMES), `content` the same samples
      however the file is packed, `acoustic` a copy that went through a codec, a cut, a gain, noise or another speed.
Price `id` and `content` are joins; `acoustic` costs half a millisecond a clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aut.audio.match import Index

if TYPE_CHECKING:
    import polars as pl

GATES = ("id", "content", "acoustic")

# Where public sets write a known id into a file's name. Bare numbers are left to the `freesound_id` column:
# 0001.wav in two folders is no common recording.
YOUTUBE = "([A-Za-z0-9_-]{10}[AEIMQUYcgkosw048])"  # 64 bits as 66: the two lowest of the last character are zero
CASES = ("[a-z]", ".[A-Z]")  # small letters, and a capital that does not begin the name: 99 % of ids
JUMBLED = "[0-9].*[A-Za-z]|[a-z][A-Z].*[A-Z]{2}|[A-Z]{2}.*[a-z][A-Z]|[a-z][A-Z][a-z][A-Z]"
MIXED = (*CASES, JUMBLED)  # and a digit before a letter, or capitals as words do not have them: 97 % of ids
NAMES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("freesound", r"^[1-5]-(\d+)-[A-Z](?:-\d+)?$", ()),  # ESC-50: fold-freesound-take-target
    ("freesound", r"^(\d+)-\d+-\d+-\d+$", ()),  # UrbanSound8K: freesound-class-occurrence-slice
    ("freesound", r"^freesound[-_](\d+)$", ()),
    ("youtube", rf"^\[{YOUTUBE}\]-\[\d+-\d+\]$", ()),  # MusicCaps: [id]-[start-end]
    ("youtube", rf"\[{YOUTUBE}\]$", CASES),  # yt-dlp: title [id]
    ("youtube", rf"^Y?{YOUTUBE}_\d+(?:\.\d+)?_\d+(?:\.\d+)?$", CASES),  # AudioSet: id_start_end, with a Y or without
    ("youtube", rf"^Y?{YOUTUBE}_\d+(?:\.\d+)?$", MIXED),  # id_start
    ("youtube", rf"^Y{YOUTUBE}$", MIXED),  # AudioSet copies prefix a Y: an id may start with a dash
    ("youtube", rf"^{YOUTUBE}$", MIXED),
)
"""(kind, pattern whose group is the id, what the id must hold as well).

The less a name's form says, the more must the id look like one: `hello_world_12`, `kitchen-fan_3` and `Yesterday123`
have the length of one. What a name does not show (3 % of bare ids), a column `youtube_id` does.
"""


def flagged_schema() -> dict[str, pl.DataType | type[pl.DataType]]:
    import polars as pl

    return {
        "id": pl.String,
        "gate": pl.String,
        "probe_set": pl.String,
        "probe_id": pl.String,
        "score": pl.Float64,
        "offset_s": pl.Float64,
    }


def known_ids(table: pl.DataFrame) -> pl.DataFrame:
    """(id, source, known): every `freesound:123` and `youtube:...` that a clip's columns or file name give."""
    import polars as pl

    names = [
        pl.col(column).str.split("/").list.last().str.replace(r"\.[A-Za-z][A-Za-z0-9]*$", "")
        for column in ("uri", "id")
    ]  # in a tar the name is the id's, the uri is the tar
    found = [
        table.select("id", "source", known=pl.lit(f"{kind}:") + pl.col(f"{kind}_id").replace("", None))
        for kind in ("freesound", "youtube")
    ]
    found += [
        table.select("id", "source", known=pl.lit(f"{kind}:") + _holding(name.str.extract(pattern), looks))
        for kind, pattern, looks in NAMES
        for name in names
    ]
    return pl.concat(found).drop_nulls("known").unique().sort("id", "known")


def _holding(known: pl.Expr, looks: Sequence[str]) -> pl.Expr:
    """The id, or null where it lacks one of the looks."""
    import polars as pl

    return pl.when(pl.all_horizontal(known.str.contains(p) for p in looks)).then(known) if looks else known


def by_id(pool: pl.DataFrame, probe_known: pl.DataFrame) -> pl.DataFrame:
    """Pairs that share a known id. `probe_known` is `known_ids` of the probe clips."""
    return _joined(known_ids(pool), probe_known, "known", "id")


def by_content(pool: pl.DataFrame, probes: pl.DataFrame) -> pl.DataFrame:
    """Pairs whose decoded 16 kHz samples are equal."""
    return _joined(pool, probes, "content_hash", "content")


def _joined(pool: pl.DataFrame, probes: pl.DataFrame, on: str, gate: str) -> pl.DataFrame:
    import polars as pl

    theirs = probes.select(on, probe_set="source", probe_id="id").drop_nulls(on).filter(pl.col(on) != "")
    pairs = pool.select("id", on).join(theirs, on=on, how="inner").unique(["id", "probe_set", "probe_id"])
    offset = pl.lit(0.0 if gate == "content" else None, pl.Float64)
    return pairs.select(
        "id", pl.lit(gate).alias("gate"), "probe_set", "probe_id", pl.lit(1.0).alias("score"), offset.alias("offset_s")
    )


def by_sound(
    ids: Sequence[str],
    words: Sequence[NDArray[np.uint32]],
    index: Index,
    probes: pl.DataFrame,
    threshold: float,
    min_match_s: float,
) -> pl.DataFrame:
    """Pairs whose fingerprints agree; rows of `probes` are the clips of `index`, in order."""
    import polars as pl

    sets, names = probes["source"].to_list(), probes["id"].to_list()
    rows = [
        (name, "acoustic", sets[m.probe], names[m.probe], m.score, m.offset_s)
        for name, found in zip(ids, index.search(words, threshold, min_match_s), strict=True)
        for m in found
    ]
    return pl.DataFrame(rows, schema=flagged_schema(), orient="row")
