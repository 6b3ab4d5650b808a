"""Loop: optimiser steps from the last checkpoint to the last step.

In    an Engine, a Loader, a Plan, rows held out for evaluation, a folder for work in progress
Out   the trained weights in the Engine, a State with every metrics row; checkpoints on the way
Why   a step is a function of (weights, optimiser, step): positions and learning rate are computed, the random state
      is seeded by (seed, step). So a resumed run equals one never stopped, bit for bit on a CPU, and a kill costs
      at most `checkpoint_every` steps, whenever it comes: checkpoints are made twice in so many, and each waits for the
      one before to stand. Price: the training stands still as long as tensors are gathered and copied (writer.py),
      and where a checkpoint takes longer to write than half an interval to train, for the rest of the writing.

A loss or gradient that is not finite skips the update and is counted; three in a row stop the run and name the rows.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from aut.config import Schedule, Training
from aut.contracts import Tracker
from aut.errors import DataError
from aut.files import digest_bytes
from aut.progress import Advance, progress
from aut.training import checkpoint
from aut.training.captions import COLUMNS, Samples
from aut.training.checkpoint import State
from aut.training.data import IGNORED, Batch, Loader
from aut.training.engine import Engine
from aut.training.flops import Shape, matrix_rate, training_flops
from aut.training.plan import Plan, learning_rate
from aut.training.upload import Uploads
from aut.training.writer import Writer
from aut.units import DOMAINS

LOG_EVERY = 10  # steps
MAX_SKIPS = 3  # in a row
SPIKE = 6.0  # standard deviations above the running mean
SPIKE_AFTER = 50  # steps, before which the mean is no guide
MEMORY = 0.98  # of the running mean, a step
SPIKES_KEPT = 100
STOPPED = 143  # exit code after SIGTERM


@dataclass
class Run:
    """All that a loop needs; `what` names it in messages."""

    what: str
    engine: Engine
    loader: Loader
    plan: Plan
    schedule: Schedule
    training: Training
    held_out: Sequence[dict[str, Any]]
    work: Path
    identity: str
    origin: Mapping[str, str]
    seed: int
    track: Tracker
    uploads: Uploads = field(default_factory=Uploads)


def train(run: Run) -> State:
    """Trains to the plan's last step; SIGTERM makes a checkpoint and exits 143."""
    state = _restore(run)
    for row in (*state.log, *state.evals):
        _report(run, row)
    _tell(run, state)
    held_out = cache(lambda: (_held_out_batches(run), Samples(run.held_out, run.loader)))  # not before the first step
    clock = Clock(run.engine)
    with _stopping() as stop, _progress(run, state) as advance, _writer(run) as writer:
        for batch in clock.waiting(run.loader.steps(run.plan, state.step)):
            clock.add(_step(run, state, batch))
            _log(run, state, clock)
            if state.step % run.training.eval_every == 0 or state.step == run.plan.steps:
                _evaluate(run, state, *held_out())
            due = _due(state.step, run.training.checkpoint_every) or state.step == run.plan.steps
            if due:
                _save(run, state, writer)
            if run.engine.total(torch.tensor(float(stop.is_set()))) > 0:  # asked here: it may have come in `_save`
                if not due:
                    _save(run, state, writer)
                _stand(run, writer)
                _say(run, f"stopped at step {state.step}, checkpoint written")
                raise SystemExit(STOPPED)
            writer.look()
            advance(1, f"loss {state.log[-1]['loss']:.3f}" if state.log else "")
        _stand(run, writer)
    run.engine.settle()
    return state


def _step(run: Run, state: State, batch: Batch) -> float:
    """One optimiser step; `state` is moved on. Returns the floating-point operations that the model needed."""
    engine, step = run.engine, state.step
    run.engine.model.train()
    engine.clear()
    counts = [sum(m.tokens for m in batch.micros), len(batch.row_ids), batch.replaced, batch.seconds, batch.padded_s]
    counts += [_flops(engine, batch), *fingerprint(batch.row_ids)]
    totals = engine.total(torch.tensor(counts, dtype=torch.float64)).tolist()
    tokens, clips, replaced, valid_s, padded_s, flops, *ids = totals
    sums_2G = engine.accumulate(batch.micros, tokens, (run.seed << 32) + step * engine.world + engine.rank)
    loss_G, tokens_G = engine.total(sums_2G).tolist()
    loss, lr = sum(loss_G) / tokens, learning_rate(run.schedule, step, run.plan.steps)
    norm = engine.update(lr, loss)
    if math.isfinite(loss) and math.isfinite(norm):
        state.lost = []
        _watch(run, state, batch, loss)
        _add(state, loss_G, tokens_G, norm)
    else:
        _skip(run, state, batch, loss, norm)
    state.step += 1
    state.clips += int(clips)
    state.tokens += int(tokens)
    state.replaced += int(replaced)
    state.valid_s += valid_s
    state.padded_s += padded_s
    state.ids_digest = digest_bytes(state.ids_digest.encode(), *(f"{part:.0f}".encode() for part in ids))
    state.window["lr"] = lr
    return float(flops)


