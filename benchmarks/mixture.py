"""Mixture: select 20M of 24.5M rows with 100,000 blocked; digest, stats and parts written.

In    a synthetic index (benchmarks/_pool.py), made first and not timed
Out   rows_per_s, peak_rss_gb and cpu_s (all threads) of the stage's own process; ratio_hf, ratio_lhotse where the
      peers are installed; times_bare: its seconds over those of polars filtering the same index by a hash of the ids
      into three files, without plan, blocklist, parts, digest and counts: what of a machine's pace is its own
Why   peers mix one row at a time in Python; the stage works on columns. Peers write a smaller number of rows of the
      same columns in the same run, and are compared by rows a second: both are linear in rows.
Run   python -m benchmarks.mixture [--quick] [--keep] [--folder FOLDER]; peers: see benchmarks/peers/README.md
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from aut.contracts import Silent
from aut.layout import Layout
from aut.units import Domain
from benchmarks import _pool as pool
from benchmarks._common import arguments, finish, machine, peer, say

HERE = Path(__file__).parent
FULL: dict[Domain, dict[str, int]] = {
    "speech": {"s0": 9_000_000, "s1": 5_000_000, "s2": 3_000_000, "s3": 1_600_000, "s4": 1_000_000},
    "environment": {"e0": 2_000_000, "e1": 450_000},
    "music": {"m0": 1_500_000, "m1": 950_000},
}
ROWS, BLOCKED, PARTS = 20_000_000, 100_000, 256
QUICK = 50  # --quick: a 50th of everything
PEER_ROWS = {True: 20_000, False: 100_000}


def build(root: Path, shrink: int) -> Layout:
    """The index and blocklist at 1 / `shrink` of the full size."""
    layout = Layout(root)
    wanted = [(layout, d, n, rows // shrink) for d, names in FULL.items() for n, rows in names.items()]
    with ProcessPoolExecutor() as workers:
        for done in [workers.submit(pool.source, *w) for w in wanted]:
            done.result()
    step = sum(rows for *_, rows in wanted) // (BLOCKED // shrink)
    pool.block(layout, [pool.clip_id(n, r) for _, _, n, rows in wanted for r in range(0, rows, step)])
    return layout


def stage(root: Path, shrink: int) -> dict[str, float]:
    """Runs the stage in this process: seconds and peak memory of it."""
    from aut.stages.mixture import mixture

    params = pool.params(
        {d: list(n) for d, n in FULL.items()}, rows=ROWS // shrink, window=100, parts=max(4, PARTS // shrink)
    )
    shutil.rmtree(root / "data/mixture", ignore_errors=True)  # as DVC does before a stage
    start, before = time.perf_counter(), time.process_time()
    mixture(params, Layout(root), Silent())
    took, cpu = time.perf_counter() - start, time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"took_s": took, "cpu_s": cpu, "peak_rss_gb": peak}


def bare(root: Path, shrink: int) -> dict[str, float]:
    """As many rows by polars alone, written to a file a domain: seconds."""
    import polars as pl

    start = time.perf_counter()
    for domain, sources in FULL.items():
        taken = (0.8 if domain == "speech" else 0.1) * ROWS / sum(sources.values())
        rows = pl.scan_parquet(root / f"data/index/{domain}/*/part-*.parquet")
        rows = rows.filter(pl.col("id").hash(0) < int(taken * 2**64))
        rows.sink_parquet(root / f"bare-{domain}.parquet", compression="snappy")
    took = time.perf_counter() - start
    for path in root.glob("bare-*.parquet"):
        path.unlink()
    return {"took_s": took}


def apart(what: str, root: Path, shrink: int) -> dict[str, float]:
    """`stage` or `bare` in a fresh interpreter, so that peak memory is its own."""
    code = f"import json; from benchmarks.mixture import *; print(json.dumps({what}(Path({str(root)!r}), {shrink})))"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, cwd=HERE.parent)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def peers(root: Path, rows: int) -> dict[str, float]:
    """Rows a second of each peer that can run here."""
    found = {name: peer(f"mix_{name}.py", root, rows) for name in ("hf", "lhotse")}
    return {name: line["rows_per_s"] for name, line in found.items() if line}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--folder", type=Path, help="keeps index and mixture, and is used again")
    args = parser.parse_args()
    shrink = QUICK if args.quick else 1
    with tempfile.TemporaryDirectory() as temporary:
        root = args.folder or Path(temporary)
        start = time.perf_counter()
        if not (root / "data/screen/blocklist.parquet").exists():
            build(root, shrink)
        say(f"index made in {time.perf_counter() - start:.0f} s")
        own = apart("stage", root, shrink)
        bare_s = apart("bare", root, shrink)["took_s"]
        say(f"mixture: {own['took_s']:.1f} s, bare polars {bare_s:.1f} s")
        other = peers(root, PEER_ROWS[args.quick])
    rate = ROWS // shrink / own["took_s"]
    figures = {"rows_per_s": rate} | own | {"times_bare": own["took_s"] / bare_s}
    figures |= {f"ratio_{name}": rate / theirs for name, theirs in other.items()}
    facts = {
        "rows": {"pool": sum(sum(n.values()) for n in FULL.values()), "selected": ROWS, "blocked": BLOCKED},
        "parts": PARTS,
        "machine": machine("pyarrow", "numpy"),
        "load_average_1min": round(os.getloadavg()[0], 1),
        "peer_rows_per_s": other or "none installed: no ratio measured",
    }
    finish("mixture", figures, args.keep, facts)


if __name__ == "__main__":
    main()
