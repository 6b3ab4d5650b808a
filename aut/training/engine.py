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
import resource
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aut.config import Schedule, Training
from aut.errors import AutError, ConfigError
from aut.training.data import Micro
from aut.training.model import Captioner, Sums
from aut.training.sizes import Sizes, budget, out_of_memory, release
from aut.units import DOMAINS


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
    apart = False  # whether weights are whole only while their module runs, on all processes together

    def __init__(self, model: Captioner, schedule: Schedule, training: Training) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.captioner = model.to(self.device)
        self.model: nn.Module = self.captioner
        self.optimizer: Any = torch.optim.AdamW(
            parameter_groups(model, schedule.weight_decay), lr=schedule.lr, betas=schedule.betas, fused=True
        )
        self.clip_norm = schedule.clip_norm or float("inf")
        self._configure(training)

    def _configure(self, training: Training) -> None:
        self.bf16, self.padded = training.precision == "bf16", training.length == "padded"
        self.sizes: Sizes = budget(training, self.device.type)  # told of micro-batches that do not fit
        self._at = 0  # the micro-batch under way
        self._said: set[int] = set()

    def forward(self, micro: Micro) -> Sums:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            sums: Sums = self.model(micro, self.device)
        return sums

    def accumulate(self, micros: list[Micro], tokens: float, seed: int) -> tuple[Tensor, Tensor]:
        """Adds the gradient of (sum of losses / tokens) over the micro-batches -> loss_G, tokens_G of this process.

        One that does not fit the memory is halved and the step begun anew, with the same random numbers.
        """
        while True:
            torch.manual_seed(seed)
            try:
                return self._accumulated(micros, tokens)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            waits = not self._may_split(last=self._at == len(micros) - 1)
            micros = self._halved(micros, self._at, waits)  # outside the handler, whose traceback holds the tensors

    def _accumulated(self, micros: list[Micro], tokens: float) -> tuple[Tensor, Tensor]:
        loss_G = tokens_G = torch.zeros([])
        for self._at, micro in enumerate(micros):
            last = self._at == len(micros) - 1
            with self._syncing(last):
                sums = self.forward(micro)
                self._backward(sums.loss * (self.world / tokens), last)
            loss_G, tokens_G = loss_G.to(self.device) + sums.loss_G, tokens_G.to(self.device) + sums.tokens_G
        return loss_G, tokens_G

    @torch.no_grad()
    def look(self, micro: Micro) -> Tensor:
        """[loss_G, tokens_G] of this process, for evaluation; split where it does not fit."""
        left, sums = [micro], torch.zeros(2, len(DOMAINS), dtype=torch.float64, device=self.device)
        while left:
            try:
                found = self.forward(left[0])
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            else:
                sums, left = sums + torch.stack([found.loss_G, found.tokens_G]), left[1:]
                continue
            left = self._halved(left, 0, waits=self.apart)
        return sums

    def _halved(self, micros: list[Micro], at: int, waits: bool) -> list[Micro]:
        """The micro-batches with number `at` in two, and smaller ones from now on.

        ConfigError where it is one clip, AutError where other processes wait for just these (`waits`).
        """
        micro = micros[at]
        clips, seconds = len(micro.n_B), micro.seconds
        self.sizes.shrink(clips, micro.sized_s)
        self.clear()
        release(self.device)
        said = f"a micro-batch of {clips} clips of up to {seconds:.1f} s does not fit {self.device}"
        if clips == 1:
            raise ConfigError(said, "set training.activation_checkpointing=true, or a lower max_s")
        if waits:
            said += ", and other processes wait for it"
            if not self.sizes.kept:
                raise ConfigError(said, f"lower AUT_MICRO_S below {clips * micro.sized_s:.1f}")
            raise AutError(said, "start again (a flow does): it is halved then")
        if clips not in self._said:
            print(f"{said}: it is split", file=sys.stderr)  # noqa: T201
        self._said.add(clips)
        return [*micros[:at], *micro.halves(), *micros[at + 1 :]]

    def _may_split(self, last: bool) -> bool:
        """Whether another number of micro-batches disturbs nobody."""
        return True

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

    def gather(self, values: list[str]) -> list[str]:
        """Those of all processes, in every process."""
        return values

    def memory_gb(self) -> float:
        """The most that this process has held so far: of the GPU's memory, or of the host's where there is none."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB

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
        weights = torch.load(folder / "weights.pt", map_location="cpu", weights_only=True)
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

    def gather(self, values: list[str]) -> list[str]:
        lists: list[list[str]] = [[] for _ in range(self.world)]
        torch.distributed.all_gather_object(lists, values)
        return [value for share in lists for value in share]

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

    def _may_split(self, last: bool) -> bool:
        return not last  # in the last one's backward pass, gradients are already being summed

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