def _flops(engine: Engine, batch: Batch) -> float:
    shape = Shape.of(engine.captioner.whisper.config)
    return sum(training_flops(shape, m.n_B, (m.targets_BL != IGNORED).sum(axis=1)) for m in batch.micros)


def fingerprint(row_ids: Sequence[str]) -> list[float]:
    """Two sums of 32-bit hashes: rows dealt out to processes add up to the same, exactly, for up to 2^21 rows."""
    hashes = [digest_bytes(i.encode()) for i in row_ids]
    return [float(sum(int(h[at : at + 8], 16) for h in hashes)) for at in (0, 8)]


def _skip(run: Run, state: State, batch: Batch, loss: float, norm: float) -> None:
    state.skipped += 1
    step = state.step + 1  # counted from 1, as in every row that is logged
    state.lost.append({"step": step, "ids": run.engine.gather(batch.row_ids)})
    said = f"step {step}: loss {loss:g}, gradient norm {norm:g}"
    _say(run, f"{said}: the update is skipped")
    if len(state.lost) >= MAX_SKIPS:
        rows = "; ".join(f"rows of step {s['step']}: {', '.join(s['ids'])}" for s in state.lost)
        raise DataError(
            f"{run.what}: {MAX_SKIPS} steps in a row were not finite; {said}; {rows}",
            "look at these rows, lower the learning rate, or train in fp32",
        )


def _watch(run: Run, state: State, batch: Batch, loss: float) -> None:
    """Keeps the rows of a step whose loss is far above the running mean."""
    if state.step >= SPIKE_AFTER:
        deviation = math.sqrt(max(state.loss_square - state.loss_mean**2, 1e-12))
        if loss > state.loss_mean + SPIKE * deviation:
            step = state.step + 1
            _say(run, f"loss {loss:.3f} at step {step} stands out")
            state.spikes.append({"step": step, "loss": loss, "ids": run.engine.gather(batch.row_ids)})
            del state.spikes[:-SPIKES_KEPT]
            _tell(run, state)
    memory = min(MEMORY, 1.0 - 1.0 / (state.step + 1))
    state.loss_mean = memory * state.loss_mean + (1.0 - memory) * loss
    state.loss_square = memory * state.loss_square + (1.0 - memory) * loss**2


def _add(state: State, loss_G: list[float], tokens_G: list[float], norm: float) -> None:
    window = state.window
    for domain, loss, tokens in zip(DOMAINS, loss_G, tokens_G, strict=True):
        window[f"loss.{domain}"] = window.get(f"loss.{domain}", 0.0) + loss
        window[f"tokens.{domain}"] = window.get(f"tokens.{domain}", 0.0) + tokens
    window["norm"] = window.get("norm", 0.0) + norm
    window["steps"] = window.get("steps", 0.0) + 1.0


def _log(run: Run, state: State, clock: Clock) -> None:
    """Every LOG_EVERY steps the means since the last row; rates go to the tracker only, for they differ each time."""
    if state.step % LOG_EVERY and state.step != run.plan.steps:
        return
    window, row = state.window, {"step": float(state.step)}
    if window.get("steps"):
        row |= _by_domain("loss", window)
        row |= {"lr": window["lr"], "grad_norm": window["norm"] / window["steps"]}
        state.log.append(row)
    rates = clock.rates(state)
    rates |= {"replaced_clips": float(state.replaced), "skipped_steps": float(state.skipped)}
    state.window = {}
    _report(run, row | rates)


def _by_domain(name: str, sums: dict[str, float]) -> dict[str, float]:
    """Mean loss over all target tokens, and by domain where there are any."""
    losses = [sums.get(f"loss.{d}", 0.0) for d in DOMAINS]
    tokens = [sums.get(f"tokens.{d}", 0.0) for d in DOMAINS]
    values = {name: sum(losses) / max(sum(tokens), 1.0)}
    return values | {f"{name}_{d}": a / b for d, a, b in zip(DOMAINS, losses, tokens, strict=True) if b}


def _held_out_batches(run: Run) -> list[Batch]:
    """Held-out rows, decoded once, this process's share."""
    size = max(run.schedule.batch, run.engine.world)
    rows = run.held_out
    return [run.loader.batch(i, rows[i : i + size]) for i in range(0, len(rows), size)]


@torch.no_grad()
def _evaluate(run: Run, state: State, batches: Sequence[Batch], samples: Samples) -> None:
    """Loss on the held-out rows, all and by domain; what the model says to a few of them."""
    run.engine.model.eval()
    sums = torch.zeros(2, len(DOMAINS), dtype=torch.float64, device=run.engine.device)
    for micro in (m for b in batches for m in b.micros):
        sums += run.engine.look(micro)
    loss_G, tokens_G = run.engine.total(sums).tolist()
    if not sum(tokens_G):
        return
    named = {f"loss.{d}": v for d, v in zip(DOMAINS, loss_G, strict=True)}
    named |= {f"tokens.{d}": v for d, v in zip(DOMAINS, tokens_G, strict=True)}
    state.evals.append({"step": float(state.step)} | _by_domain("eval_loss", named))
    _report(run, state.evals[-1])
    state.captions += samples.rows(run.engine, state.step)
    _tell(run, state)


