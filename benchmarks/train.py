"""Train: steps of the same Whisper on the same clips, ours at native length against transformers' Seq2SeqTrainer.

In    noise as long as the mixture's clips (speech 8 s, sound 10 s, music 8 s on average), random weights and targets
Out   ratio_hf (target 3), clips_per_s; on a CPU also ratio_hf_cpu, by processor time, which other work on the machine
      disturbs less, and without --quick compiled_clips_per_s (0: it failed).
      On a GPU: the same and padded_clips_per_s (above 60.4) of steps of 16 clips, one GPU's part of the paper's 128;
      ..._64 and ..._128 of larger steps, the last being the paper's on one GPU alone; ratio_hf_128 against the peer
      with such steps. Blocks are compiled, as in the profile (plain_...: they are not). Micro-batches of several
      seconds are tried: the best count, all stand beside the figures (one that did not fit is left out).
      recomputed_clips_per_s is with activations computed again; mfu..., padded_mfu..., matrix_tflops, memory_gb;
      hf_stored_clips_per_s and ratio_hf_stored (the peer recomputes nothing); compiling_s of the first steps;
      packed_error, masked_error: of bf16 frames against float32 ones, clips packed, and padded under a mask
Why   what a step costs is decided by the padding; both sides get waveforms and compute their features, ours on
      the device inside the step, theirs with WhisperFeatureExtractor in the collator, as is usual. The peer has the
      paper's settings: a step of 16 clips a GPU, 8 a micro-batch, bf16, activations recomputed without re-entrance.
      Ours takes steps of as many, divided as training divides them, nothing recomputed, as in the profile.
      On a GPU: whisper-large-v3's shapes; mfu counts valid audio against a matrix product's rate of the same run.
      Needs numpy, torch, transformers and accelerate only: what it takes from aut needs no more.
Run   python -m benchmarks.train [--quick]        (the first GPU is used where there is one)
      python -m benchmarks.train --rehearse       (the GPU's path with tiny shapes on the CPU; its figures mean nothing)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # the peer spreads over all GPUs that it sees, and we do not: one is compared with one
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.models.whisper.feature_extraction_whisper import WhisperFeatureExtractor

ROOT = Path(__file__).parents[1]
if "aut" not in sys.modules:  # aut's own packages import what a bare host may lack: name the folders, run no __init__
    for _name in ("aut", "aut.audio", "aut.encoders", "aut.training"):
        _package = types.ModuleType(_name)
        _package.__path__ = [str(ROOT / _name.replace(".", "/"))]
        sys.modules[_name] = _package

from aut.audio.mel import log_mel  # noqa: E402
from aut.encoders.whisper import decoder_forward, encoder_forward  # noqa: E402
from aut.training.flops import Shape, finish, matrix_rate, training_flops  # noqa: E402
from aut.training.groups import divide  # noqa: E402
from aut.training.memory import out_of_memory, sent  # noqa: E402
from aut.training.memory import release as release_memory  # noqa: E402

RATE_HZ, TARGETS = 16_000, 24
LAUNCH = 0.1  # of a micro-batch's seconds, what each costs beside them
BUDGETS_S = (240.0, 480.0)  # the last holds a padded step whole
LARGER = (64, 128)  # clips of a step, on a GPU
LARGEST_S = 960.0  # of audio in a micro-batch of theirs
MEL_ATOL, LOSS_RTOL = 1e-4, 1e-3  # float32, other kernels
MEAN_S = (8.0,) * 8 + (10.0,) + (8.0,)  # 80 % speech, 10 % sound, 10 % music
SMALL = {"d_model": 128, "layers": 4, "heads": 4, "mels": 80, "vocabulary": 2000}
LARGE = {"d_model": 1280, "layers": 32, "heads": 20, "mels": 128, "vocabulary": 51866}
TINY = {"d_model": 32, "layers": 2, "heads": 2, "mels": 128, "vocabulary": 500}


@dataclass(frozen=True)
class Case:
    """What is measured where; `full` adds what only a GPU's figures are asked for."""

    device: torch.device
    shape: dict[str, int]
    batch: int  # clips of a step
    micro: int  # of them, in a micro-batch of the peer
    steps: int
    bf16: bool
    full: bool
    budgets_s: tuple[float, ...]  # padded seconds of a micro-batch
    workers: int
    compiled: bool = False
    again: bool = False  # activations are recomputed

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"


