"""Sizes: how many clips a micro-batch holds, by their duration; found once a model and GPU, and remembered.

In    a way to try a micro-batch; AUT_WORK/<stage>/micro/<key>.json of an earlier search
Out   clips by the duration of the longest
Why   memory decides, and it grows with frames, their square, and the target tokens: no formula of ours would be right
      on the next GPU. So sizes are tried, longest bucket first, up to what a step gives one process; a shorter
      bucket holds at least as many. A step is the same rows whatever comes out. Price: the search, once.
      On a CPU the caches decide, not the memory: 20 padded seconds, not searched for.
Run   `sizes = micro_sizes(model, device, training, most, folder)`

AUT_MICRO_S   padded seconds a micro-batch may hold, instead of a search
"""

from __future__ import annotations

import gc
import os
import sys
from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from aut.config import Training
from aut.errors import ConfigError
from aut.files import digest_json, read_json, write_json
from aut.units import WINDOW_S

if TYPE_CHECKING:
    import torch

    from aut.training.model import Captioner

EDGES_S = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0)
CPU_S = 20.0
GPU_S = 960.0
SPARE = 0.9  # of what just fitted: memory breaks into pieces, and AdamW's first step needs a little more
LEARNT = "micro.json"  # of a budget, in the folder of a training
CLOSE = 8  # a search ends when it knows the size to an eighth


class Sizes(Protocol):
    """Clips of a micro-batch whose longest lasts so many seconds; `shrink` is told of one that did not fit."""

    def __call__(self, seconds: float) -> int: ...

    def shrink(self, clips: int, seconds: float) -> None: ...

    def save(self) -> None:
        """For the next start: it knows what was learnt."""


class Budget:
    """As many clips as make `seconds` of padded audio. `each_s`: what every clip costs, where all are padded to it.

    `path` keeps what is learnt for a next start with the same `seconds`; another number is tried as it is.
    """

    def __init__(self, seconds: float, each_s: float = 0.0, path: Path | None = None) -> None:
        self._given_s, self._budget_s, self._each_s, self._path = seconds, seconds, each_s, path
        if path and path.exists() and (learnt := read_json(path))["given_s"] == seconds:
            self._budget_s = learnt["budget_s"]

    def __call__(self, seconds: float) -> int:
        return max(1, int(self._budget_s // max(seconds, self._each_s, 1e-3)))

    def shrink(self, clips: int, seconds: float) -> None:
        self._budget_s = min(self._budget_s, max(1, clips // 2) * max(seconds, self._each_s))

    def save(self) -> None:
        if self._path:
            write_json(self._path, {"given_s": self._given_s, "budget_s": self._budget_s})


class Searched:
    """`clips[i]` where the longest clip lasts at most EDGES_S[i]; `path` keeps them."""

    def __init__(self, clips: list[int], path: Path, facts: Mapping[str, Any]) -> None:
        self.clips, self._path, self._facts = list(clips), path, dict(facts)

    def __call__(self, seconds: float) -> int:
        return self.clips[self._bucket(seconds)]

    def shrink(self, clips: int, seconds: float) -> None:
        """This bucket and all longer ones hold at most half of what did not fit."""
        for i in range(self._bucket(seconds), len(self.clips)):
            self.clips[i] = min(self.clips[i], max(1, clips // 2))

    def save(self) -> None:
        write_json(self._path, self._facts | {"edges_s": EDGES_S, "clips": self.clips})

    @staticmethod
    def _bucket(seconds: float) -> int:
        return min(bisect_left(EDGES_S, seconds), len(EDGES_S) - 1)


def micro_sizes(model: Captioner, device: torch.device, training: Training, most: int, world: int, work: Path) -> Sizes:
    """Sizes for this model on this device; `most` is what a step gives one of the `world` processes.

    What was found lies beside the training's folder `work`, for others with the same model and device; what a budget
    learns lies in it. ConfigError: not even one clip fits.
    """
    if device.type == "cpu" or "AUT_MICRO_S" in os.environ:
        return budget(training, device.type, work / LEARNT)
    facts = memory_facts(model, device, training, most, world)
    path = work.parent / "micro" / f"{digest_json(facts)}.json"
    if path.exists():
        return Searched(read_json(path)["clips"], path, facts)
    from aut.training.trial import Trial

    trial = Trial(model, device, training, world)
    sizes = Searched(search(trial, most, training.length == "padded"), path, facts)
    sizes.save()
    told = ", ".join(f"{n} of {s:g} s" for n, s in zip(sizes.clips, EDGES_S, strict=True))
    print(f"micro-batches that fit {facts['device']}: {told} (kept in {path})", file=sys.stderr)  # noqa: T201
    return sizes


def budget(training: Training, device: str, learnt: Path | None = None) -> Budget:
    """Without a search: AUT_MICRO_S, or what usually fits; for passes that keep nothing for a backward one, too."""
    usual_s = CPU_S if device == "cpu" else GPU_S
    each_s = WINDOW_S if training.length == "padded" else 0.0
    return Budget(float(os.environ.get("AUT_MICRO_S") or usual_s), each_s, learnt)


def memory_facts(model: Captioner, device: torch.device, training: Training, most: int, world: int) -> dict[str, Any]:
    """All that decides how much fits: shapes and settings, not weights; the device; the buckets."""
    import torch

    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    shapes = [[name, list(p.shape)] for name, p in model.whisper.named_parameters()]
    settings = ("precision", "length", "activation_checkpointing", "compile", "deepspeed_stage")
    return {
        "model": digest_json(shapes),
        "training": {name: getattr(training, name) for name in settings},
        "device": properties.name if properties else device.type,
        "memory_b": properties.total_memory if properties else 0,
        "torch": torch.__version__,
        "most": most,
        "world": world,
    }


def search(fits: Callable[[int, float], bool], most: int, alike: bool = False) -> list[int]:
    """The size of each bucket, by trying: `fits(clips, seconds)`. ConfigError where one clip does not fit.

    `alike`: clips are padded to one length and cost the same.
    """
    if not fits(1, EDGES_S[-1]):
        raise ConfigError(
            f"one clip of {EDGES_S[-1]:g} s does not fit the device with the optimiser's state",
            "set training.activation_checkpointing=true, a higher deepspeed_stage, or a lower max_s",
        )
    found: list[int] = []
    for edge_s in reversed(EDGES_S):
        if alike and found:
            found.append(found[-1])
        else:
            found.append(largest(partial(_fits, fits, edge_s), found[-1] if found else 1, most))
    return found[::-1]


def _fits(fits: Callable[[int, float], bool], seconds: float, clips: int) -> bool:
    return fits(clips, seconds)


def largest(fits: Callable[[int], bool], least: int, most: int) -> int:
    """The largest number from `least`, which fits, to `most` that fits; below `most` to an eighth, less a reserve."""
    if least >= most or fits(most):
        return most
    low, high = least, most
    while high - low > max(1, low // CLOSE):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return max(least, int(low * SPARE))


def out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the host's allocator, had no more."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def release(device: torch.device) -> None:
    """Gives freed memory back, so that the next attempt finds it in one piece."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
