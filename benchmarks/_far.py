"""Far: a training that goes on at position 19M of a 20M-row mixture; how long until its first step is done.

In    a folder; the synthetic index of benchmarks/mixture.py at full size or a part of it
Out   plan_s, what the first start ever must look through; restore_19m_s, from process start to the first step
Why   a loader that replays takes hours here. The stage is the real one: order, plan, checkpoint, decoding.
      Only the model is small, and every row's audio is cut from one file, for 20M files are not at hand.
Run   python -m benchmarks.resume (without --quick)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import say

POSITION = 19_000_000
CLIP, PREPARED = "clip.flac", "prepared.json"
SMALL = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "heads": 2, "mels": 80, "vocabulary": 290}


def far(root: Path, shrink: int = 1) -> dict[str, float]:
    """Both times, in seconds; `shrink` makes the mixture and the position so many times smaller.

    A folder that was prepared before is used again.
    """
    os.environ["AUT_WORK"] = str(root / "work")
    if not (root / PREPARED).exists():
        plan_s = prepare(root, shrink)
        (root / PREPARED).write_text(json.dumps({"plan_s": plan_s}))
    plan_s = float(json.loads((root / PREPARED).read_text())["plan_s"])
    say(f"planned over all epochs in {plan_s:.1f} s, once")
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "benchmarks._far", str(root)], check=True)
    took = time.monotonic() - start
    say(f"first step {took:.1f} s after the start")
    return {"plan_s": plan_s, "restore_19m_s": took}


def prepare(root: Path, shrink: int) -> float:
    """Mixture, base model and a checkpoint at the position; seconds that the plan took."""
    import soundfile as sf

    from aut.contracts import Silent
    from aut.layout import Layout
    from aut.order import Order
    from aut.stages import finetune as stage
    from aut.stages.mixture import mixture
    from benchmarks import mixture as bench

    layout, params = Layout(root), _params(shrink)
    if not (layout.mixture / "mixture.json").exists():
        bench.build(root, shrink)
        mixture(params, layout, Silent())
    sf.write(root / CLIP, np.random.default_rng(0).normal(0, 0.1, 30 * 16_000), 16_000)
    write_base(layout.model("base"))
    (root / "far.json").write_text(json.dumps(params.model_dump(mode="json", by_alias=True)))
    weights, start = stage._weights(layout.model("base")), time.monotonic()
    job, _ = stage._job(params, layout, Order.of_mixture(layout.mixture, 0), "adapted", 0, weights)
    plan_s = time.monotonic() - start
    plant(job, layout, POSITION // shrink // job.schedule.batch)
    return plan_s


def _params(shrink: int) -> Any:
    """The paper's schedule over the benchmark's mixture."""
    from benchmarks import _pool as pool
    from benchmarks import mixture as bench

    sources = {domain: list(names) for domain, names in bench.FULL.items()}
    params = pool.params(sources, rows=bench.ROWS // shrink, window=100, parts=max(4, bench.PARTS // shrink))
    schedule = params.finetune.schedule.model_copy(update={"steps": None, "epochs": 2.0, "batch": 128})
    training = params.finetune.training.model_copy(
        update={"eval_clips": 128, "eval_every": 2500, "checkpoint_every": 500}
    )
    section = params.finetune.model_copy(update={"schedule": schedule, "training": training})
    return params.model_copy(update={"finetune": section})


def write_base(folder: Path) -> None:
    from aut.config import ModelShape
    from aut.training.job import write_model
    from aut.training.model import new_whisper
    from aut.training.tokenizer import train_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer(["a small sound"] * 5, SMALL["vocabulary"], "en", folder)
    write_model(new_whisper(ModelShape.model_validate(SMALL), folder, "en", 0), folder, {})


def plant(job: Any, layout: Any, step: int) -> None:
    """A checkpoint as the training would have left it after `step` steps."""
    import torch

    from aut.training import checkpoint
    from aut.training.augment import Augment
    from aut.training.engine import Engine
    from aut.training.job import workplace
    from aut.training.model import Captioner, open_whisper

    model = Captioner(open_whisper(layout.model("base")), job.training, Augment(job.training, 0))
    engine = Engine(model, job.schedule, job.training)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    engine.optimizer.step()
    with workplace(job, layout) as work:
        state = checkpoint.State(job.identity, job.origin, step=step, loss_mean=6.0, loss_square=37.0)
        checkpoint.write(work, engine.snapshot(apart=False), state, keep=2)


def one_step(root: Path) -> None:
    """The stage, until its first step is done."""
    from aut.config import parse_params
    from aut.contracts import Silent
    from aut.layout import Layout
    from aut.stages.finetune import finetune

    loop: Any = import_module("aut.training.loop")
    data: Any = import_module("aut.training.data")
    step, read = loop._step, data.read_clip

    def first(*args: Any) -> float:
        step(*args)
        os._exit(0)

    def cut(_: Path, row: Mapping[str, Any], max_s: float = 30.0) -> Any:
        return read(root, {**row, "uri": CLIP}, max_s)

    loop._step, data.read_clip = first, cut
    os.environ["AUT_DATA"] = str(root)
    finetune(
        parse_params(json.loads((root / "far.json").read_text()), "far.json"), Layout(root), Silent(), "adapted", 0
    )


if __name__ == "__main__":
    one_step(Path(sys.argv[1]))
