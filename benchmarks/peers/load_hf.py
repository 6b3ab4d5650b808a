"""Hugging Face datasets: files through Audio(sampling_rate=16000) and WhisperFeatureExtractor, batch by batch.

Without torchcodec (or its FFmpeg) datasets cannot decode. Its steps are then done by hand: decode to float, mean over
channels, resample to 16 kHz (datasets 4 documentation, 'Load audio data'; AudioDecoder of torchcodec does these),
here with soundfile and soxr, which is what datasets 3 used.

Run   benchmarks/peers/.venv/bin/python benchmarks/peers/load_hf.py FILES.json BATCH WARM
"""

import json
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

RATE_HZ = 16_000


def by_datasets(files: list[str]) -> Iterator[Any]:
    """Waveforms by datasets' own Audio feature; one is decoded here, so that a missing decoder is known at once."""
    from datasets import Audio, Dataset

    rows = Dataset.from_dict({"audio": files}).cast_column("audio", Audio(sampling_rate=RATE_HZ, num_channels=1))
    rows[0]["audio"].get_all_samples()
    return (row["audio"].get_all_samples().data[0].numpy() for row in rows)


def by_hand(files: list[str]) -> Iterator[Any]:
    import soundfile
    import soxr

    for file in files:
        x_TC, rate_hz = soundfile.read(file, dtype="float32", always_2d=True)
        x_T = x_TC.mean(axis=1)
        yield soxr.resample(x_T, rate_hz, RATE_HZ) if rate_hz != RATE_HZ else x_T


def main() -> None:
    files, batch, warm = json.loads(open(sys.argv[1]).read()), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    try:
        clips, peer, real = by_datasets(files), f"datasets {version('datasets')} Audio (torchcodec {version('torchcodec')})", 1
    except Exception as error:  # whatever is missing: the decoder, its libraries, datasets itself
        print(f"{type(error).__name__}: {str(error).splitlines()[:1]}", file=sys.stderr)
        clips, peer, real = by_hand(files), f"soundfile {version('soundfile')} and soxr in datasets' place", 0
    extractor = WhisperFeatureExtractor(feature_size=80)
    done, start, cpu = 0, 0.0, 0.0
    waiting: list[np.ndarray] = []
    for clip in clips:
        waiting.append(clip)
        if len(waiting) < batch:
            continue
        extractor(waiting, sampling_rate=RATE_HZ, return_tensors="pt")
        done, waiting = done + batch, []
        if done == batch * warm:
            start, cpu = time.perf_counter(), time.process_time()
    counted = done - batch * warm
    rates = {"clips_per_s": counted / (time.perf_counter() - start), "clips_per_cpu_s": counted / (time.process_time() - cpu)}
    peer += f" + WhisperFeatureExtractor of transformers {version('transformers')}"
    print(json.dumps(rates | {"peer": peer, "torchcodec": real}))


if __name__ == "__main__":
    main()
