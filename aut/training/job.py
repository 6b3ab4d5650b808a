"""Job: one training from its inputs to a checkpoint folder, for `base` (train) and `finetune` alike.

In    an order and a plan over it, a starting model, the folder that holds its tokenizer
Out   a State; the model is trained in place
Why   work in progress lies in AUT_WORK/<stage>/<digest of the inputs>: DVC deletes a stage's outs before it runs.
      The digest covers the code, so that changed code never goes on with an old checkpoint, and leaves out what
      changes no step; a lock there makes a second start say which process is at work.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aut.config import Params, Schedule, Training
from aut.contracts import Tracker
from aut.files import digest_code, digest_json, locked, write_bytes, write_json
from aut.layout import Layout
from aut.training.checkpoint import LOCK, PLACE
from aut.training.placement import count

if TYPE_CHECKING:
    from aut.training.checkpoint import State
    from aut.training.engine import Engine
    from aut.training.kept import Kept
    from aut.training.plan import Plan
    from aut.training.sizes import Sizes

CODE = (
    *(f"audio/{name}.py" for name in ("container", "decode", "mel", "plain", "rate")),
    *("datasets/_tokens.py", "encoders/attention.py", "encoders/whisper.py"),
    *("exclude.py", "order.py", "units.py"),
    *("stages/base.py", "stages/finetune.py"),
    *(f"training/{name}.py" for name in ("augment", "checkpoint", "data", "engine", "job", "kept", "loop", "model")),
    *(f"training/{name}.py" for name in ("plan", "sharded", "tokenizer")),
)
"""Modules that a trained weight depends on; what else a training reaches, a test lists with the reason."""
PLACEMENT = {"checkpoint_every", "keep_checkpoints", "activation_checkpointing", "deepspeed_stage"}
"""Settings that change no step but by the order of float32 sums: a training goes on under others."""
LAST_ROWS = 10  # logged rows whose mean is the final loss


@dataclass(frozen=True)
class Job:
    """What is trained on what. `name` is the checkpoint's name, `inputs` all else that the result depends on.

    `place` is the working copy that asks, and no part of the identity: the same work elsewhere is the same.
    """

    stage: str
    name: str
    seed: int
    schedule: Schedule
    training: Training
    order: Kept
    plan: Plan
    held_out: list[dict[str, Any]]
    inputs: Mapping[str, Any]
    place: str = ""

    @property
    def origin(self) -> dict[str, str]:
        """What a refused checkpoint is told apart by."""
        model = str(self.inputs.get("base", "trained from nothing"))
        mixture = str(self.inputs.get("mixture", self.order.digest))
        settings = [self.seed, self._facts["schedule"], self._facts["training"]]
        others = {name: value for name, value in self.inputs.items() if name not in ("base", "mixture")}
        params, code = digest_json([settings, others]), self._facts["code"]
        told = {"name": self.name, "model": model, "mixture": mixture, "params": params, "code": code}
        return told | {PLACE: self.place}

    @property
    def identity(self) -> str:
        return digest_json(self._facts)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "seed": self.seed,
            "schedule": self.schedule.model_dump(),
            "training": self.training.model_dump(exclude=PLACEMENT),
            "rows": self.order.digest,
            "clips": self.plan.clips,
            "held_out": [row["id"] for row in self.held_out],
            "inputs": dict(self.inputs),
            "code": code_digest(),
        }


def code_digest() -> str:
    """Digest of the modules that a trained weight depends on."""
    return digest_code(*CODE)


@contextmanager
def workplace(job: Job, layout: Layout) -> Iterator[Path]:
    """The job's folder below AUT_WORK, held by this run. Busy names the process that holds it already."""
    work = layout.work / job.stage / job.identity
    if int(os.environ.get("RANK", "0")):  # another process of the same run, whose first one holds the lock
        yield work
        return
    with locked(work / LOCK, f"{job.stage} {job.name}"):
        yield work


