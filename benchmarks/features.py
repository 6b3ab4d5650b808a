"""Features: log-mel of 5-s clips at native length and of 30-s clips, against transformers' extractor.

In    synthetic clips (noise under an envelope), one CPU thread, the same batches for both
Out   ratio_hf, ratio_hf_30s: transformers' time over ours; target 10 and 1
Why   Whisper's extractor on the CPU is the bottleneck of a padded pipeline, and pads 5 s to 30 s
Run   python -m benchmarks.features [--quick]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._common import arguments, finish, machine, say

RATE_HZ, MELS, BATCH = 16_000, 80, 8


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    import torch
    from transformers.models.whisper.feature_extraction_whisper import WhisperFeatureExtractor

    torch.set_num_threads(1)
    peer = WhisperFeatureExtractor(feature_size=MELS)
    rounds = 5 if options.quick else 25
    five, thirty, one = (measure(peer, seconds, rounds) for seconds in (5, 30, 1))
    figures = {
        "ratio_hf": five["hf_ms"] / five["aut_ms"],
        "ratio_hf_30s": thirty["hf_ms"] / thirty["aut_ms"],
        "ratio_hf_1s": one["hf_ms"] / one["aut_ms"],
        "aut_ms_5s": five["aut_ms"],
        "hf_ms_5s": five["hf_ms"],
        "largest_error": max(five["error"], thirty["error"], one["error"]),
    }
    facts = {
        "machine": machine("torch", "transformers"),
        "threads": 1,
        "batch": BATCH,
        "peer": "WhisperFeatureExtractor",
    }
    finish("features", figures, options.keep, facts)


def measure(peer: Any, seconds: int, rounds: int) -> dict[str, float]:
    """Milliseconds a clip for both, in alternation, and the largest difference on the frames that are audio."""
    import torch

    from aut.audio.mel import log_mel

    rng = np.random.default_rng([0, seconds])
    samples = seconds * RATE_HZ
    clips = (rng.standard_normal((BATCH, samples)) * np.linspace(0.01, 0.3, samples)).astype(np.float32)
    x_BT, n_B = torch.from_numpy(clips), torch.full((BATCH,), samples)
    rows = list(clips)

    def theirs() -> Any:
        return peer(rows, sampling_rate=RATE_HZ, return_tensors="pt").input_features

    def ours() -> Any:
        return log_mel(x_BT, n_B, MELS)[0]

    error = float((theirs()[:, :, : samples // 160] - ours()).abs().max())
    times = [(_ms(theirs), _ms(ours)) for _ in range(rounds)]
    hf_ms, aut_ms = (float(np.median(column)) / BATCH for column in zip(*times, strict=True))
    say(f"{seconds:2} s: transformers {hf_ms:.2f} ms a clip, aut {aut_ms:.2f} ms")
    return {"hf_ms": hf_ms, "aut_ms": aut_ms, "error": error}


def _ms(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


if __name__ == "__main__":
    main()
