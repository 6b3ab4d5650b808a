"""lhotse: an 80/10/10 mixture of the benchmark's index, by CutSet.mux, written as JSON lines.

The index's rows are made cuts first, which is not timed: a lhotse user has manifests already.

Run   benchmarks/peers/.venv/bin/python benchmarks/peers/mix_lhotse.py ROOT ROWS
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

WEIGHTS = {"speech": 0.8, "environment": 0.1, "music": 0.1}
RATE_HZ = 16_000


def cut(row: dict) -> MonoCut:
    """A cut with its recording and caption."""
    samples = round(row["duration_s"] * RATE_HZ)
    length = samples / RATE_HZ
    recording = Recording(row["id"], [], RATE_HZ, samples, length)
    words = SupervisionSegment(row["id"], row["id"], 0.0, length, text=row["text"], custom={"licence": row["licence"]})
    return MonoCut(row["id"], 0.0, length, 0, supervisions=[words], recording=recording)


def manifest(root: Path, domain: str, rows: int, out: Path) -> CutSet:
    """The first `rows` of a domain as a lazy manifest."""
    path = out / f"{domain}.jsonl.gz"
    with CutSet.open_writer(path) as writer:
        left = rows
        for part in sorted((root / "data/index" / domain).rglob("part-*.parquet")):
            for batch in pq.ParquetFile(part).iter_batches(10_000):
                for row in batch.to_pylist()[:left]:
                    writer.write(cut(row))
                left -= min(left, len(batch))
                if not left:
                    return CutSet.from_jsonl_lazy(path)
    return CutSet.from_jsonl_lazy(path)


def main() -> None:
    root, rows = Path(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        sets = [manifest(root, d, round(rows * w * 1.1), out) for d, w in WEIGHTS.items()]
        start, written = time.perf_counter(), 0
        with CutSet.open_writer(out / "mixture.jsonl.gz") as writer:
            for item in CutSet.mux(*sets, weights=list(WEIGHTS.values()), seed=0):
                writer.write(item)
                written += 1
                if written == rows:
                    break
        took = time.perf_counter() - start
    print(json.dumps({"rows_per_s": written / took}))


if __name__ == "__main__":
    main()
