"""Train: steps of the same Whisper on the same clips, ours at native length against transformers' Seq2SeqTrainer.

In    noise as long as the mixture's clips (speech 8 s, sound 10 s, music 8 s on average), random weights and targets
Out   ratio_hf (target 3), clips_per_s; on a GPU also padded_clips_per_s (above 60.4) and mfu
Why   what a step costs is decided by the padding; both sides get waveforms and compute their features, ours on
      the device inside the step, theirs with WhisperFeatureExtractor in the collator, as is usual.
      On a GPU: whisper-large-v3's shapes, bf16; mfu is against a matrix product's rate measured in the same run.
      Needs numpy, torch, transformers and accelerate only: aut.audio.mel and aut.encoders.whisper need no more.
Run   python -m benchmarks.train [--quick]        (a GPU is used where there is one: a few minutes on an H200)
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
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

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
    for _name in ("aut", "aut.audio", "aut.encoders"):
        _package = types.ModuleType(_name)
        _package.__path__ = [str(ROOT / _name.replace(".", "/"))]
        sys.modules[_name] = _package

from aut.audio.mel import log_mel  # noqa: E402
from aut.encoders.whisper import decoder_forward, encoder_forward  # noqa: E402

RATE_HZ, IGNORED, TARGETS = 16_000, -100, 24
MEAN_S = (8.0,) * 8 + (10.0,) + (8.0,)  # 80 % speech, 10 % sound, 10 % music
SMALL = {"d_model": 128, "layers": 4, "heads": 4, "mels": 80, "vocabulary": 2000}
LARGE = {"d_model": 1280, "layers": 32, "heads": 20, "mels": 128, "vocabulary": 51866}
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


@dataclass(frozen=True)
class Clip:
    x_T: Any
    ids: list[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, no result file")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    shape = LARGE if ON_GPU else SMALL
    batch, steps = (64, 4 if quick else 12) if ON_GPU else (8, 2 if quick else 8)
    clips = make_clips(batch * steps, shape["vocabulary"])
    seconds = float(np.mean([len(c.x_T) for c in clips])) / RATE_HZ
    say(f"{len(clips)} clips of {seconds:.1f} s on average, {batch} a step, on {DEVICE}")
    model = new_model(shape)
    native = ours(model, clips, batch, padded=False)
    figures = {"clips_per_s": native}
    if ON_GPU:
        padded, matrix = ours(model, clips, batch, padded=True), matrix_rate()
        rate = native * sum(flops(shape, len(c.x_T) / RATE_HZ) for c in clips) / len(clips)
        figures |= {"padded_clips_per_s": padded, "mfu": rate / matrix, "matrix_tflops": matrix / 1e12}
        figures["padded_mfu"] = padded * flops(shape, 30.0) / matrix
    peer = theirs(model, clips, batch)
    figures |= {"ratio_hf": native / peer, "hf_clips_per_s": peer, "mean_s": seconds}
    result = {"bench": "train", "figures": {k: float(f"{v:.6g}") for k, v in figures.items()}}
    if not quick:
        keep(result, batch, steps)
    print(json.dumps(result))


def make_clips(count: int, vocabulary: int) -> list[Clip]:
    """Gamma-distributed lengths about each domain's mean, at most 30 s."""
    rng = np.random.default_rng(0)
    clips = []
    for i in range(count):
        length_s = float(np.clip(rng.gamma(4.0, MEAN_S[i % len(MEAN_S)] / 4.0), 0.5, 30.0))
        x_T = rng.standard_normal(int(length_s * RATE_HZ), dtype=np.float32) * 0.1
        clips.append(Clip(x_T, rng.integers(0, vocabulary, TARGETS + 1).tolist()))
    return clips


def new_model(shape: dict[str, int]) -> Any:
    d = shape["d_model"]
    config = WhisperConfig(
        vocab_size=shape["vocabulary"], num_mel_bins=shape["mels"], d_model=d,
        encoder_layers=shape["layers"], decoder_layers=shape["layers"],
        encoder_attention_heads=shape["heads"], decoder_attention_heads=shape["heads"],
        encoder_ffn_dim=4 * d, decoder_ffn_dim=4 * d,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config).to(DEVICE)


def ours(model: Any, clips: Sequence[Clip], batch: int, padded: bool) -> float:
    """Clips a second, after one step that is not counted: micro-batches of like length, as aut/training does it."""
    model.train()
    adam = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    steps = [clips[i : i + batch] for i in range(0, len(clips), batch)]
    own_step(model, adam, steps[0], padded)
    start = now()
    for step in steps:
        own_step(model, adam, step, padded)
    rate = len(clips) / (now() - start)
    say(f"aut, {'padded' if padded else 'native'}: {rate:.2f} clips/s")
    return rate


