"""Mixture: the selection of clips by domain, as Parquet parts that stay put when the data change.

In    data/index/<domain>/<source>/part-*.parquet of every pool source, data/screen/blocklist.parquet, data/exclude.txt
Out   data/mixture/<domain>/<source>/part-<range>.parquet, tombstones.parquet, mixture.json, stats.json; plot data
Why   A clip is taken when the keyed hash of its id is under its domain's threshold, and lies in the part that its
      source and the top of its hash name. A new source, a blocked clip or a change of `rows` moves the threshold: that
      touches the parts at the threshold and no other. Blocked clips, which the screen found, a person listed, or
      whose licence is left out, stay in their part and are skipped.
      Price: a part's rows come from all over its source, so captions changed here and there touch all of its parts;
      and the index is read twice, once for ids and once for rows, to keep memory at three blocks of rows.
Run   aut mixture; python -m benchmarks.mixture --quick
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from aut.config import Params
from aut.contracts import Tracker
from aut.files import digest_json, replacing, write_bytes, write_json
from aut.layout import Layout
from aut.mixing.causes import causes
from aut.mixing.keys import Blocked
from aut.mixing.parts import Written, write_parts
from aut.mixing.plan import Plan, Pool, plans, pools, quota_counts
from aut.mixing.tally import KINDS, merge, shares
from aut.progress import progress
from aut.units import Domain


def mixture(params: Params, layout: Layout, track: Tracker) -> dict[str, float | int | str]:
    """Selects, writes and counts an epoch's clips. ConfigError for a short domain, DataError for an id met twice."""
    threads = _threads()
    # Arrow's allocator would hand freed memory back and ask for it anew each block: an eighth of the time.
    os.environ.setdefault("MIMALLOC_PURGE_DELAY", "-1")  # read when pyarrow is first imported, which is below
    with progress("mixture", None) as advance:
        listed = causes(params, layout)
        with ThreadPoolExecutor(threads) as executor:
            pool = pools(params, layout, executor)
            barred = [keys for sources in pool.values() for s in sources for keys in s.barred.values()]
            blocked = Blocked(np.unique(np.concatenate([*(cause.keys for cause in listed), *barred])))
            chosen, known = plans(params, pool, blocked.keys, [c.keys for c in listed], executor, advance)
        with replacing(layout.mixture) as folder:
            written = write_parts(folder, chosen, params.mixture.parts, blocked, threads, advance)
            digest = _describe(folder, params, chosen, written)
            stats = _statistics(params, chosen, written)
            left_out = {c.name: c.coverage(n) for c, n in zip(listed, known, strict=True)}
            left_out["licences_excluded"] = _barred(params, pool)
            write_json(folder / "stats.json", stats | {"digest": digest} | left_out)
    write_bytes(layout.plot("mixture"), shares(stats))
    track.dataset("mixture", digest, params.mixture.rows, layout.mixture)
    warnings = [cause.warning(n) for cause, n in zip(listed, known, strict=True)]
    warnings += [f"no clip has the licence '{name}'" for name, n in left_out["licences_excluded"].items() if not n]
    for warning in filter(None, warnings):
        print(f"mixture: warning: {warning}", file=sys.stderr)  # noqa: T201
    if any(warnings):
        track.tags({"mixture.warning": "; ".join(filter(None, warnings))})
    return _metrics(params, chosen, stats, digest, left_out)


def _barred(params: Params, pool: Mapping[Domain, list[Pool]]) -> dict[str, int]:
    """Clips of the pools under each licence that is left out."""
    sources = [s for of in pool.values() for s in of]
    return {name: sum(len(s.barred[name]) for s in sources) for name in params.mixture.licences_excluded}


def _describe(folder: Path, params: Params, plans: list[Plan], written: list[Written]) -> str:
    """Writes tombstones.parquet and mixture.json; returns the digest over all rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    dead = sorted(t for w in written for t in w.tombstones)
    names = pa.schema([("part", pa.string()), ("row", pa.int64()), ("id", pa.string())])
    columns = [list(c) for c in zip(*dead, strict=True)] or [[], [], []]
    pq.write_table(pa.table(columns, schema=names), folder / "tombstones.parquet", compression="zstd")
    parts: dict[str, dict[str, list[list[int]]]] = {}
    for w in written:
        if w.rows:
            parts.setdefault(w.domain, {})[w.source] = [[r, n] for r, n in sorted(w.rows.items())]
    domains = [p.domain for p in plans]
    about = {
        "rows": params.mixture.rows,
        "window": params.mixture.window,
        "domains": domains,
        "counts": quota_counts(params, domains),
        "parts": parts,
    }
    held = [[w.domain, w.source, r, d] for w in written for r, d in sorted(w.digests.items())]
    digest = digest_json([about, held, dead, params.seed])
    write_json(folder / "mixture.json", about | {"digest": digest, "seed": params.seed})
    return digest


def _statistics(params: Params, plans: list[Plan], written: list[Written]) -> dict[str, Any]:
    """Live clips and hours by domain, source, licence, text origin, duration; `share` is of an epoch's rows."""
    stats: dict[str, Any] = {"rows": params.mixture.rows, "domain": {}} | {kind: {} for kind in KINDS}
    for plan in plans:
        own = [w for w in written if w.domain == plan.domain]
        repeats = plan.slots / plan.clips if plan.clips else 0.0
        whole = {"clips": plan.clips, "rows": plan.slots, "repeats": round(repeats, 6)}
        ms = sum(w.tally.milliseconds["source", w.source] for w in own)
        blocked = sum(len(w.tombstones) for w in own)
        share = round(plan.slots / params.mixture.rows, 9)
        stats["domain"][plan.domain] = whole | {"hours": ms / 3.6e6, "blocked": blocked, "share": share}
        for w in own:
            merge(stats, w.tally, repeats / params.mixture.rows)
    return stats


def _metrics(
    params: Params, plans: list[Plan], stats: Mapping[str, Any], digest: str, left_out: Mapping[str, dict[str, int]]
) -> dict[str, float | int | str]:
    out: dict[str, float | int | str] = {"rows": params.mixture.rows, "digest": digest}
    out |= {f"{name}_unknown": left_out[name]["unknown"] for name in ("blocklist", "exclude")}
    out |= {"excluded": left_out["exclude"]["in_pool"], "licence_excluded": sum(left_out["licences_excluded"].values())}
    for plan in plans:
        entry = stats["domain"][plan.domain]
        out |= {f"{plan.domain}_{name}": entry[name] for name in ("rows", "clips", "repeats", "hours", "blocked")}
    return out


def _threads() -> int:
    return len(os.sched_getaffinity(0))
