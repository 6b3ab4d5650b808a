"""Mixture: the selection of clips by domain, as Parquet parts that stay put when the data change.

In    data/index/<domain>/<source>/part-*.parquet of every pool source, data/screen/blocklist.parquet
Out   data/mixture/<domain>/<source>/part-<range>.parquet, tombstones.parquet, mixture.json, stats.json; plot data
Why   A clip is taken when the keyed hash of its id is under its domain's threshold, and lies in the part that its
      source and the top of its hash name. A new source, a blocked clip or a change of `rows` moves the threshold: that
      touches the parts at the threshold and no other. Blocked clips stay in their part and are skipped.
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

from aut.config import Params
from aut.contracts import Tracker
from aut.errors import MissingInput
from aut.files import digest_json, replacing, write_bytes, write_json
from aut.layout import Layout
from aut.mixing.keys import Blocked, row_keys
from aut.mixing.parts import Written, write_parts
from aut.mixing.plan import Plan, plans, pools, quota_counts
from aut.mixing.tally import KINDS, merge, shares
from aut.progress import progress


def mixture(params: Params, layout: Layout, track: Tracker) -> dict[str, float | int | str]:
    """Selects, writes and counts an epoch's clips. ConfigError for a short domain, DataError for an id met twice."""
    threads = _threads()
    # Arrow's allocator would hand freed memory back and ask for it anew each block: an eighth of the time.
    os.environ.setdefault("MIMALLOC_PURGE_DELAY", "-1")  # read when pyarrow is first imported, which is below
    with progress("mixture", None) as advance:
        blocked = Blocked(row_keys(_blocked_ids(layout.screen / "blocklist.parquet"), params.seed))
        with ThreadPoolExecutor(threads) as executor:
            pool = pools(params, layout, executor)
            chosen, known = plans(params, pool, blocked.keys, executor, advance)
        with replacing(layout.mixture) as folder:
            written = write_parts(folder, chosen, params.mixture.parts, blocked, threads, advance)
            digest = _describe(folder, params, chosen, written)
            stats = _statistics(params, chosen, written)
            write_json(folder / "stats.json", stats | {"digest": digest, "blocklist": _coverage(blocked, known)})
    write_bytes(layout.plot("mixture"), shares(stats))
    track.dataset("mixture", digest, params.mixture.rows, layout.mixture)
    unknown = len(blocked.keys) - known
    if unknown:
        warning = f"{unknown} of {len(blocked.keys)} blocked ids are in no pool source"
        print(f"mixture: warning: {warning}", file=sys.stderr)  # noqa: T201
        track.tags({"mixture.warning": warning})
    return _metrics(params, chosen, stats, digest, unknown)


def _blocked_ids(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not path.exists():
        raise MissingInput(f"{path} is missing", "run `aut screen`")
    ids = pc.unique(pq.read_table(path, columns=["id"])["id"])
    return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids


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


def _coverage(blocked: Blocked, known: int) -> dict[str, int]:
    return {"ids": len(blocked.keys), "in_pool": known, "unknown": len(blocked.keys) - known}


def _metrics(
    params: Params, plans: list[Plan], stats: Mapping[str, Any], digest: str, unknown: int
) -> dict[str, float | int | str]:
    out: dict[str, float | int | str] = {"rows": params.mixture.rows, "digest": digest, "blocklist_unknown": unknown}
    for plan in plans:
        entry = stats["domain"][plan.domain]
        out |= {f"{plan.domain}_{name}": entry[name] for name in ("rows", "clips", "repeats", "hours", "blocked")}
    return out


def _threads() -> int:
    return len(os.sched_getaffinity(0))
