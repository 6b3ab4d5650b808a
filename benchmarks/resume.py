"""Resume: a training killed with SIGKILL at random moments, against the same training never killed.

In    a small Whisper on generated noise, one process; kills after random waits, each followed by a new start
Out   kills (2 quick, 20 full), lost_steps (logged rows missing from or differing in the final record), recomputed_steps
      (done again after a kill), identical (1: rows, evaluations, ids and weights bit for bit), restore_s (process start
      to the first step after a resume); without --quick plan_s and restore_19m_s, at position 19M (benchmarks/_far.py)
Why   "nothing lost" is a claim about the record that remains, not about the process that died
Run   python -m benchmarks.resume [--quick]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import arguments, finish, machine, say
from benchmarks._far import far

CLIPS, EVERY = 64, 4
TEXTS = ("low hum", "rain on a roof", "a bell")


def main() -> None:
    parser = arguments("Kill a training again and again, and compare what remains.")
    parser.add_argument("--far", type=Path, help="keeps the 20M-row mixture there, and uses it again")
    options = parser.parse_args()
    kills, steps = (2, 24) if options.quick else (20, 600)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "case").mkdir()
        write_case(root / "case")
        for name in ("whole", "killed"):
            (root / name).mkdir()
        say(f"{steps} steps without a kill")
        start(root, "whole", steps).wait()
        figures = killed(root, steps, kills)
        figures |= compare(root, steps)
        if not options.quick:
            figures |= far(options.far or root / "far")
    finish("resume", figures, options.keep, {"machine": machine("torch"), "steps": steps, "checkpoint_every": EVERY})


def killed(root: Path, steps: int, kills: int) -> dict[str, float]:
    """Runs to the end through `kills` kills; a kill comes at a step drawn at random from its share of the steps."""
    rng = np.random.default_rng(0)
    restores: list[float] = []
    for kill in range(kills):
        at = int(rng.integers(kill * steps // kills + 1, (kill + 1) * steps // kills))
        process, began, before = start(root, "killed", steps), time.monotonic(), len(done(root))
        while process.poll() is None and (not done(root)[before:] or done(root)[-1] < at):
            time.sleep(0.002)
            if before and len(done(root)) > before and len(restores) < kill:
                restores.append(time.monotonic() - began)
        process.kill()
        process.wait()
        say(f"kill {kill + 1} of {kills} after step {done(root)[-1]}")
    if start(root, "killed", steps).wait():
        raise SystemExit("the last start failed")
    numbers = done(root)
    recomputed = len(numbers) - len(set(numbers))
    return {"kills": kills, "recomputed_steps": recomputed, "restore_s": float(np.median(restores))}


def compare(root: Path, steps: int) -> dict[str, float]:
    import torch

    whole, other = (torch.load(root / name / "final.pt", weights_only=True) for name in ("whole", "killed"))
    ours = {row["step"]: row for row in other["log"]}
    lost = sum(ours.get(row["step"]) != row for row in whole["log"]) + abs(steps - other["step"])
    same = all(torch.equal(value, other["weights"][name]) for name, value in whole["weights"].items())
    records = all(whole[key] == other[key] for key in ("log", "evals", "ids_digest"))
    return {"lost_steps": lost, "identical": float(same and records and not lost)}


def done(root: Path) -> list[int]:
    """Steps as they were finished, over all starts."""
    path = root / "killed" / "steps"
    return [int(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def start(root: Path, name: str, steps: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.resume", "--train", str(root), name, str(steps)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)


def write_case(folder: Path) -> None:
    """Tones in noise with texts, an index of them, a tokenizer."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import soundfile as sf

    from aut.contracts import INDEX_SCHEMA
    from aut.training.tokenizer import train_tokenizer

    rows: list[dict[str, Any]] = []
    for i in range(CLIPS):
        rng = np.random.default_rng([0, i])
        samples = int(rng.integers(4000, 12000))
        tone = np.sin(np.arange(samples) * (0.05 + 0.2 * (i % 3))) * 0.3 + rng.normal(0, 0.02, samples)
        sf.write(folder / f"{i:04d}.wav", tone, 16000, subtype="PCM_16")
        row: dict[str, Any] = dict.fromkeys(INDEX_SCHEMA)
        row |= {"id": f"noise/{i:04d}", "domain": "speech", "source": "noise", "uri": f"{i:04d}.wav", "start_s": 0.0}
        rows.append(row | {"duration_s": samples / 16000, "sample_rate_hz": 16000, "text": TEXTS[i % 3]})
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-0.parquet")
    train_tokenizer(TEXTS * 5, 290, "en", folder)


def train(root: Path, name: str, steps: int) -> None:
    """One start of the training; every finished step is a line of `steps`."""
    import torch

    from aut.config import ModelShape, Schedule, Training
    from aut.contracts import Silent
    from aut.order import Order
    from aut.training import loop
    from aut.training.job import Job, execute
    from aut.training.kept import Kept, held_out
    from aut.training.model import new_whisper
    from aut.training.plan import plan

    case, work = root / "case", root / name
    schedule = Schedule(
        steps=steps, epochs=None, batch=4, lr=3e-3, warmup_fraction=0.1, weight_decay=0.01, betas=(0.9, 0.999),
        clip_norm=1.0,
    )  # fmt: skip
    training = Training(
        precision="fp32", length="native", max_s=30.0, language="en", spec_augment=True, gain_jitter_db=3.0,
        label_smoothing=0.0, checkpoint_every=EVERY, keep_checkpoints=2, eval_every=20, eval_clips=8,
        activation_checkpointing=False, compile=False, deepspeed_stage=0,
    )  # fmt: skip
    order = Order.of_index([case / "part-0.parquet"], None, 0)
    held = held_out(order, training.eval_clips)
    rows = order.rows(np.arange(len(held), dtype=np.int64))
    job = Job("base", name, 0, schedule, training, Kept(order, held), plan(schedule, order.length), rows, {})
    shape = ModelShape(d_model=16, encoder_layers=2, decoder_layers=1, heads=2, mels=80, vocabulary=290)
    whisper = new_whisper(shape, case, "en", 0)
    one_step = loop._step

    def noted(run: Any, state: Any, batch: Any) -> float:
        flops = one_step(run, state, batch)
        with (work / "steps").open("a") as f:
            f.write(f"{state.step}\n")
        return flops

    loop._step = noted
    state = execute(job, whisper, case, {"noise": case}, work, Silent())
    record = {"log": state.log, "evals": state.evals, "ids_digest": state.ids_digest, "step": state.step}
    torch.save(record | {"weights": whisper.state_dict()}, work / "final.pt")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main()
