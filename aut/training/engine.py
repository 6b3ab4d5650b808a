"""Engine: forward, backward and update of one optimiser step, in one process or many.

In    a Captioner, the schedule, the training params; WORLD_SIZE, RANK (torchrun) say whether there are others
Out   gradients of the mean loss over *all* target tokens of the step, whatever the micro-batches and processes
Why   one process needs plain torch only; several are wrapped by accelerate, in the same code path. accelerate is
      not imported for one process: it costs seconds, and a demo starts many stages. ZeRO is in sharded.py.
      A micro-batch that does not fit one process is halved in all, where their passes meet nobody; elsewhere the others
      wait for this one, and all are started again (recall.py). Price: after each pass they ask one another.
Run   `engine = open_engine(model, schedule, training); engine.start(None)`

AUT_THREADS   torch threads of a CPU process (default OMP_NUM_THREADS, then one a core)
"""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from aut.config import Schedule, Training
from aut.errors import ConfigError
from aut.training.data import Micro
from aut.training.memory import out_of_memory, release
from aut.training.model import Captioner, Sums
from aut.training.placement import count
from aut.training.recall import Recall
from aut.training.sizes import Sizes, budget
from aut.units import DOMAINS

WAIT = timedelta(hours=2)

T = TypeVar("T")
WEIGHTS, OPTIMIZER = "weights.pt", "optimizer.pt"  # files of a snapshot
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, beside its count of steps