def _tell(run: Run, state: State) -> None:
    """Tables, whole each time: what stood out, and what the model says."""
    if run.engine.rank:
        return
    if state.spikes:
        rows = [[s["step"], s["loss"], " ".join(s["ids"])] for s in state.spikes]
        run.track.table("spikes", ("step", "loss", "rows"), rows)
    if state.captions:
        run.track.table("captions", COLUMNS, state.captions)


def _report(run: Run, row: dict[str, float]) -> None:
    if run.engine.rank == 0:
        run.track.metrics({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))


def _progress(run: Run, state: State) -> AbstractContextManager[Advance]:
    """Told by one process."""
    if run.engine.rank:
        return nullcontext(lambda *_: None)
    return progress(run.what, run.plan.steps - state.step)


def _say(run: Run, what: str) -> None:
    if run.engine.rank == 0:
        print(f"{run.what}: {what}", file=sys.stderr)  # noqa: T201


def _writer(run: Run) -> Writer:
    return Writer(run.work, run.training.keep_checkpoints, run.uploads)


def _due(step: int, every: int) -> bool:
    """Twice in `every` steps, at its multiples and halfway (rounded down) between them.

    Two neighbouring gaps are `every` steps, and when the later one begins, the checkpoint before both stands: `_save`
    waits for it. With 1 there is no halfway, so that `_save` waits for its own, too.
    """
    return step % every in (0, every // 2)


def _save(run: Run, state: State, writer: Writer) -> None:
    """Every process takes part: under ZeRO each holds a part of the tensors. The first one writes."""
    start = time.monotonic()
    writer.wait()  # one copy at a time, and no step that a kill would cost beyond the interval
    alongside = run.training.checkpoint_every > 1
    apart = alongside and (run.engine.rank > 0 or writer.has_room(run.engine.snapshot_b))
    files = run.engine.snapshot(apart)
    if run.engine.rank == 0:
        writer.write(files, state)
        if not apart:
            writer.wait()
        _report(run, {"step": float(state.step), "checkpoint_s": time.monotonic() - start})


def _stand(run: Run, writer: Writer) -> None:
    """Until the last checkpoint stands; no process leaves before, for the others would be told to end."""
    writer.wait()
    run.engine.wait()


def _restore(run: Run) -> State:
    """Process 0 chooses the checkpoint: looking reads all of its bytes."""
    chosen = ""
    if run.engine.rank == 0:
        cut = bool(checkpoint.checkpoints(run.work))
        found = checkpoint.newest(run.work, run.identity, run.origin)
        if not found:
            cut |= run.uploads.fetch(run.work)
            found = checkpoint.newest(run.work, run.identity, run.origin)
        if not found and (told := _why_anew(run, cut)):
            _say(run, told)
        chosen = found[0].name if found else ""
    chosen = run.engine.agree(chosen)
    run.engine.start(run.work / chosen if chosen else None)
    if not chosen:
        return State(run.identity, dict(run.origin))
    state = checkpoint.read_state(run.work / chosen)
    _say(run, f"resumes at step {state.step} of {run.plan.steps}")
    return state


def _why_anew(run: Run, cut: bool) -> str:
    return "no checkpoint is whole: begins anew" if cut else checkpoint.elsewhere(run.work, run.origin)


class Clock:
    """Rates since the last look, and the share of time spent waiting for data. Never part of a State."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._peak = engine, 0.0
        self._at, self._waited, self._flops = time.monotonic(), 0.0, 0.0
        self._clips: int | None = None
        self._valid_s = self._padded_s = 0.0

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, with the time of each wait added up."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def add(self, flops: float) -> None:
        self._flops += flops

    def rates(self, state: State) -> dict[str, float]:
        now = time.monotonic()
        took_s = max(now - self._at, 1e-9)
        values = {"data_wait_percent": 100.0 * self._waited / took_s, "memory_gb": self._engine.memory_gb()}
        if self._clips is not None:
            valid_s, padded_s = state.valid_s - self._valid_s, state.padded_s - self._padded_s
            values["clips_per_s"] = (state.clips - self._clips) / took_s
            values["audio_s_per_s"] = valid_s / took_s
            values["padding_percent"] = 100.0 * (1.0 - valid_s / max(padded_s, 1e-9))
            values["mfu_percent"] = 100.0 * self._flops / took_s / self._device_rate()
        self._at, self._waited, self._flops = time.monotonic(), 0.0, 0.0
        self._clips, self._valid_s, self._padded_s = state.clips, state.valid_s, state.padded_s
        return values

    def _device_rate(self) -> float:
        """Operations a second of all processes, measured once."""
        if not self._peak:
            dtype = torch.bfloat16 if self._engine.bf16 else torch.float32
            self._peak = self._engine.world * matrix_rate(self._engine.device, dtype)
        return self._peak


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Set by SIGTERM, so that the step under way ends with a checkpoint. Signals reach the main thread only."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
