"""A tiny corpus of noise with texts, an index of it, a tokenizer, and a job over them, for tests of training."""

from pathlib import Path

import numpy as np

from aut.config import ModelShape, Schedule, Training
from aut.contracts import INDEX_SCHEMA, Silent

CLIPS = 32
TEXTS = ("low hum", "rain on a roof", "a bell")


def write_case(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import soundfile as sf

    from aut.training.tokenizer import train_tokenizer

    rows = []
    for i in range(CLIPS):
        rng = np.random.default_rng([0, i])
        samples = int(rng.integers(2000, 6000))
        tone = np.sin(np.arange(samples) * (0.05 + 0.2 * (i % 3))) * 0.3 + rng.normal(0, 0.02, samples)
        sf.write(folder / f"{i:04d}.wav", tone, 16000, subtype="PCM_16")
        row = dict.fromkeys(INDEX_SCHEMA)
        row |= {"id": f"noise/{i:04d}", "domain": "speech", "source": "noise", "uri": f"{i:04d}.wav", "start_s": 0.0}
        row |= {"duration_s": samples / 16000, "sample_rate_hz": 16000, "text": TEXTS[i % 3]}
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-0.parquet")
    train_tokenizer(TEXTS * 5, 290, "en", folder)
    return folder


def settings(**changes):
    values = {
        "precision": "fp32", "length": "native", "max_s": 30.0, "language": "en", "spec_augment": False,
        "gain_jitter_db": 0.0, "label_smoothing": 0.0, "checkpoint_every": 2, "keep_checkpoints": 2, "eval_every": 3,
        "eval_clips": 4, "activation_checkpointing": False, "deepspeed_stage": 0,
    }  # fmt: skip
    return Training(**(values | changes))


def job_of(case: Path, steps: int = 6, **changes):
    from aut.order import Order
    from aut.training.job import Job
    from aut.training.kept import Kept, held_out
    from aut.training.plan import plan

    schedule = Schedule(
        steps=steps, epochs=None, batch=4, lr=3e-3, warmup_fraction=0.1, weight_decay=0.01, betas=(0.9, 0.999),
        clip_norm=1.0,
    )  # fmt: skip
    training = settings(spec_augment=True, gain_jitter_db=3.0, **changes)
    order = Order.of_index([case / "part-0.parquet"], None, 0)
    held = held_out(order, training.eval_clips)
    rows = order.rows(np.arange(len(held), dtype=np.int64))
    return Job("base", "case", 0, schedule, training, Kept(order, held), plan(schedule, order.length), rows, {})


def whisper_of(case: Path):
    from aut.training.model import new_whisper

    shape = ModelShape(d_model=16, encoder_layers=2, decoder_layers=1, heads=2, mels=80, vocabulary=290)
    return new_whisper(shape, case, "en", 0)


def curve(state):
    """Losses, learning rates and evaluations, exactly."""
    return state.log, state.evals


def main(case: str, work: str, stage: str = "0", stop: str = "0") -> None:
    """The same job in processes of their own; leaves final.pt. With `stop`, SIGTERM comes in that step."""
    import os
    import signal

    import torch

    from aut.training.job import execute

    class Stop(Silent):
        def metrics(self, values, step=None):
            if step == int(stop):
                os.kill(os.getpid(), signal.SIGTERM)

    folder, whisper = Path(case), whisper_of(Path(case))
    job = job_of(folder, 6, deepspeed_stage=int(stage))
    execute(job, whisper, folder, {"noise": folder}, Path(work), Stop())
    if os.environ.get("RANK", "0") == "0":
        torch.save(whisper.state_dict(), Path(work) / "final.pt")


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
