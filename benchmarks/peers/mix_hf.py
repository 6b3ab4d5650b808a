"""Hugging Face datasets: an 80/10/10 mixture of the benchmark's index, by interleave_datasets, written as Parquet.

Run   benchmarks/peers/.venv/bin/python benchmarks/peers/mix_hf.py ROOT ROWS
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from datasets import Dataset, interleave_datasets, load_dataset

WEIGHTS = {"speech": 0.8, "environment": 0.1, "music": 0.1}


def main() -> None:
    root, rows = Path(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory() as cache:
        streams = []
        for domain in WEIGHTS:
            files = sorted(str(p) for p in (root / "data/index" / domain).rglob("part-*.parquet"))
            streams.append(load_dataset("parquet", data_files=files, split="train", streaming=True))
        start = time.perf_counter()
        mixed = interleave_datasets(streams, probabilities=list(WEIGHTS.values()), seed=0).take(rows)
        taken = Dataset.from_generator(lambda: iter(mixed), cache_dir=cache)
        taken.to_parquet(Path(cache) / "mixture.parquet")
        took = time.perf_counter() - start
    print(json.dumps({"rows_per_s": len(taken) / took}))


if __name__ == "__main__":
    main()