def own_step(model: Any, adam: Any, step: Sequence[Clip], padded: bool) -> None:
    budget_s = 960.0 if ON_GPU else 20.0  # as aut.training.data.budget_s
    waiting = sorted(step, key=lambda c: -len(c.x_T))
    while waiting:
        longest_s = 30.0 if padded else len(waiting[0].x_T) / RATE_HZ
        size = max(1, int(budget_s // longest_s))
        group, waiting = waiting[:size], waiting[size:]
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=ON_GPU):
            loss = own_loss(model, group, padded)
        (loss / (len(step) * TARGETS)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adam.step()
    adam.zero_grad(set_to_none=True)


def own_loss(model: Any, group: Sequence[Clip], padded: bool) -> Any:
    n_B = torch.tensor([len(c.x_T) for c in group])
    x_BT = torch.zeros(len(group), int(n_B.max()))
    for row, clip in zip(x_BT, group, strict=True):
        row[: len(clip.x_T)] = torch.from_numpy(clip.x_T)
    ids_BL = torch.tensor([c.ids for c in group], device=DEVICE)
    mel_BMF, _ = log_mel(x_BT.to(DEVICE), n_B, model.config.num_mel_bins, padded)
    h_BFD, f_B = encoder_forward(model.model.encoder, mel_BMF, None if padded else (n_B + 159) // 160)
    y_BLD = decoder_forward(model.model.decoder, ids_BL[:, :-1], h_BFD, None if padded else f_B)
    return cross_entropy(model.proj_out(y_BLD).float().flatten(0, 1), ids_BL[:, 1:].flatten(), reduction="sum")


class StepEnds(TrainerCallback):  # type: ignore[misc]
    """When each optimiser step ended."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.at.append(now())


def theirs(model: Any, clips: Sequence[Clip], batch: int) -> float:
    """Clips a second of Seq2SeqTrainer on the same model: 30-s features, 8 clips a micro-batch as in the paper."""
    extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        group = [clips[row["clip"]] for row in rows]
        features = extractor([c.x_T for c in group], sampling_rate=RATE_HZ, return_tensors="pt").input_features
        ids_BL = torch.tensor([c.ids for c in group])
        return {"input_features": features, "decoder_input_ids": ids_BL[:, :-1], "labels": ids_BL[:, 1:]}

    micro = min(batch, 8)
    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            output_dir=folder, per_device_train_batch_size=micro, gradient_accumulation_steps=batch // micro,
            max_steps=math.ceil(len(clips) / batch) + 1, learning_rate=1e-5, bf16=ON_GPU, report_to=[],
            save_strategy="no", remove_unused_columns=False, disable_tqdm=True, logging_strategy="no",
            use_cpu=not ON_GPU, optim="adamw_torch_fused",
            dataloader_num_workers=min(8, os.cpu_count() or 1) if ON_GPU else 0,
        )  # fmt: skip
        rows = [{"clip": i} for i in range(len(clips))]
        trainer = Seq2SeqTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
        ends = StepEnds()
        trainer.add_callback(ends)
        if ON_GPU:
            model.gradient_checkpointing_enable()
        trainer.train()
        rate = batch * (len(ends.at) - 1) / (ends.at[-1] - ends.at[0])  # the first step is not counted
    say(f"Seq2SeqTrainer: {rate:.2f} clips/s")
    return rate


def flops(shape: dict[str, int], length_s: float) -> float:
    """Of one clip forward and backward (three times forward): two a multiplication-addition, no recomputation."""
    d, layers, frames, tokens = shape["d_model"], shape["layers"], math.ceil(length_s * 50), TARGETS
    stem = 2 * frames * 3 * (2 * shape["mels"] * d + d * d)
    encoder = layers * (24 * frames * d * d + 4 * frames * frames * d)
    own = 28 * tokens * d * d + 4 * tokens * frames * d + 2 * tokens * tokens * d
    decoder = layers * (own + 4 * frames * d * d)
    return 3.0 * (stem + encoder + decoder + 2 * tokens * d * shape["vocabulary"])


def matrix_rate() -> float:
    """Floating-point operations a second of a bf16 product of 8192 x 8192 matrices."""
    size, rounds = 8192, 50
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    start = now()
    for _ in range(rounds):
        a @ b
    return 2.0 * size**3 * rounds / (now() - start)


def now() -> float:
    if ON_GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def keep(result: dict[str, Any], batch: int, steps: int) -> None:
    import transformers

    today = date.today().isoformat()
    hardware = torch.cuda.get_device_name(0) if ON_GPU else platform.processor() or platform.machine()
    record = result | {
        "date": today,
        "command": "python -m benchmarks.train",
        "hardware": {"device": hardware, "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "peer": f"transformers {transformers.__version__} Seq2SeqTrainer",
        "batch": batch,
        "steps": steps,
    }
    path = Path(__file__).parent / "results" / f"{today}-train-{'gpu' if ON_GPU else 'cpu'}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
