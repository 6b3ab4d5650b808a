"""Engine: a version's encoder in processes of its own.

In    an encoder folder; batches of clips with what is asked of them
Out   frames or pooled vectors; what the encoder is: digest, width, rate, layers
Why   each version has its processes: a new one is opened and proved beside the old, one that crashes as it opens is
      refused like any other that does not work, and the memory of the old one is gone with its processes. On a CPU two
      processes with half the cores each finish more clips than one with all: small models do not fill many cores.
Price the weights are mapped, not copied, into each process; a GPU gets one process

`B` clips, `F` frames, `D` width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aut.audio.plain import Samples, floats
from aut.errors import DataError
from aut.serving.workers import Crew, Handler, Head, Lost

if TYPE_CHECKING:
    from aut.encoders.clipwise import ClipEncoder

Array = NDArray[np.float32]
Result = dict[str, Array]
"""'frames' [F, D], or one [D] a pooling."""
COMPUTE_S = 600.0  # a pass that takes longer has hung
FACTS = ("kind", "name", "digest", "width", "hop_s", "rate_hz")


class Passing(DataError):
    """A version does not open now and may later: its process was ended, its download was cut."""


@dataclass(frozen=True)
class Ask:
    """What is wanted of a clip: frames [F, D] of a layer, or one vector a pooling."""

    frames: bool = False
    layer: int | None = None  # None: the last
    poolings: tuple[str, ...] = ("valid",)


class Engine:
    """The encoder as the server sees it. `layers` counts the states `layer` may name; `packs`: lengths may mix freely.

    `example_BD` is what the version made of its own example, at two lengths. DataError, MissingInput: it does not open;
    Passing: its process was ended as it opened.
    """

    def __init__(self, folder: Path, example: Path, device: str | None = None, workers: int = 2) -> None:
        cores = len(os.sched_getaffinity(0))
        workers = max(1, min(workers, cores))
        self._crew = Crew(opened, (str(folder), str(example), device, max(1, cores // workers)), 1)
        try:
            (first,) = self._crew.greetings()
            if first["device"] == "cpu":
                self._crew.add(workers - 1)
                self._crew.greetings()
        except Lost as lost:
            self._crew.close()
            raise Passing(f"the process that opened it ended ({lost})", "look for what ended it: memory?") from None
        except BaseException:
            self._crew.close()
            raise
        self.kind, self.name, self.digest = str(first["kind"]), str(first["name"]), str(first["digest"])
        self.width, self.rate_hz, self.hop_s = int(first["width"]), int(first["rate_hz"]), float(first["hop_s"])
        self.layers, self.packs = int(first["layers"]), bool(first["packs"])
        self.example_BD = np.array(first["example"], np.float32)

    @property
    def lost(self) -> int:
        return self._crew.lost

    def compute(self, ask: Ask, clips: Sequence[Samples]) -> list[Result]:
        """One pass. Lost: its process died; another takes its place."""
        asked: Head = {"frames": ask.frames, "layer": ask.layer, "poolings": ask.poolings}
        asked["types"] = [clip.dtype.str for clip in clips]
        head, parts = self._crew.call(asked, clips, COMPUTE_S)
        arrays = [np.frombuffer(p, np.float32).reshape(-1, head["width"]) for p in parts]
        if ask.frames:
            return [{"frames": h_FD} for h_FD in arrays]
        return [dict(zip(ask.poolings, row, strict=True)) for row in zip(*arrays, strict=True)]

    def close(self) -> None:
        self._crew.close()


def opened(folder: str, example: str, device: str | None, threads: int) -> tuple[Handler, Head]:
    """In the child: opens, proves and warms the encoder."""
    import torch

    from aut.encoders import open_encoder

    torch.set_num_threads(threads)
    place = device or os.environ.get("AUT_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    encoder = open_encoder(Path(folder), place)
    states = encoder.pooled(_example(Path(example), encoder.rate_hz), ["valid"], layers=True)
    greeting: Head = {name: getattr(encoder, name) for name in FACTS}
    greeting |= {"layers": len(states) - 1, "device": place.partition(":")[0], "packs": encoder.packs}
    greeting["example"] = states["valid"].tolist()

    def handler(head: Head, parts: list[memoryview]) -> tuple[Head, list[Array]]:
        clips = [floats(np.frombuffer(p, kind)) for p, kind in zip(parts, head["types"], strict=True)]
        return computed(encoder, head, clips)

    return handler, greeting


def computed(encoder: ClipEncoder, ask: Mapping[str, Any], clips: Sequence[Array]) -> tuple[Head, list[Array]]:
    """Frames of each clip, or the means [B, D] of each pooling."""
    from aut.encoders.api import stack

    layer = ask["layer"]
    if ask["frames"]:
        h_BFD, f_B = encoder.encode(*stack(clips), layer=layer)
        arrays = [np.ascontiguousarray(h_FD[: int(f)]) for h_FD, f in zip(h_BFD, f_B, strict=True)]
    else:
        means = encoder.pooled(clips, ask["poolings"], layers=layer is not None)
        arrays = [means[p if layer is None else f"{p}.layer{layer:02d}"] for p in ask["poolings"]]
    return {"width": arrays[0].shape[-1]}, arrays


def _example(path: Path, rate_hz: int) -> list[Array]:
    """The version's own example, else a tone; once, and four times as long."""
    from aut.audio.decode import decode
    from aut.audio.rate import resampled
    from aut.units import RATE_HZ

    if path.is_file():
        clip = decode(path, max_s=30.0).pcm_T
    else:
        clip = (0.25 * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ)).astype(np.float32)
    clip = resampled(clip, RATE_HZ, rate_hz)
    return [clip, np.tile(clip, 4)]
