"""Order: locators a second, full rows a second read in order, and the time to begin at row 19,000,000 of 20M.

In    a mixture made from a synthetic index (benchmarks/_pool.py); for the locators an order of 20M rows whose files are
      never opened, since they are arithmetic
Out   rows_per_s (locators), rows_full_per_s, restore_s (open, locate 256 positions), first_rows_s (also read);
      restore_lhotse_s (state loaded, first batch of 256 cuts, at row 95,000 of 100,000, --quick 19,000 of 20,000)
Why   a training that resumes must not replay, and a loader must not wait for names of clips
Run   python -m benchmarks.order [--quick] [--keep] [--folder FOLDER that benchmarks.mixture was given]
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from aut.order import Order, Part, Shelf, pattern
from benchmarks._common import arguments, finish, machine, peer, say
from benchmarks.mixture import PEER_ROWS, QUICK, apart, build

ROWS, RESTORE_AT, BATCH, CALL = 20_000_000, 19_000_000, 256, 1 << 16
PARTS = 256


def arithmetic() -> Order:
    """20M rows, 80/10/10, 256 ranges of five, two and two sources; the files do not exist."""
    none = np.empty(0, np.int64)

    def shelf(domain: Any, rows: int, sources: int) -> Shelf:
        each = rows // PARTS // sources
        return Shelf(
            domain, tuple(tuple(Part(Path("unread"), each, none) for _ in range(sources)) for _ in range(PARTS))
        )

    shelves = [shelf("speech", 16_000_000, 5), shelf("environment", 2_000_000, 2), shelf("music", 2_000_000, 2)]
    return Order(shelves, pattern([80, 10, 10]), ROWS, 0, "benchmark")


def locators(order: Order, calls: int) -> float:
    """Locators a second, in calls of 65,536 positions."""
    start = time.perf_counter()
    for call in range(calls):
        order.locate(np.arange(call * CALL, (call + 1) * CALL))
    return calls * CALL / (time.perf_counter() - start)


def full(folder: Path, calls: int) -> float:
    """Full rows a second, from a cold start, in order."""
    start, order = time.perf_counter(), Order.of_mixture(folder, 0)
    for call in range(calls):
        order.rows(np.arange(call * CALL, (call + 1) * CALL))
    return calls * CALL / (time.perf_counter() - start)


def restore(folder: Path, at: int) -> tuple[float, float]:
    """Median seconds to open and locate a batch at row `at`, and to have also read it."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        order = Order.of_mixture(folder, 0)
        order.locate(np.arange(at, at + BATCH))
        located = time.perf_counter()
        order.rows(np.arange(at, at + BATCH))
        times.append((located - start, time.perf_counter() - start))
    first, second = np.median(times, axis=0).tolist()
    return first, second


def measure(folder: Path, quick: bool) -> dict[str, float]:
    length = Order.of_mixture(folder, 0).length
    at = length * RESTORE_AT // ROWS
    restored, read = restore(folder, at)
    return {
        "rows_per_s": round(locators(arithmetic(), 20 if quick else 300)),
        "rows_full_per_s": round(full(folder, 5 if quick else 40)),
        "restore_s": round(restored, 4),
        "first_rows_s": round(read, 4),
        "mixture_rows": length,
    }


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--folder", type=Path, help="has an index, or a mixture too, and is used again")
    args = parser.parse_args()
    shrink = QUICK if args.quick else 1
    with tempfile.TemporaryDirectory() as temporary:
        root = args.folder or Path(temporary)
        if not (root / "data/screen/blocklist.parquet").exists():
            build(root, shrink)
        if not (root / "data/mixture/mixture.json").exists():
            made = apart("stage", root, shrink)
            say(f"mixture made: {made}")
        figures = measure(root / "data/mixture", args.quick)
        say("lhotse")
        theirs = peer("order_lhotse.py", root, PEER_ROWS[args.quick])
    if theirs:
        figures["restore_lhotse_s"] = theirs["restore_s"]
    facts = {
        "machine": machine("numpy", "pyarrow"),
        "load_average_1min": round(os.getloadavg()[0], 1),
        "peer": theirs or "not installed",
    }
    finish("order", figures, args.keep, facts)


if __name__ == "__main__":
    main()
