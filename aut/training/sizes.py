"""Sizes: how many clips a micro-batch holds, by their duration; found once a model and GPU, and remembered.

In    a way to try a micro-batch and to time it; AUT_WORK/<stage>/micro/<key>.json of an earlier search
Out   clips by the duration of the longest (packed: by their mean): what fits, of that what keeps the device busy; the
      same in every process
Why   memory decides what fits, and it grows with frames, their square, and the target tokens: no formula of ours would
      be right on the next GPU. So sizes are tried, longest bucket first, up to what a step gives one process; a shorter
      bucket holds at least as many. But what fits is far more than what keeps a GPU busy, and clips side by side are
      padded to the longest: so passes are timed, and a micro-batch is no larger than the smallest that computes about
      as many padded seconds a second as any. Packed clips have no padding, and what computes most is taken. A step is
      the same rows whatever comes out. Price: the search, once; what processes send one another is not in its times.
      On a CPU the caches decide, not the memory: 20 padded seconds, not searched for.
Run   `sizes = micro_sizes(engine, training, most, folder)`

AUT_MICRO_S   padded seconds a micro-batch may hold, instead of a search
"""

from __future__ import annotations

import json
import math
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aut.config import Training
from aut.errors import ConfigError
from aut.files import digest_json, read_json, write_json
from aut.training.placement import micro_s
from aut.units import WINDOW_S

if TYPE_CHECKING:
    import torch

    from aut.training.engine import Engine
    from aut.training.model import Captioner

EDGES_S = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0)
CPU_S = 20.0
GPU_S = 120.0  # where nothing was timed
LAUNCH = 0.1  # what a micro-batch costs beside its seconds, of those it may hold, where nothing was timed
BUSY, BUSY_PACKED = 0.95, 0.99  # of the best padded seconds a second: less pads less, where clips are padded
TIMED_S = 10.0  # about the mean clip of a mixture; under `padded` all cost 30 s
TIMED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # clips
SPARE = 0.9  # of what just fitted: memory breaks into pieces, and AdamW's first step needs a little more
LEARNT = "micro.json"  # of a number of seconds, in the folder of a training
CLOSE = 8  # a search ends when it knows the size to an eighth
ANY = 1 << 30  # clips, where nothing was tried

Pace = Sequence[Sequence[float]]  # (padded seconds, seconds that a pass took), rising