def execute(job: Job, whisper: Any, tokens: Path, roots: Mapping[str, Path], work: Path, track: Tracker) -> State:
    """Trains `whisper` in place, from the last checkpoint where there is one."""
    import torch

    from aut.training.augment import Augment
    from aut.training.checkpoint import RUN
    from aut.training.data import Loader
    from aut.training.engine import open_engine, set_threads
    from aut.training.launch import check_share
    from aut.training.loop import Run, train
    from aut.training.model import Captioner
    from aut.training.tokenizer import Targets
    from aut.training.upload import uploads

    check_share(job.stage, job.name, job.plan.clips, job.plan.steps, int(os.environ.get("WORLD_SIZE", "1")))
    threads = set_threads()
    torch.manual_seed(job.seed)
    model = Captioner(whisper, job.training, Augment(job.training, job.seed))
    engine = open_engine(model, job.schedule, job.training)
    loader = Loader(
        job.order,
        roots,
        Targets(tokens, job.training.language),
        max_s=job.training.max_s,
        sizes=_sizes(job, engine, work),
        rank=engine.rank,
        world=engine.world,
        threads=_decoders(engine, threads),
        padded=engine.padded,
    )
    track.goes_on(work / RUN)
    try:
        with uploads(f"{job.stage}/{job.identity}", work) as second:
            return train(
                Run(
                    what=f"{job.stage} {job.name}",
                    engine=engine,
                    loader=loader,
                    plan=job.plan,
                    schedule=job.schedule,
                    training=job.training,
                    held_out=job.held_out,
                    work=work,
                    identity=job.identity,
                    origin=job.origin,
                    seed=job.seed,
                    track=track,
                    uploads=second,
                )
            )
    finally:
        loader.close()
        engine.close()


def finished(job: Job, work: Path) -> None:
    """The output stands: removes the checkpoints, here and in the second place."""
    from aut.training.checkpoint import discard
    from aut.training.upload import uploads

    discard(work)
    with uploads(f"{job.stage}/{job.identity}", work) as second:
        second.discard()


def _decoders(engine: Engine, threads: int) -> int:
    """Decoding threads: AUT_LOADERS; beside a GPU this process's part of the cores, else as many as torch has."""
    if named := count("AUT_LOADERS"):
        return named
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return threads if engine.device.type == "cpu" else max(1, (os.cpu_count() or 1) // here)


def _sizes(job: Job, engine: Engine, work: Path) -> Sizes:
    """The loader's micro-batches, the same in every process."""
    from aut.training.sizes import micro_sizes

    engine.sizes = micro_sizes(engine, job.training, -(-job.schedule.batch // engine.world), work)
    # Processes must divide a step alike, and they learn at different times: where there are several, the loader
    # keeps what it began with, and what did not fit is split by the engine, in all of them at once.
    return engine.sizes if engine.world == 1 else deepcopy(engine.sizes)


def source_roots(params: Params, layout: Layout) -> dict[str, Path]:
    """Root folder of each source that feeds a training pool."""
    return {
        name: layout.corpus_root(source.dataset, source.path)
        for name, source in params.sources.items()
        if source.role != "probe"
    }


def summary(state: State) -> dict[str, float | int]:
    """Totals and final losses: the same for the same inputs, however often the run was stopped."""
    values: dict[str, float | int] = {
        "steps": state.step,
        "clips": state.clips,
        "valid_seconds": round(state.valid_s, 6),
        "tokens": state.tokens,
        "replaced_clips": state.replaced,
        "skipped_steps": state.skipped,
    }
    last = state.log[-LAST_ROWS:]
    if last:
        values["loss"] = sum(row["loss"] for row in last) / len(last)
    if state.evals:
        values |= {name: value for name, value in state.evals[-1].items() if name != "step"}
    return values


def write_curve(path: Path, state: State) -> None:
    """step, loss, lr of every logged row, as CSV."""
    lines = ["step,loss,lr", *(f"{int(row['step'])},{row['loss']:.6g},{row['lr']:.6g}" for row in state.log)]
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def write_model(whisper: Any, folder: Path, facts: Mapping[str, Any]) -> None:
    """Weights, configurations and training.json into a folder that holds the tokenizer already."""
    from aut.training.model import save_whisper

    save_whisper(whisper, folder)
    write_preprocessor(folder, int(whisper.config.num_mel_bins))
    write_json(folder / "training.json", dict(facts))


def write_preprocessor(folder: Path, mels: int) -> None:
    """preprocessor_config.json as `transformers.WhisperFeatureExtractor` reads it."""
    from transformers.models.whisper.feature_extraction_whisper import WhisperFeatureExtractor

    if not (folder / "preprocessor_config.json").exists():
        WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder)


def empty_draft(work: Path) -> Path:
    """A folder beside the checkpoints in which the output is put together, each process its own."""
    draft = work / f"out-{os.environ.get('RANK', '0')}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    return draft
