"""lhotse: the time from a sampler's saved state to its next batch, near the end of an 80/10/10 mixture.

A lazy CutSet that is not indexed is read again up to the place, so the time grows with the rows before it.

Run   benchmarks/peers/.venv/bin/python benchmarks/peers/order_lhotse.py ROOT ROWS
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from lhotse import CutSet
from lhotse.dataset import DynamicCutSampler
from mix_lhotse import WEIGHTS, manifest

BATCH = 256


def sampler(paths: list[Path]) -> DynamicCutSampler:
    """Batches of 256 cuts of the mixture, in its order."""
    sets = [CutSet.from_jsonl_lazy(p) for p in paths]
    mixed = CutSet.mux(*sets, weights=list(WEIGHTS.values()), seed=0)
    return DynamicCutSampler(mixed, max_cuts=BATCH, shuffle=False, rank=0, world_size=1)


def main() -> None:
    root, rows = Path(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        paths = [out / f"{d}.jsonl.gz" for d in WEIGHTS]
        for domain, weight in WEIGHTS.items():
            manifest(root, domain, round(rows * weight * 1.1), out)
        first = sampler(paths)
        batches = iter(first)
        done = 0
        while done < rows * 0.95:
            done += len(next(batches))
        state, expected = first.state_dict(), [c.id for c in next(batches)]
        start = time.perf_counter()
        second = sampler(paths)
        second.load_state_dict(state)
        got = [c.id for c in next(iter(second))]
        took = time.perf_counter() - start
    print(json.dumps({"restore_s": took, "at_row": done, "same_batch": got == expected}))


if __name__ == "__main__":
    main()
