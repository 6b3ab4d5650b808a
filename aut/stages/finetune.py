"""Finetune: the base model, trained end to end to caption a mixture; its control on speech alone.

In    data/mixture/, models/base/
Out   models/<arm>-<seed>/ (transformers' format, tokenizer, training.json, speech.json: how well it still writes down
      speech), reports/plots/finetune@<arm>-<seed>.csv
Why   the arm `control` takes as many optimiser steps on as many valid audio seconds as `adapted`, of speech only:
      what adapted gains over it is due to the mixture, not to training longer. Price: a second training.
Run   aut finetune adapted 0
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aut.config import Params
from aut.contracts import Tracker
from aut.errors import ConfigError, MissingInput
from aut.files import digest_bytes, digest_file, digest_json, read_json, replacing, write_json
from aut.layout import Layout
from aut.order import Order
from aut.training.job import (
    Job,
    code_digest,
    empty_draft,
    execute,
    finished,
    source_roots,
    summary,
    workplace,
    write_curve,
    write_model,
)
from aut.training.kept import Kept, held_out
from aut.training.plan import Plan, matched, plan, seconds
from aut.units import Domain

SPEECH: list[Domain] = ["speech"]
NOT_COPIED = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "training.json")


def finetune(params: Params, layout: Layout, track: Tracker, arm: str, seed: int) -> dict[str, float | int | str]:
    """Trains one arm with one seed, from its last checkpoint; returns totals and losses."""
    if arm not in ("adapted", "control"):
        raise ConfigError(f"no arm '{arm}'", "it is adapted or control")
    base = layout.model("base")
    weights = _weights(base)
    mixture = Order.of_mixture(layout.mixture, seed)
    job, matching = _job(params, layout, mixture, arm, seed, weights)
    track.dataset("mixture", mixture.digest, mixture.length, layout.mixture)
    track.params({"arm": arm, "seed": seed, "steps": job.plan.steps, "clips": job.plan.clips} | matching)
    facts: dict[str, float | int | str] = {"arm": arm, "seed": seed}
    facts |= {"base_digest": weights, "mixture_digest": mixture.digest, **matching}
    with workplace(job, layout) as work:
        from aut.training.model import open_whisper
        from aut.training.wer import write_speech

        whisper = open_whisper(base)
        state = execute(job, whisper, base, source_roots(params, layout), work, track)
        facts |= summary(state)
        if int(os.environ.get("RANK", "0")) == 0:
            with replacing(layout.model(job.name), empty_draft(work)) as draft:
                shutil.copytree(base, draft, ignore=shutil.ignore_patterns(*NOT_COPIED), dirs_exist_ok=True)
                write_model(whisper, draft, facts)
                del whisper  # speech is measured from what was saved
                facts |= write_speech(draft, base, job.held_out, source_roots(params, layout), job.training)
            write_curve(layout.plot("finetune", job.name), state)
            finished(job, work)
    return facts


def _job(
    params: Params, layout: Layout, mixture: Order, arm: str, seed: int, weights: str
) -> tuple[Job, dict[str, float]]:
    """The job, and what was asked for when the arms were matched."""
    section = params.finetune
    max_s, eval_clips = section.training.max_s, section.training.eval_clips
    whole = plan(section.schedule, mixture.length)
    fixed = Order.of_mixture(layout.mixture, 0)  # all arms and seeds hold out the same rows: their losses are compared
    held = held_out(fixed, eval_clips)
    order = Kept(mixture, held)
    speech = Kept(Order.of_mixture(layout.mixture, seed, domains=SPEECH), held) if arm == "control" else None
    summed = {"mixture": mixture.digest, "seed": seed, "clips": whole.clips, "steps": whole.steps, "max_s": max_s}
    summed |= {"held": digest_bytes(held.tobytes()), "arm": arm, "code": code_digest()}
    memory = layout.work / "finetune/plans" / f"{digest_json(summed)}.json"
    clips, matching = _remembered(memory, lambda: _matched(whole, order, speech, max_s))
    own = Plan(whole.steps, clips)
    job = Job(
        stage="finetune",
        name=f"{arm}-{seed}",
        seed=seed,
        schedule=section.schedule,
        training=section.training,
        order=speech or order,
        plan=own,
        held_out=fixed.rows(np.arange(min(eval_clips, fixed.length // 4), dtype=np.int64)),
        inputs={"arm": arm, "base": weights, "mixture": mixture.digest},
        place=str(layout.root),
    )
    return job, matching


def _matched(whole: Plan, mixture: Kept, speech: Kept | None, max_s: float) -> tuple[int, dict[str, float]]:
    """Clips of the arm, and its audio; `speech` is the control's order. Looks at every clip's duration."""
    planned_s = seconds(mixture, whole.clips, max_s)
    if speech is None:
        return whole.clips, {"planned_seconds": planned_s}
    own = matched(whole, mixture, speech, max_s)
    return own.clips, {"adapted_planned_seconds": planned_s, "planned_seconds": seconds(speech, own.clips, max_s)}


def _remembered(path: Path, make: Callable[[], tuple[int, dict[str, float]]]) -> tuple[int, dict[str, float]]:
    """What `make` gives, from `path` where it was made before: minutes at 40M positions, which no resume may take."""
    if not path.exists():
        clips, matching = make()
        write_json(path, {"clips": clips, "matching": matching})
    found = read_json(path)
    return found["clips"], found["matching"]


def _weights(base: Path) -> str:
    """Digest of the base model's weights, and a clear word where it has none."""
    files: list[Any] = sorted(base.glob("*.safetensors"))
    if not files:
        raise MissingInput(f"{base} holds no weights", "run `aut base base`")
    return digest_json([[p.name, digest_file(p)] for p in files])