def set_threads() -> int:
    """Torch threads from AUT_THREADS, where set; how many there are."""
    if threads := count("AUT_THREADS"):
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and norms do not (as in Radford et al. 2022 and transformers' Trainer)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def patience() -> Any:
    """For accelerate: how long processes wait for one another.

    NCCL's own ten minutes would end a start in which the first one fetches a checkpoint of 19 GB or tries sizes, and
    a step after which it writes one to a slow place. A process that is gone is found by its launcher, at once.
    """
    from accelerate import InitProcessGroupKwargs

    return InitProcessGroupKwargs(timeout=WAIT)


def read_snapshot(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights by name; AdamW's step, and its moments by name. Bytes are read from disk as they are used."""
    how: dict[str, Any] = {"map_location": "cpu", "weights_only": True, "mmap": True}
    return torch.load(folder / WEIGHTS, **how), torch.load(folder / OPTIMIZER, **how)


def _kept(value: Tensor, apart: bool) -> Tensor:
    return value.to("cpu", copy=True) if apart else value


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
        self._full: list[tuple[int, float]] = []  # clips and seconds that did not fit, the same in every process
        self._said: set[int] = set()

    def forward(self, micro: Micro) -> Sums:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            sums: Sums = self.model(micro, self.device)
        return sums

    def accumulate(self, micros: list[Micro], tokens: float, seed: int) -> Tensor:
        """Adds the gradient of (sum of losses / tokens) over the micro-batches -> [loss_G, tokens_G] of this process.

        One that does not fit the memory of every process is halved in all of them: they compute as many as one another.
        """
        work = [part for micro in micros for part in self._known(micro)]
        at, sums = 0, self._nothing()
        torch.manual_seed(seed)
        while at < len(work):
            found, clean = self._tried(work[at], tokens, last=at == len(work) - 1)
            if found is not None:
                at, sums = at + 1, sums + found
                continue
            self._full.append((work[at].clips, work[at].sized_s))
            work[at : at + 1] = self._halved(work[at], speaks=self.rank == 0)
            if not clean:  # the gradients hold a part of it: begun anew, with the same random numbers
                self.clear()
                at, sums = 0, self._nothing()
                torch.manual_seed(seed)
        return sums

    def _tried(self, micro: Micro, tokens: float, last: bool) -> tuple[Tensor | None, bool]:
        """Forward and backward -> counts_2G, None where it did not fit; whether the gradients hold no part of it."""
        sums = self._fitting(micro, lambda: self.forward(micro), alone=not self.apart)
        if sums is None:
            return None, True
        return self._fitting(micro, lambda: self._add(sums, tokens, last), alone=self._backs_alone(last)), False

    def _add(self, sums: Sums, tokens: float, last: bool) -> Tensor:
        self._backward(sums.loss * (self.world / tokens), last)
        return sums.counts_2G

    def _fitting(self, micro: Micro, work: Callable[[], T], alone: bool) -> T | None:
        """What `work` returns; None where it did not fit some process. `alone`: the processes do not meet in it."""
        found: T | None = None
        try:
            found = work()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        if alone:
            return None if self._anywhere(found is None) else found
        if found is None:
            self._recalled(micro)
        return found

    @torch.no_grad()
    def look(self, micro: Micro) -> Tensor:
        """[loss_G, tokens_G] of this process, for evaluation; split where it does not fit."""
        left, sums = [micro], self._nothing()
        while left:
            found = None
            try:
                found = self.forward(left[0])
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            if found is not None:
                left, sums = left[1:], sums + found.counts_2G
            elif self.apart:
                self._recalled(left[0])
            else:
                left[:1] = self._halved(left[0], speaks=True)  # the others need not, and go on
        return sums

    def _nothing(self) -> Tensor:
        return torch.zeros(2, len(DOMAINS), dtype=torch.float64, device=self.device)

    def _known(self, micro: Micro) -> list[Micro]:
        """The micro-batch in parts, of which none is as large as one that did not fit: the same in every process."""
        if any(micro.clips >= clips and micro.sized_s >= seconds for clips, seconds in self._full):
            return [part for half in micro.halves() for part in self._known(half)]
        return [micro]

    def _halved(self, micro: Micro, speaks: bool) -> list[Micro]:
        """The micro-batch in two, and smaller ones from now on. ConfigError where it is one clip."""
        said = self._does_not_fit(micro)
        if speaks:
            self.sizes.save()
            if micro.clips not in self._said:
                print(f"{said}: it is split", file=sys.stderr)  # noqa: T201
        self._said.add(micro.clips)
        return micro.halves()

    def _does_not_fit(self, micro: Micro) -> str:
        """What is learnt of it, and makes room."""
        said = f"a micro-batch of {micro.clips} clips of up to {micro.seconds:.1f} s does not fit {self.device}"
        release(self.device)
        if micro.clips == 1:
            raise ConfigError(said, "set training.activation_checkpointing=true, or a lower max_s")
        self.sizes.shrink(micro.clips, micro.sized_s)
        return said

    def _recalled(self, micro: Micro) -> NoReturn:
        """Other processes wait for this one, where no word of it reaches them."""
        raise NotImplementedError  # one process waits for nobody

    def _backs_alone(self, last: bool) -> bool:
        """Whether a backward pass meets no other process in it, and its gradients can be taken back."""
        return True

    def _anywhere(self, full: bool) -> bool:
        """Whether any process has met its memory's end."""
        return full

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

    def snapshot(self, apart: bool) -> dict[str, Any]:
        """What a checkpoint holds of this engine, by file: whole tensors by name, whatever the engine. In process 0;
        every process calls it. `apart`: in host memory of their own, which later steps leave as they are."""
        weights = {name: _kept(p.detach(), apart) for name, p in self.captioner.whisper.named_parameters()}
        step, moments = 0.0, {key: dict[str, Tensor]() for key in MOMENTS}
        for name, p in self._trained().items():
            state = self.optimizer.state.get(p) or {key: torch.zeros_like(p) for key in MOMENTS}  # before any update
            step = float(state.get("step", 0.0))
            for key in MOMENTS:
                moments[key][name] = _kept(state[key], apart)
        return {WEIGHTS: weights, OPTIMIZER: {"step": step} | moments}

    @property
    def snapshot_b(self) -> int:
        """Bytes of a snapshot that must be copied to be apart."""
        trained = sum(p.nbytes for p in self._trained().values())
        return int(sum(p.nbytes for p in self.captioner.whisper.parameters()) + len(MOMENTS) * trained)

    def settle(self) -> None:
        """After the last step: process 0 holds the whole model, in the module it was given."""

    def start(self, folder: Path | None) -> None:
        """Before the first step: from the files of a snapshot, by any engine, where given."""
        if folder is None:
            return
        weights, moments = read_snapshot(folder)
        with torch.no_grad():
            for name, p in self.captioner.whisper.named_parameters():
                p.copy_(weights[name])
        for name, p in self._trained().items():
            state = {key: moments[key][name].to(p.device, copy=True) for key in MOMENTS}
            step = torch.tensor(moments["step"], dtype=torch.float32, device=p.device)  # fused AdamW wants it there
            self.optimizer.state[p] = {"step": step} | state

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.captioner.whisper.named_parameters() if p.requires_grad}

    def _backward(self, loss: Tensor, last: bool) -> None:
        torch.autograd.backward(loss)


class Parallel(Engine):
    """Several processes by accelerate: one a GPU, or several on a CPU (gloo)."""

    def __init__(self, model: Captioner, schedule: Schedule, training: Training) -> None:
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[patience()])
        super().__init__(model, schedule, training)
        self.device = self._accelerator.device
        self.rank, self.world = self._accelerator.process_index, self._accelerator.num_processes
        self.model, self.optimizer = self._accelerator.prepare(self.model, self.optimizer)
        self._recall = Recall()

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
        self._recall.close()
        if isinstance(self.model, nn.parallel.DistributedDataParallel):
            # Its reducer goes before the group: as the last that holds it, it would wait for the group's threads while
            # the interpreter is locked, and the one that ends a collective may want that lock (seen with gloo).
            self.model = self.captioner
            self._accelerator.free_memory()
        self._accelerator.end_training()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def snapshot(self, apart: bool) -> dict[str, Any]:
        return super().snapshot(apart) if self.rank == 0 else {}

    def forward(self, micro: Micro) -> Sums:
        with self._accelerator.no_sync(self.model):
            return super().forward(micro)

    def _backs_alone(self, last: bool) -> bool:
        return not last  # in the last one's backward pass, gradients are already being summed

    def _anywhere(self, full: bool) -> bool:
        return bool(self.total(torch.tensor(float(full))) > 0)

    def _recalled(self, micro: Micro) -> NoReturn:
        said = f"{self._does_not_fit(micro)}, and other processes wait for it"
        self.sizes.save()
        print(f"{said}: all start again from the last checkpoint, with half of it", file=sys.stderr)  # noqa: T201
        self._recall.all()

    def _backward(self, loss: Tensor, last: bool) -> None:
        """DDP is told here to sum gradients, not by a forward pass, which is for nothing if it does not fit another."""
        if last:
            reducer: Any = self.model.reducer
            reducer.prepare_for_backward([])
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
