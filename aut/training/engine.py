"""Engine: forward, backward and update of one optimiser step, in one process or many.

In    a Captioner, the schedule, the training params; WORLD_SIZE, RANK (torchrun) say whether there are others
Out   gradients of the mean loss over *all* target tokens of the step, whatever the micro-batches and processes
Why   one process needs plain torch only; several are wrapped by accelerate, in the same code path. accelerate is
      not imported for one process: it costs seconds, and a demo starts many stages. ZeRO is in sharded.py.
Run   `engine = open_engine(model, schedule, training); engine.start(None)`

AUT_THREADS   torch threads of a CPU process (default OMP_NUM_THREADS, then one a core)
"""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aut.config import Schedule, Training
from aut.errors import ConfigError
from aut.training.data import Micro
from aut.training.model import Captioner, Sums


def set_threads() -> int:
    """Torch threads from AUT_THREADS, where set; how many there are."""
    if threads := os.environ.get("AUT_THREADS"):
        torch.set_num_threads(max(1, int(threads)))
    return torch.get_num_threads()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and norms do not (as in Radford et al. 2022 and transformers' Trainer)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


class Engine:
    """One process, plain torch."""

    rank, world = 0, 1

    def __init__(self, model: Captioner, schedule: Schedule, training: Training) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.captioner = model.to(self.device)
        self.model: nn.Module = self.captioner
        self.optimizer: Any = torch.optim.AdamW(
            parameter_groups(model, schedule.weight_decay), lr=schedule.lr, betas=schedule.betas, fused=True
        )
        self.clip_norm = schedule.clip_norm or float("inf")
        self.bf16 = training.precision == "bf16"

    def forward(self, micro: Micro) -> Sums:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            sums: Sums = self.model(micro, self.device)
        return sums

    def accumulate(self, micros: list[Micro], tokens: float) -> tuple[Tensor, Tensor]:
        """Adds the gradient of (sum of losses / tokens) over the micro-batches -> loss_G, tokens_G of this process."""
        loss_G = tokens_G = torch.zeros([])
        for i, micro in enumerate(micros):
            last = i == len(micros) - 1
            with self._syncing(last):
                sums = self.forward(micro)
                self._backward(sums.loss * (self.world / tokens), last)
            loss_G, tokens_G = loss_G.to(self.device) + sums.loss_G, tokens_G.to(self.device) + sums.tokens_G
        return loss_G, tokens_G

    def update(self, lr: float, loss: float) -> float:
        """Clips and takes the step, unless loss or gradients are not finite; the norm before clipping."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        norm = float(nn.utils.clip_grad_norm_(trained, self.clip_norm))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if math.isfinite(norm) and math.isfinite(loss):
            self.optimizer.step()
        return norm

    def clear(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def total(self, values: Tensor) -> Tensor:
        """Sum over processes."""
        return values

    def agree(self, value: str) -> str:
        """Process 0's value, in every process."""
        return value

    def wait(self) -> None:
        """Until every process is here."""

    def close(self) -> None:
        """Leaves the process group, if there is one."""

    def save(self, folder: Path) -> None:
        """Weights and optimiser below `folder`; every process calls it."""
        torch.save(self.captioner.whisper.state_dict(), folder / "weights.pt")
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")

    def settle(self) -> None:
        """After the last step: process 0 holds the whole model, in the module it was given."""

    def start(self, folder: Path | None) -> None:
        """Before the first step: from the files that `save` wrote, where given."""
        if folder is None:
            return
        weights = torch.load(folder / "weights.pt", map_location=self.device, weights_only=True)
        self.captioner.whisper.load_state_dict(weights)
        self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True))

    def _syncing(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    def _backward(self, loss: Tensor, last: bool) -> None:
        torch.autograd.backward(loss)


class Parallel(Engine):
    """Several processes by accelerate: one a GPU, or several on a CPU (gloo)."""

    def __init__(self, model: Captioner, schedule: Schedule, training: Training) -> None:
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=not torch.cuda.is_available())
        super().__init__(model, schedule, training)
        self.device = self._accelerator.device
        self.rank, self.world = self._accelerator.process_index, self._accelerator.num_processes
        self.model, self.optimizer = self._accelerator.prepare(self.model, self.optimizer)

    def total(self, values: Tensor) -> Tensor:
        summed: Tensor = self._accelerator.reduce(values.to(self.device), "sum")
        return summed

    def agree(self, value: str) -> str:
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        self._accelerator.end_training()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def save(self, folder: Path) -> None:
        if self.rank == 0:
            super().save(folder)

    def _syncing(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self._accelerator.no_sync(self.model)

    def _backward(self, loss: Tensor, last: bool) -> None:
        self._accelerator.backward(loss)


def open_engine(model: Captioner, schedule: Schedule, training: Training) -> Engine:
    """The engine for the processes that were started."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > schedule.batch:
        raise ConfigError(f"{world} processes share steps of {schedule.batch} clips", "start fewer, or raise the batch")
    if training.deepspeed_stage:
        from aut.training.sharded import Sharded

        return Sharded(model, schedule, training)
    return Parallel(model, schedule, training) if world > 1 else Engine(model, schedule, training)
