"""Loader: flac and ogg clips decoded, resampled and put into batches on one core, against Hugging Face's path.

In    recordings below AUT_TEST_AUDIO where it is set, else generated ones: 80 % flac at 16 kHz of 8 s, 10 % ogg at
      44.1 kHz of 10 s, 10 % stereo ogg at 48 kHz of 8 s; each clip once, read from the page cache
Out   ratio_hf (target 3), clips_per_s; ratio_hf_mel: with our log-mel on the same core, where there is no GPU to do it;
      ratio_hf_cpu, ratio_hf_mel_cpu: by processor time, which other work on the machine disturbs less;
      hf_torchcodec: 1 where the peer is datasets' Audio itself, 0 where its steps were done by hand
Why   ours hands on waveforms, for log-mel belongs to the device; theirs decodes with datasets.Audio (torchcodec) and
      pads log-mel to 30 s with WhisperFeatureExtractor, as the usual recipes do. One core and one thread each
Run   python -m benchmarks.loader [--quick]; AUT_PEERS names an environment with benchmarks/peers/loader.txt
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import PEERS, arguments, finish, machine, peer, say

BATCH, WARM = 8, 2  # clips of a step; steps before the clock starts
KINDS = (("speech", "flac", 16_000, 1, 8.0),) * 8 + (
    ("environment", "ogg", 44_100, 1, 10.0),
    ("music", "ogg", 48_000, 2, 8.0),
)


def main() -> None:
    options = arguments((__doc__ or "").splitlines()[0]).parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before anything starts threads: one core for both
    real = os.environ.get("AUT_TEST_AUDIO")
    count = 96 if options.quick else 480
    with tempfile.TemporaryDirectory() as folder:
        case = Path(folder)
        rows = real_rows(Path(real), count) if real else generated(case, count)
        root = Path(real) if real else case
        say(f"{len(rows)} clips, {sum(r['duration_s'] for r in rows) / len(rows):.1f} s on average")
        plain, mel, other = measure(case, root, rows, False), measure(case, root, rows, True), theirs(case, root, rows)
    wall, cpu = float(other["clips_per_s"]), float(other["clips_per_cpu_s"])
    figures = {"ratio_hf": plain[0] / wall, "ratio_hf_mel": mel[0] / wall}
    figures |= {"ratio_hf_cpu": plain[1] / cpu, "ratio_hf_mel_cpu": mel[1] / cpu, "clips_per_s": plain[0]}
    figures |= {"hf_clips_per_s": wall, "hf_torchcodec": float(other["torchcodec"])}
    facts = {"machine": machine("soundfile", "soxr", "torch"), "cores_used": 1, "batch": BATCH, "peer": other["peer"]}
    facts |= {"load_average_1min": round(os.getloadavg()[0], 1)}
    facts |= {"clips": "recordings below AUT_TEST_AUDIO" if real else "generated", "count": len(rows)}
    finish("loader", figures, options.keep, facts)


def generated(folder: Path, count: int) -> list[dict[str, Any]]:
    """Index rows of clips written below `folder`: tones and noise under an envelope, gamma-distributed lengths."""
    import soundfile as sf

    rows = []
    for i in range(count):
        domain, ending, rate_hz, channels, mean_s = KINDS[i % len(KINDS)]
        rng = np.random.default_rng([0, i])
        seconds = float(np.clip(rng.gamma(4.0, mean_s / 4.0), 0.5, 30.0))
        at_T = np.arange(int(seconds * rate_hz)) / rate_hz
        tone_T = sum(np.sin(2 * np.pi * f * at_T) / f**0.5 for f in rng.uniform(80, 3000, 6))
        noise_T = np.convolve(rng.standard_normal(len(at_T)), np.ones(8) / 8, "same")
        sound_T = (0.5 * tone_T + noise_T) * (0.2 + 0.8 * np.abs(np.sin(np.pi * at_T * rng.uniform(0.5, 4.0)))) * 0.08
        name = f"{i:05d}.{ending}"
        sf.write(folder / name, np.repeat(sound_T[:, None], channels, axis=1).clip(-1, 1), rate_hz)
        rows.append({"uri": name, "domain": domain, "duration_s": len(at_T) / rate_hz, "sample_rate_hz": rate_hz})
    return rows


def real_rows(root: Path, count: int) -> list[dict[str, Any]]:
    """Index rows of at most `count` recordings below `root`, taken evenly from all of its flac and ogg files."""
    import soundfile as sf

    found = sorted(p for p in root.rglob("*") if p.suffix in (".flac", ".ogg"))
    rows = []
    for path in found[:: max(1, len(found) // count)][:count]:
        info = sf.info(path)
        row = {"uri": path.relative_to(root).as_posix(), "domain": "speech"}
        rows.append(row | {"duration_s": info.frames / info.samplerate, "sample_rate_hz": info.samplerate})
    return rows


def measure(case: Path, root: Path, rows: list[dict[str, Any]], mel: bool) -> tuple[float, float]:
    """Clips a second, and a second of processor time, of the training's own Loader with one thread.

    `mel`: log-mel too, on the same core.
    """
    import torch

    from aut.audio.mel import log_mel
    from aut.order import Order
    from aut.training.data import Loader
    from aut.training.kept import Kept
    from aut.training.plan import Plan
    from aut.training.sizes import Sizes
    from aut.training.tokenizer import Targets

    torch.set_num_threads(1)
    order = Order.of_index([index(case, rows)], None, 0)
    kept, plan = Kept(order, np.empty(0, np.int64)), Plan(len(rows) // BATCH, len(rows) // BATCH * BATCH)
    loader = Loader(kept, {"clips": root}, Targets(case, "en"), max_s=30.0, sizes=Sizes(20.0), threads=1)
    clips, start, cpu = 0, 0.0, 0.0
    for batch in loader.steps(plan, 0):
        if mel:
            for m in batch.micros:
                log_mel(torch.from_numpy(m.x_BT).float() / 32767.0, torch.from_numpy(m.n_B), 80)
        if batch.step == WARM - 1:
            start, cpu, clips = time.perf_counter(), time.process_time(), -len(batch.row_ids)
        clips += len(batch.row_ids)
    rates = clips / (time.perf_counter() - start), clips / (time.process_time() - cpu)
    loader.close()
    say(f"aut{', log-mel too' if mel else ''}: {rates[0]:.1f} clips/s")
    return rates


def index(case: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as an index part, with a tokenizer beside it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from aut.contracts import INDEX_SCHEMA
    from aut.training.tokenizer import train_tokenizer

    path = case / "part-0.parquet"
    if not path.exists():
        whole = []
        for i, row in enumerate(rows):
            empty: dict[str, Any] = dict.fromkeys(INDEX_SCHEMA)
            whole.append(empty | {"id": f"clips/{i:05d}", "source": "clips", "start_s": 0.0, "text": "a sound"} | row)
        pq.write_table(pa.Table.from_pylist(whole), path)
        train_tokenizer(["a sound"], 290, "en", case)
    return path


def theirs(case: Path, root: Path, rows: list[dict[str, Any]]) -> Mapping[str, Any]:
    """The peer's own report, from its environment; from this one, its steps done by hand, where there is none."""
    files = case / "files.json"
    files.write_text(json.dumps([str((root / row["uri"]).resolve()) for row in rows]))
    report: Mapping[str, Any] | None = peer("load_hf.py", files, BATCH, WARM)
    if report is None:
        script = [sys.executable, str(PEERS / "load_hf.py"), str(files), str(BATCH), str(WARM)]
        done = subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True)
        report = dict(json.loads(done.stdout.strip().splitlines()[-1]))
    say(f"{report['peer']}: {report['clips_per_s']:.1f} clips/s")
    return report


if __name__ == "__main__":
    main()
