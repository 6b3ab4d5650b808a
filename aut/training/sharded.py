"""Sharded: DeepSpeed ZeRO-1/2/3 through accelerate, as one more engine.

In    a Captioner, the schedule, the training params with deepspeed_stage > 0; processes started by torchrun
Out   the same steps as the plain engine; checkpoints hold whole tensors by name, as one process would write them
Why   whole tensors load on any number of processes, which DeepSpeed's own sharded files do not. Weights stay in
      float32 and bf16 is autocast, as in the plain engine, so that nothing is lost between shard and checkpoint, nor in
      the sum of gradients over micro-batches and processes, which DeepSpeed by itself takes in bf16.
      Price: process 0 alone gathers and writes; for 1.5 B parameters 19 GB, twice in `checkpoint_every` steps.
      Processes send gradients (under ZeRO-3 weights too) in four bytes, not two.
Run   `torchrun --nproc-per-node=2 ...`, or `aut finetune`, which starts its processes itself
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aut.config import Schedule, Training
from aut.errors import ConfigError
from aut.training.data import Micro
from aut.training.engine import MOMENTS, OPTIMIZER, WEIGHTS, Parallel, parameter_groups, patience, read_snapshot
from aut.training.extensions import hold_extensions
from aut.training.model import Captioner, Sums
from aut.training.recall import Recall
from aut.training.trial import BUCKET


class Sharded(Parallel):
    """ZeRO-1 shards the optimiser, ZeRO-2 the gradients too, ZeRO-3 the weights as well."""

    def __init__(self, model: Captioner, schedule: Schedule, training: Training) -> None:
        _check()
        if not torch.cuda.is_available():
            os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        hold_extensions()
        from accelerate import Accelerator
        from accelerate.utils import DeepSpeedPlugin

        plugin = DeepSpeedPlugin(hf_ds_config=_config(schedule, training), zero3_init_flag=False)
        self._accelerator = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[patience()])
        self.device = self._accelerator.device
        # accelerate counts one process where DeepSpeed started several on a CPU: the process group knows
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.captioner, self.model = model, model
        self._schedule, self._stage = schedule, training.deepspeed_stage
        self.apart = self._stage == 3
        self._recall = Recall()
        self._configure(training)
        self._names = {name: p.requires_grad for name, p in model.whisper.named_parameters()}
        self._shapes = {name: p.shape for name, p in model.whisper.named_parameters()}

    def start(self, folder: Path | None) -> None:
        """Weights go in before they are sharded, moments after. The learning rate is 0 until a step names it:
        ZeRO-3 takes an empty step to make room for the moments, which must decay nothing."""
        moments: dict[str, Any] | None = None
        if folder is not None:
            weights, moments = read_snapshot(folder)
            with torch.no_grad():
                for name, p in self.captioner.whisper.named_parameters():
                    p.copy_(weights[name])
        self._frozen = {n: p.detach().clone() for n, p in self._parameters() if not self._names[n]}
        s = self._schedule
        adam = torch.optim.AdamW(parameter_groups(self.captioner, s.weight_decay), lr=0.0, betas=s.betas, fused=True)
        self.model, _ = self._accelerator.prepare(self.captioner, adam)
        self._zero: Any = self.model.optimizer
        self._restore(moments)

    def forward(self, micro: Micro) -> Sums:
        sums: Sums = self.model(micro, self.device)  # DeepSpeed's own autocast
        return sums

    def update(self, lr: float, loss: float) -> float:
        """DeepSpeed takes the norm, clips, and leaves out the step itself where the norm is not finite."""
        for group in self._zero.optimizer.param_groups:
            group["lr"] = lr
        engine: Any = self.model
        with nullcontext() if math.isfinite(loss) else self._spoilt():
            engine.step()
        return float(engine.get_global_grad_norm())

    @contextmanager
    def _spoilt(self) -> Iterator[None]:
        """No gradient is finite: DeepSpeed has no other word by which to drop those that it has gathered."""
        gathered = [g for group in self._zero.averaged_gradients.values() for g in group or ()]
        for gradient in gathered:
            gradient.fill_(math.nan)
        yield
        for gradient in gathered:
            gradient.zero_()  # ZeRO-3 keeps them, and never writes the ends that fill a part up to its size

    def clear(self) -> None:
        """A step clears its gradients itself."""

    def _backs_alone(self, last: bool) -> bool:
        return False  # gradients move between processes on the way, and those that were summed cannot be taken back

    def total(self, values: Tensor) -> Tensor:
        summed = values.to(self.device, copy=True)
        torch.distributed.all_reduce(summed)
        return summed

    def wait(self) -> None:
        torch.distributed.barrier()

    def close(self) -> None:
        """Under ZeRO-3 transformers would shard what one process opens from now on, and wait in it for the others."""
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
        super().close()

    snapshot_b = 0  # gathered, it is a copy already

    def snapshot(self, apart: bool) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state

        weights = self._gather()
        moments = {key: self._collect(lambda p, key=key: safe_get_full_optimizer_state(p, key)) for key in MOMENTS}
        step = float(self._adam_state(self._shards()[0])["step"])
        return {WEIGHTS: weights, OPTIMIZER: {"step": step} | moments} if self.rank == 0 else {}

    def settle(self) -> None:
        """Process 0 holds the whole model in ordinary tensors afterwards, on the CPU."""
        whisper = self.captioner.whisper
        for name, value in self._gather().items():
            path, _, leaf = name.rpartition(".")
            setattr(whisper.get_submodule(path), leaf, nn.Parameter(value, requires_grad=self._names[name]))
        whisper.proj_out.weight = whisper.model.decoder.embed_tokens.weight

    def _gather(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        return self._collect(safe_get_full_fp32_param) | (self._frozen if self.rank == 0 else {})

    def _collect(self, whole: Any) -> dict[str, Tensor]:
        """`whole(parameter)` of each trained one, on process 0; all processes take part."""
        found = {}
        for name, p in self._parameters():
            if self._names[name]:
                value = whole(p).detach()
                if self.rank == 0:
                    found[name] = value.to("cpu", torch.float32, copy=True).view(self._shapes[name])
        return found

    def _parameters(self) -> list[tuple[str, Any]]:
        return list(self.captioner.whisper.named_parameters())

    def _shards(self) -> list[Any]:
        """This process's flat float32 tensors, which AdamW sees."""
        zero = self._zero
        return list(zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups)

    def _adam_state(self, shard: Any) -> dict[str, Any]:
        state: dict[str, Any] = self._zero.optimizer.state[shard]
        return state

    def _restore(self, moments: dict[str, Any] | None) -> None:
        """AdamW's state as it was, or as before its first step."""
        step = moments["step"] if moments else 0.0
        for shard in self._shards():
            state = self._adam_state(shard)
            state["step"] = torch.tensor(step, dtype=torch.float32, device=shard.device)
            state |= {key: torch.zeros_like(shard) for key in MOMENTS}
        if self._stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()  # links parameters to their places in the shards
        for key in MOMENTS if moments else ():
            for name, p in self._parameters():
                if self._names[name]:
                    self._set_moment(p, moments[key][name].to(self.device), key)  # type: ignore[index]

    def _set_moment(self, p: Any, value: Tensor, key: str) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self._stage < 3:
            return safe_set_full_optimizer_state(p, value, key)  # type: ignore[no-any-return]
        size = p.ds_tensor.numel()  # shards are padded to one size
        padded = torch.zeros(size * self.world, device=value.device)
        padded[: value.numel()] = value.flatten()
        return safe_set_local_optimizer_state(p, padded[size * self.rank :][:size], key)  # type: ignore[no-any-return]

    def _backward(self, loss: Tensor, last: bool) -> None:
        engine: Any = self.model
        engine.set_gradient_accumulation_boundary(is_boundary=last)
        engine.backward(loss)


def _config(schedule: Schedule, training: Training) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # ours differ from step to step; DeepSpeed only counts with it
        "gradient_accumulation_steps": 1,  # the loss is divided by the step's tokens already
        "gradient_clipping": schedule.clip_norm or 0.0,
        "zero_optimization": {
            "stage": training.deepspeed_stage,
            "overlap_comm": torch.cuda.is_available(),
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
        },
        "torch_autocast": {
            "enabled": training.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],  # whose gradients it would sum in bf16; they compute in it anyway
        },
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }


def _check() -> None:
    missing = [name for name in ("accelerate", "deepspeed") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"training.deepspeed_stage asks for {' and '.join(missing)}, not installed here",
            "pip install 'aut[train]', or set training.deepspeed_stage=0",
        )
    if "RANK" not in os.environ:
        raise ConfigError(
            "training.deepspeed_stage asks for processes that torchrun started, and this one was not",
            "use `aut base` or `aut finetune`, which start them, or set training.deepspeed_stage=0",
        )