def case_of(quick: bool, rehearse: bool) -> Case:
    if rehearse:
        return Case(torch.device("cpu"), TINY, 4, 2, 2, True, True, (60.0, 120.0), 2, True)
    if torch.cuda.is_available():
        workers = min(8, os.cpu_count() or 1)
        return Case(torch.device("cuda"), LARGE, 16, 8, 8 if quick else 24, True, True, BUDGETS_S, workers, True)
    return Case(torch.device("cpu"), SMALL, 8, 8, 2 if quick else 8, False, False, (20.0,), 0)


@dataclass(frozen=True)
class Budget:
    """Micro-batches of so many seconds, padding included, as aut/training/sizes.py has them where nothing was timed."""

    budget_s: float
    packed: bool

    def __call__(self, seconds: float) -> int:
        return max(1, int(self.budget_s // seconds))

    def took(self, computed_s: float) -> float:
        return computed_s + LAUNCH * self.budget_s


class Figures(dict[str, float]):
    """Each is told as soon as it is known: a run that is cut short has not been for nothing."""

    def __setitem__(self, name: str, value: float) -> None:
        say(f"{name}: {value:.6g}")
        super().__setitem__(name, value)


class Pace(NamedTuple):
    """Clips a second, by the clock and by this process's processor time."""

    wall: float
    cpu: float


class Span:
    """From now on."""

    def __init__(self, case: Case) -> None:
        self._case, self._wall, self._cpu = case, now(case), time.process_time()

    def pace(self, clips: int) -> Pace:
        return Pace(clips / (now(self._case) - self._wall), clips / (time.process_time() - self._cpu))


@dataclass(frozen=True)
class Clip:
    x_T: Any
    ids: list[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, no result file")
    parser.add_argument("--rehearse", action="store_true", help="the GPU's path with tiny shapes on the CPU")
    options = parser.parse_args()
    torch.manual_seed(0)
    case = case_of(options.quick, options.rehearse)
    clips = make_clips(case.batch * case.steps, case.shape["vocabulary"])
    seconds = float(np.mean([len(c.x_T) for c in clips])) / RATE_HZ
    say(f"{len(clips)} clips of {seconds:.1f} s on average, {case.batch} a step, on {case.device}")
    model = new_model(case)
    figures, tried = Figures(), {}
    for name, error in (check(case, model, clips[:4]) | check_packed(case, model, clips[:4])).items():
        figures[name] = error
    figures["mean_s"] = seconds
    if case.compiled:
        case = compile_first(case, model, clips, figures)
    best, before, tried["clips_per_s_by_budget"] = fastest(case, model, clips)
    if case.full:
        figures["memory_gb"] = peak_gb(case)
    peer = theirs(case, model, clips, case.full)
    after = steps_of(case, model, clips, best)
    figures["hf_clips_per_s"] = peer.wall
    figures["clips_per_s"] = (before.wall + after.wall) / 2.0  # on both sides of the peer, should the machine drift
    figures["ratio_hf"] = figures["clips_per_s"] / peer.wall
    if case.full:
        tried["padded_clips_per_s_by_budget"] = on_a_gpu(case, model, clips, best, figures)
    else:
        figures["ratio_hf_cpu"] = (before.cpu + after.cpu) / 2.0 / peer.cpu
        if not options.quick:
            compiled = compile_first(replace(case, compiled=True), model, clips, figures)
            figures["compiled_clips_per_s"] = steps_of(compiled, model, clips, best).wall if compiled.compiled else 0.0
    line = {"bench": "train", "figures": {k: float(f"{v:.6g}") for k, v in figures.items()}, **tried}
    print(json.dumps(line), flush=True)
    if not (options.quick or options.rehearse):
        keep(line, case)


@torch.no_grad()
def check(case: Case, model: Any, clips: Sequence[Clip]) -> dict[str, float]:
    """Before anything is timed: our padded features and loss are transformers' own, in float32, on this device."""
    model.eval()
    n_B = torch.tensor([len(c.x_T) for c in clips])
    mel_BMF, _ = log_mel(side_by_side(clips, n_B).to(case.device), n_B, model.config.num_mel_bins, padded=True)
    extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    features = extractor([c.x_T for c in clips], sampling_rate=RATE_HZ, return_tensors="pt").input_features
    ids_BL = torch.tensor([c.ids for c in clips], device=case.device)
    theirs = model(features.to(case.device), decoder_input_ids=ids_BL[:, :-1], labels=ids_BL[:, 1:]).loss
    ours = own_loss(case, model, clips, padded=True) / (len(clips) * TARGETS)
    errors = {"mel_error": float((mel_BMF.cpu() - features).abs().max()), "loss_error": abs(float(ours / theirs) - 1.0)}
    say(f"checked against transformers: {errors}")
    if errors["mel_error"] > MEL_ATOL or errors["loss_error"] > LOSS_RTOL:
        raise SystemExit(f"not the same computation: {errors}")
    return errors


@torch.no_grad()
def check_packed(case: Case, model: Any, clips: Sequence[Clip]) -> dict[str, float]:
    """On a GPU in bf16: packed clips come as near to float32 as padded ones under a mask do."""
    if not (case.gpu and case.bf16):
        return {}
    n_B = torch.tensor([len(c.x_T) for c in clips])
    mel_BMF, _ = log_mel(sent(side_by_side(clips, n_B), case.device), n_B, model.config.num_mel_bins)
    frames_B = (n_B + 159) // 160
    exact, _ = encoder_forward(model.model.encoder, mel_BMF, frames_B)
    errors = {}
    for name, m_B in (("masked_error", frames_B.to(case.device)), ("packed_error", frames_B)):  # counted there: masked
        with torch.autocast(case.device.type, torch.bfloat16):
            found, _ = encoder_forward(model.model.encoder, mel_BMF, m_B)
        errors[name] = float((found - exact).norm() / exact.norm())
    say(f"bf16 against float32: {errors}")
    if not errors["packed_error"] < 1.5 * errors["masked_error"] + 1e-3:
        raise SystemExit(f"packed clips are not the same computation: {errors}")
    return errors


def side_by_side(clips: Sequence[Clip], n_B: Any) -> Any:
    x_BT = torch.zeros(len(clips), int(n_B.max()))
    for row, clip in zip(x_BT, clips, strict=True):
        row[: len(clip.x_T)] = torch.from_numpy(clip.x_T)
    return x_BT


def on_a_gpu(case: Case, model: Any, clips: Sequence[Clip], best: float, figures: Figures) -> dict[str, float]:
    """Padded clips, larger steps, utilisation against the rate of a matrix product, recomputed, not compiled, the peer
    in larger steps and without recomputation -> padded clips a second by the seconds of a micro-batch."""
    best_padded, padded, by_budget = fastest(case, model, clips, padded=True)
    figures["padded_clips_per_s"] = padded.wall
    utilisation(case, model, clips, figures, "")
    for batch in LARGER:
        larger = replace(case, batch=min(batch, len(clips) // 2))
        for name, long, budget_s in (("", False, best), ("padded_", True, best_padded)):
            if found := ours(larger, model, clips, LARGEST_S, long) or ours(larger, model, clips, budget_s, long):
                figures[f"{name}clips_per_s_{batch}"] = found.wall
        utilisation(case, model, clips, figures, f"_{batch}")
    if again := ours(replace(case, again=True), model, clips, best):
        figures["recomputed_clips_per_s"] = again.wall
    plain = replace(case, compiled=False)
    for name, long, budget_s in (("", False, best), ("padded_", True, best_padded)):
        if case.compiled and (found := ours(plain, model, clips, budget_s, long)):
            figures[f"plain_{name}clips_per_s"] = found.wall
    peer = theirs(replace(case, batch=min(LARGER[-1], len(clips) // 2)), model, clips, again=True)
    figures[f"hf_clips_per_s_{LARGER[-1]}"] = peer.wall
    if own := figures.get(f"clips_per_s_{LARGER[-1]}"):
        figures[f"ratio_hf_{LARGER[-1]}"] = own / peer.wall
    try:
        figures["hf_stored_clips_per_s"] = theirs(case, model, clips, again=False).wall
        figures["ratio_hf_stored"] = figures["clips_per_s"] / figures["hf_stored_clips_per_s"]
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        say("Seq2SeqTrainer without recomputation: does not fit")
    return by_budget


def utilisation(case: Case, model: Any, clips: Sequence[Clip], figures: Figures, step: str) -> None:
    """mfu and padded_mfu of the clips a second that `step` names: a model's operations by a matrix product's rate."""
    if "matrix_tflops" not in figures:
        figures["matrix_tflops"] = matrix_rate(case.device, torch.bfloat16) / 1e12
    shape, tokens_N = Shape.of(model.config), np.full(len(clips), TARGETS)
    for name, samples_N in (("", np.array([len(c.x_T) for c in clips])), ("padded_", tokens_N * 0 + 30 * RATE_HZ)):
        if per_s := figures.get(f"{name}clips_per_s{step}"):
            flops = training_flops(shape, samples_N, tokens_N) / len(clips)
            figures[f"{name}mfu{step}"] = per_s * flops / figures["matrix_tflops"] / 1e12


def make_clips(count: int, vocabulary: int) -> list[Clip]:
    """Gamma-distributed lengths about each domain's mean, at most 30 s."""
    rng = np.random.default_rng(0)
    clips = []
    for i in range(count):
        length_s = float(np.clip(rng.gamma(4.0, MEAN_S[i % len(MEAN_S)] / 4.0), 0.5, 30.0))
        x_T = rng.standard_normal(int(length_s * RATE_HZ), dtype=np.float32) * 0.1
        clips.append(Clip(x_T, rng.integers(0, vocabulary, TARGETS + 1).tolist()))
    return clips


def new_model(case: Case) -> Any:
    shape, d = case.shape, case.shape["d_model"]
    config = WhisperConfig(
        vocab_size=shape["vocabulary"], num_mel_bins=shape["mels"], d_model=d,
        encoder_layers=shape["layers"], decoder_layers=shape["layers"],
        encoder_attention_heads=shape["heads"], decoder_attention_heads=shape["heads"],
        encoder_ffn_dim=4 * d, decoder_ffn_dim=4 * d,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    with case.device:  # random weights are made where they stay: on a CPU 1.5 billion take a while
        return WhisperForConditionalGeneration(config)


def fastest(
    case: Case, model: Any, clips: Sequence[Clip], padded: bool = False
) -> tuple[float, Pace, dict[str, float]]:
    """The best of the case's padded seconds a micro-batch, its pace, and the clips a second of all that fit."""
    found = {s: pace for s in case.budgets_s if (pace := ours(case, model, clips, s, padded))}
    if not found:
        raise SystemExit(f"not even {min(case.budgets_s):g} s of audio fit this device")
    best = max(found, key=lambda s: found[s].wall)
    return best, found[best], {f"{s:g}": float(f"{pace.wall:.6g}") for s, pace in found.items()}


def ours(
    case: Case, model: Any, clips: Sequence[Clip], budget_s: float, padded: bool = False, note: str = ""
) -> Pace | None:
    """Clips a second, after a step that is not counted; None where a micro-batch of so many seconds does not fit."""
    model.train()
    pace = None
    how = f"{', compiled' if case.compiled and not note else ''}{', recomputed' if case.again else ''}"
    note = f"{note}{how}, {case.batch} a step, {budget_s:g} s a micro-batch"
    try:
        pace = own_steps(case, model, clips, padded, budget_s)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    release(case, model)  # outside the handler, whose traceback holds the tensors
    told = f"{pace.wall:.2f} clips/s" if pace else "does not fit"
    say(f"aut, {'padded' if padded else 'native'}{note}: {told}")
    return pace


def steps_of(case: Case, model: Any, clips: Sequence[Clip], budget_s: float) -> Pace:
    """As `ours`, of a size that fitted before."""
    pace = ours(case, model, clips, budget_s)
    if pace is None:
        raise SystemExit(f"{budget_s:g} s of audio do not fit any more: does something else use this device?")
    return pace


def peak_gb(case: Case) -> float:
    """The most that the last `own_steps` held."""
    return torch.cuda.max_memory_allocated() / 1e9 if case.gpu else 0.0


def own_steps(case: Case, model: Any, clips: Sequence[Clip], padded: bool, budget_s: float) -> Pace:
    if case.gpu:
        torch.cuda.reset_peak_memory_stats()  # what the check, the peer or a size that did not fit took is not ours
    adam = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    steps = [clips[i : i + case.batch] for i in range(0, len(clips), case.batch)]
    own_step(case, model, adam, max(steps, key=lambda step: max(len(c.x_T) for c in step)), padded, budget_s)
    span = Span(case)
    for step in steps:
        own_step(case, model, adam, step, padded, budget_s)
    return span.pace(len(clips))


def own_step(case: Case, model: Any, adam: Any, step: Sequence[Clip], padded: bool, budget_s: float) -> None:
    lengths_s = [30.0 if padded else len(c.x_T) / RATE_HZ for c in step]
    for rows in divide(lengths_s, Budget(budget_s, packed=case.gpu and case.bf16 and not padded), 1):
        with torch.autocast(case.device.type, torch.bfloat16, enabled=case.bf16):
            loss = own_loss(case, model, [step[i] for i in rows], padded)
        (loss / (len(step) * TARGETS)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adam.step()
    adam.zero_grad(set_to_none=True)


def compile_first(case: Case, model: Any, clips: Sequence[Clip], figures: Figures) -> Case:
    """Blocks are compiled (params: training.compile) in steps that are not counted, of clips of any length, one clip
    alone, and padded ones -> the case, not compiled where that fails."""
    start = time.perf_counter()
    try:
        for some, padded in ((clips[: case.batch], False), (clips[:1], False), (clips[: case.batch], True)):
            ours(case, model, some, case.budgets_s[-1], padded and case.full, ", compiling")
        figures["compiling_s"] = time.perf_counter() - start
    except Exception as error:  # a compiler's errors are of any kind; the other figures stand without it
        say(f"torch.compile: {type(error).__name__}: {str(error).strip().splitlines()[:1]}")
        case = replace(case, compiled=False)
    release(case, model)
    return case


def release(case: Case, model: Any) -> None:
    model.zero_grad(set_to_none=True)
    release_memory(case.device)


def own_loss(case: Case, model: Any, group: Sequence[Clip], padded: bool) -> Any:
    n_B = torch.tensor([len(c.x_T) for c in group])
    x_BT, ids_BL = sent(side_by_side(group, n_B), case.device), sent(torch.tensor([c.ids for c in group]), case.device)
    mel_BMF, _ = log_mel(x_BT, n_B, model.config.num_mel_bins, padded)
    frames_B = None if padded else (n_B + 159) // 160
    how: dict[str, Any] = {"compiled": case.compiled, "checkpointing": case.again}
    h_BFD, f_B = encoder_forward(model.model.encoder, mel_BMF, frames_B, **how)
    y_BLD = decoder_forward(model.model.decoder, ids_BL[:, :-1], h_BFD, None if padded else f_B, **how)
    return cross_entropy(model.proj_out(y_BLD).float().flatten(0, 1), ids_BL[:, 1:].flatten(), reduction="sum")


class StepEnds(TrainerCallback):  # type: ignore[misc]
    """From the end of the first optimiser step, which is not counted, to that of the last."""

    def __init__(self, case: Case) -> None:
        self._case, self._span = case, Span(case)
        self.pace = Pace(0.0, 0.0)

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step == 1:
            self._span = Span(self._case)
        else:
            self.pace = self._span.pace(self._case.batch * (state.global_step - 1))


def theirs(case: Case, model: Any, clips: Sequence[Clip], again: bool) -> Pace:
    """Clips a second of Seq2SeqTrainer on the same model: 30-s features, 8 clips a micro-batch as in the paper.

    `again`: activations are recomputed, which the paper does.
    """
    extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        group = [clips[row["clip"] % len(clips)] for row in rows]
        features = extractor([c.x_T for c in group], sampling_rate=RATE_HZ, return_tensors="pt").input_features
        ids_BL = torch.tensor([c.ids for c in group])
        return {"input_features": features, "decoder_input_ids": ids_BL[:, :-1], "labels": ids_BL[:, 1:]}

    batch, micro = case.batch, case.micro
    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            output_dir=folder, per_device_train_batch_size=micro, gradient_accumulation_steps=batch // micro,
            max_steps=math.ceil(len(clips) / batch) + 1, learning_rate=1e-5, bf16=case.bf16, report_to=[],
            save_strategy="no", remove_unused_columns=False, disable_tqdm=True, logging_strategy="no",
            use_cpu=not case.gpu, optim="adamw_torch_fused",
            dataloader_num_workers=case.workers, gradient_checkpointing=again,
            gradient_checkpointing_kwargs={"use_reentrant": False} if again else None,
        )  # fmt: skip
        # More than are taken: at an epoch's end its workers would start again, inside the time.
        rows = [{"clip": i} for i in range(len(clips) + 2 * batch)]
        trainer = Seq2SeqTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
        ends = StepEnds(case)
        trainer.add_callback(ends)
        trainer.train()
    if again:
        model.gradient_checkpointing_disable()
    del trainer
    release(case, model)
    say(f"Seq2SeqTrainer{', activations recomputed' if again else ''}: {ends.pace.wall:.2f} clips/s")
    return ends.pace


def now(case: Case) -> float:
    finish(case.device)
    return time.perf_counter()


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def keep(result: dict[str, Any], case: Case) -> None:
    import transformers

    today = date.today().isoformat()
    hardware = torch.cuda.get_device_name(0) if case.gpu else platform.processor() or platform.machine()
    record = result | {
        "date": today,
        "command": "python -m benchmarks.train",
        "hardware": {"device": hardware, "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "peer": f"transformers {transformers.__version__} Seq2SeqTrainer",
        "load_average_1min": round(os.getloadavg()[0], 1),
        "batch": case.batch,
        "steps": case.steps,
    }
    path = Path(__file__).parent / "results" / f"{today}-train-{'gpu' if case.gpu else 'cpu'}.json"
    try:
        path.write_text(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        say(f"the result is not kept ({error}): its last line says all")


if __name__ == "__main__":
    main()
