"""X-ARES's own probe (its `run_mlp`) on vectors that are given: LayerNorm and a linear layer, Adam 1e-3, 10 epochs of 32.

In    a folder with <set>.npz: x [N, D] float32, y [N], fold [N]; the package xares (suites.txt)
Out   one line of JSON: {set: [CPU seconds, mean accuracy of the folds]}, the writing of its tar files not counted
Why   the suite reads an embedding a clip from tar files, frames and all; a pooled vector is an embedding of one frame,
      the least that it can be given. Its folds each choose their best epoch on the very fold that is scored.
Run   benchmarks/peers/.suites/bin/python benchmarks/peers/xares_probe.py FOLDER
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset  # type: ignore[import-not-found]
from xares.task import TaskConfig, XaresTask  # type: ignore[import-not-found]


class CachedEncoder(torch.nn.Module):
    """Stands where an encoder would: its embeddings are there already."""

    sampling_rate, hop_size_in_ms = 16_000, 20.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.output_dim = width


def label(record: dict[str, Any]) -> int:
    return int(record["target"])


def write_tar(path: Path, x_ND: Any, y_N: Any) -> None:
    with webdataset.TarWriter(str(path)) as tar:
        for n, (vector, y) in enumerate(zip(x_ND, y_N, strict=True)):
            frame = io.BytesIO()
            np.save(frame, vector[None])
            tar.write({"__key__": f"clip{n:06d}", "npy": frame.getvalue(), "json": json.dumps({"target": int(y)}).encode()})


def probe(file: Path, root: Path) -> tuple[float, float]:
    with np.load(file) as data:
        x_ND, y_N, fold_N = data["x"], data["y"], data["fold"]
    folds = sorted(set(fold_N.tolist()))
    config = TaskConfig(
        env_root=str(root),
        name=file.stem,
        encoder=CachedEncoder(x_ND.shape[1]),
        output_dim=int(y_N.max()) + 1,
        k_fold_splits=folds,
        label_processor=label,
    )
    task = XaresTask(config)
    task.encoded_tar_path_of_split = {f: root / f"{file.stem}-{f}-000000.tar" for f in folds}
    for f, path in task.encoded_tar_path_of_split.items():
        write_tar(path, x_ND[fold_N == f], y_N[fold_N == f])
    start = time.process_time()
    score = task.run_mlp()
    return time.process_time() - start, float(score[0] if isinstance(score, tuple) else score)


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as work, redirect_stdout(sys.stderr):
        for file in sorted(Path(sys.argv[1]).glob("*.npz")):
            with redirect_stderr(io.StringIO()):  # a progress bar an epoch
                found[file.stem] = probe(file, Path(work))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
