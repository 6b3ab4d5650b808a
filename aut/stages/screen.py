"""Screen: training clips that overlap a probe set, by known id, by content, by sound.

In    data/index/*, data/fingerprints/* of the sources that params name
Out   data/screen/: flagged.parquet (every pair), blocklist.parquet (one row a blocked clip), report.json, report.html
Why   the probe clips are few, so they are indexed and the pool streams past, a part at a time; a clip of the pool
      that shares sound with a probe clip is blocked, whatever set or domain either is of.
Price about a millisecond a clip, over all cores; memory of the probe clips' index plus one part a worker.
Run   aut screen
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aut.audio.match import Index
from aut.config import Params, Screen
from aut.contracts import Tracker
from aut.errors import GateError
from aut.files import digest_file, digest_json, replacing, write_bytes, write_json
from aut.layout import Layout
from aut.progress import progress
from aut.screening import gates
from aut.screening.report import page, summary
from aut.screening.tables import Part, pool_parts, probe_parts

if TYPE_CHECKING:
    import polars as pl

ALONE = 20_000  # pool clips: below, starting workers costs more than it saves


def screen(
    params: Params, layout: Layout, track: Tracker, executor: Executor | None = None
) -> dict[str, float | int | str]:
    """Writes `layout.screen`. GateError, naming the report it left in AUT_WORK, where a domain's limit is passed.

    `executor` runs the parts (processes here by default, a Dask cluster's `get_executor()` elsewhere): same bytes.
    """
    import polars as pl

    pool, probes = pool_parts(params, layout), probe_parts(params, layout)
    results = list(_screened(pool, probes, params.screen, executor))
    flagged = pl.concat([r[0] for r in results]).sort("id", "gate", "probe_set", "probe_id")
    counts = pl.concat([r[1] for r in results]).group_by("domain", "source").agg(pl.col("clips").sum())
    report = summary(params.screen, flagged, counts.sort("domain", "source"), _probe_table(probes))
    where = _draft(params, layout)
    _write(where, flagged, report)
    write_bytes(where / "report.html", page(report, flagged, _rows(flagged, pool + probes), params.sources).encode())
    track.params({f"screen.{k}": str(v) for k, v in params.screen.model_dump().items()})
    metrics = _metrics(report)
    track.metrics({k: float(v) for k, v in metrics.items()})
    if report["over"]:
        raise GateError(_refusal(report, where), "raise screen.max_flagged_fraction or drop the source")
    with replacing(layout.screen) as folder:
        for file in sorted(where.iterdir()):
            write_bytes(folder / file.name, file.read_bytes())
    track.dataset("blocklist", digest_file(layout.screen / "blocklist.parquet"), report["blocked"], layout.screen)
    track.artifact(layout.screen / "report.html", "screen")
    return metrics


def _draft(params: Params, layout: Layout) -> Path:
    """The report of a run that is refused must outlive it, and DVC removes the outs of a failed stage."""
    key = digest_json([str(layout.root.resolve()), params.screen.model_dump(), sorted(params.sources)])
    return layout.work / "screen" / key[:16]


def _refusal(report: dict[str, Any], where: Path) -> str:
    told = ", ".join(f"{100 * report['domains'][d]['fraction']:.1f} % of the {d} pool" for d in report["over"])
    return f"{told} overlap a probe set, the limit is {100 * report['limit']:g} %: see {where / 'report.html'}"


# --- the parts of the pool ---------------------------------------------------------------------------------------


def _screened(
    pool: Sequence[Part], probes: Sequence[Part], params: Screen, executor: Executor | None
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    work = [(part, tuple(probes), params) for part in pool]
    with progress("screen", len(work)) as advance, _runner(pool, executor) as run:
        for result in run(_screen_part, work):
            advance(1)
            yield result


@contextmanager
def _runner(pool: Sequence[Part], executor: Executor | None) -> Iterator[Any]:
    if executor is not None:
        yield executor.map
        return
    import pyarrow.parquet as pq

    workers = min(len(os.sched_getaffinity(0)), len(pool))
    if workers < 2 or sum(pq.read_metadata(p.index).num_rows for p in pool) < ALONE:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
        yield processes.map


_HELD: dict[tuple[Part, ...], tuple[pl.DataFrame, pl.DataFrame, Index | None]] = {}
"""Probe side of this process, built once: every part of the pool is compared with the same clips."""


def _screen_part(work: tuple[Part, tuple[Part, ...], Screen]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(flagged pairs, clips a domain and source) of one part."""
    import polars as pl

    part, probe_side, params = work
    if probe_side not in _HELD:
        _HELD.clear()
        _HELD[probe_side] = _probe_side(probe_side, "acoustic" in params.gates)
    probes, known, index = _HELD[probe_side]
    table = part.table()
    found = [pl.DataFrame(schema=gates.flagged_schema())]
    if "id" in params.gates:
        found.append(gates.by_id(table, known))
    if "content" in params.gates:
        found.append(gates.by_content(table, probes))
    if index is not None:
        ids = table["id"].to_list()
        words = part.words(ids)
        found.append(gates.by_sound(ids, words, index, probes, params.acoustic_threshold, params.min_match_s))
    return pl.concat(found), table.group_by("domain", "source").agg(pl.len().alias("clips"))


def _probe_side(parts: Sequence[Part], acoustic: bool) -> tuple[pl.DataFrame, pl.DataFrame, Index | None]:
    import polars as pl

    tables = [part.table() for part in parts]
    probes = pl.concat(tables)
    index = None
    if acoustic:
        index = Index([w for part, t in zip(parts, tables, strict=True) for w in part.words(t["id"].to_list())])
    return probes, gates.known_ids(probes), index


# --- what is written ---------------------------------------------------------------------------------------------


def _probe_table(parts: Sequence[Part]) -> pl.DataFrame:
    import polars as pl

    tables = [part.table().select("source", "domain") for part in parts]
    return pl.concat(tables).group_by("source", "domain").agg(pl.len().alias("clips")).sort("source")


def _blocklist(flagged: pl.DataFrame) -> pl.DataFrame:
    """One row a clip; the reason names its strongest evidence: a known id before content before sound."""
    import polars as pl

    order = pl.col("gate").replace_strict({g: i for i, g in enumerate(gates.GATES)}, return_dtype=pl.Int8)
    best = flagged.sort(
        pl.col("id"), order, pl.col("score"), pl.col("probe_id"), descending=[False, False, True, False]
    )
    first = best.unique("id", keep="first", maintain_order=True)
    return first.select("id", reason=pl.col("gate") + ": " + pl.col("probe_id"))


def _write(folder: Path, flagged: pl.DataFrame, report: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    flagged.write_parquet(folder / "flagged.parquet", compression="zstd", statistics=False)
    _blocklist(flagged).write_parquet(folder / "blocklist.parquet", compression="zstd", statistics=False)
    write_json(folder / "report.json", report)


def _rows(flagged: pl.DataFrame, parts: Sequence[Part]) -> dict[str, dict[str, Any]]:
    """Index rows of the flagged pairs by id, for the reader who wants to listen."""
    import polars as pl

    wanted = list({*flagged["id"], *flagged["probe_id"]})
    rows: dict[str, dict[str, Any]] = {}
    for part in parts if wanted else ():
        found = part.table().filter(pl.col("id").is_in(wanted))
        rows |= {r["id"]: r for r in found.iter_rows(named=True)}
    return rows


def _metrics(report: dict[str, Any]) -> dict[str, float | int | str]:
    flat: dict[str, float | int | str] = {
        "pool_clips": report["pool"],
        "probe_clips": report["probe"],
        "blocked": report["blocked"],
    }
    flat |= {f"{gate}_pairs": row["pairs"] for gate, row in report["gates"].items()}
    flat |= {f"{domain}_flagged_fraction": row["fraction"] for domain, row in report["domains"].items()}
    return flat