class Sizes:
    """Clips of a micro-batch whose longest lasts so many seconds: `busy_s` of padded audio, of what fits.

    `clips[i]` fit where the longest lasts at most EDGES_S[i]; `each_s` is what every clip costs, where all are padded
    to it; `pace` is what passes took. `packed`: clips cost their own seconds, and their mean decides, not the longest.
    `path` keeps all of it for a next start with the same `facts`.
    """

    def __init__(
        self,
        busy_s: float,
        clips: Sequence[int] = (ANY,) * len(EDGES_S),
        pace: Pace = (),
        each_s: float = 0.0,
        path: Path | None = None,
        facts: Mapping[str, Any] | None = None,
        packed: bool = False,
    ) -> None:
        self.busy_s, self.clips, self.pace, self.packed = busy_s, list(clips), pace, packed
        self.path, self._each_s, self._facts = path, each_s, dict(facts or {})

    def __call__(self, seconds: float) -> int:
        busy = max(1, int(self.busy_s // max(seconds, self._each_s, 1e-3)))
        return min(busy, self.clips[self._bucket(seconds)])

    def took(self, computed_s: float) -> float:
        """What a micro-batch of so many seconds, its padding included, takes: seconds where passes were timed, else in
        proportion."""
        if not self.pace:
            return computed_s + LAUNCH * self.busy_s
        at = bisect_right(self.pace, computed_s, key=lambda point: point[0])
        if at == len(self.pace):
            return self.pace[-1][1] * computed_s / self.pace[-1][0]
        if not at:
            return self.pace[0][1]
        (x, low), (y, high) = self.pace[at - 1], self.pace[at]
        return low + (high - low) * (computed_s - x) / (y - x)

    def shrink(self, clips: int, seconds: float) -> None:
        """So many did not fit: this bucket and all longer ones hold at most half of it."""
        for i in range(self._bucket(seconds), len(self.clips)):
            self.clips[i] = min(self.clips[i], max(1, clips // 2))

    def load(self) -> bool:
        """What an earlier start found; whether there is any, of the same facts."""
        if not (self.path and self.path.exists()):
            return False
        kept = read_json(self.path)
        if kept.get("facts") != self._facts:
            return False
        self.busy_s, self.clips, self.pace = kept["busy_s"], kept["clips"], kept["pace"]
        return True

    def save(self) -> None:
        """For the next start: it knows what was learnt."""
        if self.path:
            found = {"busy_s": self.busy_s, "clips": self.clips, "pace": self.pace}
            write_json(self.path, {"facts": self._facts, **found})

    @property
    def kind(self) -> str:
        """The same for all that would find the same."""
        return digest_json(self._facts)

    @property
    def told(self) -> str:
        """For the other processes."""
        return json.dumps([self.busy_s, self.clips, self.pace, self.packed])

    def agree(self, told: Sequence[str]) -> None:
        """The least of what processes told, and the first one's times: the same in all, bit for bit."""
        found = [json.loads(one) for one in told]
        self.busy_s = min(busy_s for busy_s, *_ in found)
        self.clips = [min(column) for column in zip(*(clips for _, clips, *_ in found), strict=True)]
        self.pace = found[0][2]
        self.packed = all(packed for *_, packed in found)

    @staticmethod
    def _bucket(seconds: float) -> int:
        return min(bisect_left(EDGES_S, seconds), len(EDGES_S) - 1)


def micro_sizes(engine: Engine, training: Training, most: int, work: Path) -> Sizes:
    """Sizes for the engine's model, the same in all its processes; `most` is what a step gives one of them.

    What was found lies beside the training's folder `work`, for others with the same model and device; what a number of
    seconds learns lies in it. Processes divide a step alike or wait for each other for ever, and hosts may differ in
    GPUs or in AUT_MICRO_S: the first process of each kind looks, and all take the least. ConfigError: not even one
    clip fits.
    """
    given = engine.device.type == "cpu" or micro_s() is not None
    packed = packs(engine.captioner, engine.device, training)
    sizes = budget(training, engine.device.type, work / LEARNT, packed)
    if not given:
        facts = memory_facts(engine.captioner, engine.device, training, most, engine.world)
        path = work.parent / "micro" / f"{digest_json(facts)}.json"
        sizes = Sizes(GPU_S, each_s=_each_s(training), path=path, facts=facts, packed=packed)
    first = engine.gather([sizes.kind]).index(sizes.kind) == engine.rank
    if first and not sizes.load() and not given:
        _search(sizes, engine, training, most)
        sizes.save()
    sizes.agree(engine.gather([sizes.told] if first else []))
    return sizes


def _search(sizes: Sizes, engine: Engine, training: Training, most: int) -> None:
    from aut.training.trial import Trial

    trial, alike = Trial(engine.captioner, engine.device, training, engine.world), training.length == "padded"
    sizes.pace = timed(trial.took, alike)
    sizes.busy_s = busy(sizes.pace, BUSY_PACKED if sizes.packed else BUSY)
    sizes.clips = search(trial, most, alike, sizes.busy_s)
    told = ", ".join(f"{n} of {s:g} s" for n, s in zip(sizes.clips, EDGES_S, strict=True))
    said = f"micro-batches that fit {engine.device}: {told}; {sizes.busy_s:g} padded seconds keep it busy"
    print(f"{said} (kept in {sizes.path})", file=sys.stderr)  # noqa: T201


def budget(training: Training, device: str, learnt: Path | None = None, packed: bool = False) -> Sizes:
    """Without a search: AUT_MICRO_S, or what usually is best; for passes that keep nothing for a backward one, too."""
    seconds = micro_s() or (CPU_S if device == "cpu" else GPU_S)
    facts = {"given_s": seconds, "packed": packed}
    return Sizes(seconds, each_s=_each_s(training), path=learnt, facts=facts, packed=packed)


def packs(model: Captioner, device: torch.device, training: Training) -> bool:
    """Whether training packs clips on this device (aut/encoders/attention.py)."""
    import torch

    from aut.encoders.attention import can_pack

    if training.length == "padded" or training.precision != "bf16":
        return False
    return can_pack(device, torch.bfloat16, model.whisper.model.encoder.layers[0].self_attn, training=True)


def _each_s(training: Training) -> float:
    return WINDOW_S if training.length == "padded" else 0.0


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
        "edges_s": list(EDGES_S),
        "most": most,
        "world": world,
        "packed": packs(model, device, training),
    }


def timed(took: Callable[[int, float], float | None], alike: bool = False) -> list[tuple[float, float]]:
    """What passes take, by their padded seconds: `took(clips, seconds)`, None where it does not fit."""
    edge_s = EDGES_S[-1] if alike else TIMED_S
    found: list[tuple[float, float]] = []
    for clips in TIMED:
        passed_s = took(clips, edge_s)
        if passed_s is None:
            break
        found.append((clips * edge_s, passed_s))
    return found


def busy(pace: Pace, enough: float = BUSY) -> float:
    """The fewest padded seconds of which a pass computes about as many a second as any."""
    if not pace:
        return GPU_S
    best = max(padded_s / took_s for padded_s, took_s in pace)
    return next(padded_s for padded_s, took_s in pace if padded_s / took_s >= enough * best)


def search(fits: Callable[[int, float], bool], most: int, alike: bool = False, busy_s: float = math.inf) -> list[int]:
    """The size of each bucket, by trying: `fits(clips, seconds)`. ConfigError where one clip does not fit.

    `alike`: clips are padded to one length and cost the same. No bucket is tried with more than `busy_s` asks for.
    """
    if not fits(1, EDGES_S[-1]):
        raise ConfigError(
            f"one clip of {EDGES_S[-1]:g} s does not fit the device with the optimiser's state",
            "set training.activation_checkpointing=true, a higher deepspeed_stage, or a lower max_s",
        )
    found: list[int] = []
    shorter = (EDGES_S[0] / 2.0, *EDGES_S)  # a bucket's clips last longer than that
    for edge_s, least_s in zip(reversed(EDGES_S), reversed(shorter[:-1]), strict=True):
        if alike and found:
            found.append(found[-1])
            continue
        asked = int(min(float(most), max(1.0, busy_s / (edge_s if alike else least_s))))
        found.append(largest(partial(_fits, fits, edge_s), found[-1] if found else 1, asked))
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
