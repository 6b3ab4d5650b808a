"""Resume: a training killed with SIGKILL at random moments, against the same training never killed.

In    a small Whisper on generated noise, one process; kills at moments drawn uniformly from the time that the work
      takes, each followed by a new start
Out   kills (2 quick, 20 full), kills_writing (of which a checkpoint was left half written), lost_steps (logged rows
      missing from or differing in the final record), recomputed_steps (done again after all kills), most_recomputed
      (after one; `checkpoint_every` at most), identical (1: rows, evaluations, ids and weights bit for bit), restore_s
      (process start to the first step after a resume); without --quick plan_s and restore_19m_s, at position 19M
      (benchmarks/_far.py)
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
        if start(root, "whole", steps).wait():
            raise SystemExit("the start without a kill failed")
        figures = killed(root, steps, kills, ended_s(root / "whole") - began_s(root / "whole"))
        figures |= compare(root, steps)
        if not options.quick:
            figures |= far(options.far or root / "far")
    finish("resume", figures, options.keep, {"machine": machine("torch"), "steps": steps, "checkpoint_every": EVERY})


def killed(root: Path, steps: int, kills: int, whole_s: float) -> dict[str, float]:
    """Runs to the end through `kills` kills, at moments drawn uniformly from the `whole_s` that the work takes alone.

    Whatever is under way then is cut: a checkpoint read or half written, a step, an evaluation.
    """
    moments_s = np.sort(np.random.default_rng(0).uniform(0.0, whole_s, kills))
    writing, most, restores = 0, 0, []
    for kill, wait_s in enumerate([*np.diff(moments_s, prepend=0.0), None]):
        before, started_s = done(root), time.time()
        code = one_start(root, steps, wait_s)
        new = done(root)[len(before) :]
        restores += [at_s - started_s for _, at_s in new[:1] if before]
        most = max([most, *(before[-1][0] - step + 1 for step, _ in new[:1] if before)])
        if wait_s is None and code:
            raise SystemExit("the last start failed")
        if wait_s is not None:
            cut = bool([*(root / "killed").glob(".step-*")])
            writing += cut
            say(f"kill {kill + 1} of {kills} after {len(new)} steps{', a checkpoint half written' * cut}")
    numbers = [step for step, _ in done(root)]
    recomputed = len(numbers) - len(set(numbers))
    figures = {"kills": kills, "kills_writing": writing, "recomputed_steps": recomputed, "most_recomputed": most}
    return figures | {"restore_s": float(np.median(restores))}


def one_start(root: Path, steps: int, wait_s: float | None) -> int:
    """Exit code of a start, killed `wait_s` after it began to work, where given."""
    began = root / "killed/began"
    began.unlink(missing_ok=True)
    process = start(root, "killed", steps)
    if wait_s is not None:
        while not began.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(wait_s)
        process.kill()
    return process.wait()


def began_s(work: Path) -> float:
    """When the process that is or was at work there had its libraries and began."""
    return (work / "began").stat().st_mtime


def ended_s(work: Path) -> float:
    return (work / "final.pt").stat().st_mtime


def compare(root: Path, steps: int) -> dict[str, float]:
    import torch

    whole, other = (torch.load(root / name / "final.pt", weights_only=True) for name in ("whole", "killed"))
    ours = {row["step"]: row for row in other["log"]}
    lost = sum(ours.get(row["step"]) != row for row in whole["log"]) + abs(steps - other["step"])
    same = all(torch.equal(value, other["weights"][name]) for name, value in whole["weights"].items())
    records = all(whole[key] == other[key] for key in ("log", "evals", "ids_digest"))
    return {"lost_steps": lost, "identical": float(same and records and not lost)}


def done(root: Path) -> list[tuple[int, float]]:
    """Steps as they were finished, over all starts, and when (seconds since 1970)."""
    path = root / "killed" / "steps"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [(int(step), float(at_s)) for step, at_s in map(str.split, lines)]


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
            f.write(f"{state.step} {time.time()}\n")
        return flops

    loop._step = noted
    (work / "began").touch()
    state = execute(job, whisper, case, {"noise": case}, work, Silent())
    record = {"log": state.log, "evals": state.evals, "ids_digest": state.ids_digest, "step": state.step}
    torch.save(record | {"weights": whisper.state_dict()}, work / "final.pt")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main()
