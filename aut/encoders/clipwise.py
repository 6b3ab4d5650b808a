"""Clips in, frames or one vector a clip out: what every kind of encoder shares.

In    float32 clips at the encoder's rate, any lengths
Out   frames padded with zeros, or pooled vectors, in the order the clips came in
Why   a kind only says what one window of at most `window_s` becomes; sorting by length, batches of bounded
      memory, windows of longer clips and pooling are here, once. Price: a window does not hear the one before it.
Run   `open_encoder(folder).embed(x_BT, n_B, "valid")`

`B` batch, `T` samples, `F` frames, `D` width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aut.errors import DataError
from aut.files import digest_file, digest_json
from aut.units import WINDOW_S

BATCH_S = {"cpu": 60.0, "cuda": 1_920.0}
"""Seconds of one forward pass, padding included: placement, not identity. 240 leaves a core's caches, 30 % slower."""

WEIGHING = ("config.json", "model.safetensors", "preprocessor_config.json")  # files that change an embedding

Clips = Sequence[NDArray[np.float32]]


@contextmanager
def whole_float32() -> Iterator[None]:
    """Convolutions keep all bits of float32, as on a CPU: cuDNN's default, TF32, keeps 10 of 23 of the mantissa.

    The whole process's, while the block runs: threads that enter it side by side may leave it so.
    """
    cudnn: Any = torch.backends.cudnn  # a module that is more than its stubs say
    convolutions = cudnn.conv
    before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


@dataclass(frozen=True, slots=True)
class Piece:
    """A window of a clip."""

    clip: int
    start: int
    samples: int


class ClipEncoder(ABC):
    """An opened encoder folder; meets `aut.contracts.Encoder`.

    `width` is that of an embedding. `poolings`: 'valid' is the mean over the frames that are audio, 'padded' the
    mean over all frames of the clip extended to whole windows, silence included.
    """

    rate_hz: int
    width: int
    hop_s: float
    window_s: float = WINDOW_S
    packs = False  # whether clips of unlike lengths in one pass cost no padding
    min_samples: int = 1  # the last window of a longer clip is dropped when shorter

    def __init__(self, folder: Path, facts: Mapping[str, Any], device: str) -> None:
        self.folder, self.device = folder, device
        self.kind, self.name, self.digest = str(facts["kind"]), str(facts["name"]), str(facts["digest"])

    @abstractmethod
    def frames(self, x_BT: Tensor, n_B: Tensor, padded: bool, layers: bool) -> tuple[list[Tensor], Tensor]:
        """One batch of windows -> the frames of each layer asked for, the last one last, and f_B.

        n_B lies on the CPU. Where `layers` is false one tensor is enough. Padded: f_B counts every frame.
        """

    def encode(
        self, x_BT: NDArray[np.float32], n_B: NDArray[np.int64], layer: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Frames of each clip -> (h_BFD, f_B), zero beyond f_B; a clip alone equals itself in any batch to 1e-5.

        `layer` counts from 0, the stem; None is the last.
        """
        clips = _clips(x_BT, n_B)
        parts: dict[Piece, NDArray[np.float32]] = {}
        for pieces, (states, f_B) in self._passes(clips, padded=False, layers=layer is not None):
            h_BFD = states[-1 if layer is None else layer].float().cpu().numpy()
            parts |= {piece: h_BFD[i, : int(f_B[i])] for i, piece in enumerate(pieces)}
        joined: list[list[NDArray[np.float32]]] = [[] for _ in clips]
        for piece in sorted(parts, key=lambda p: (p.clip, p.start)):
            joined[piece.clip].append(parts[piece])
        rows = [np.concatenate(row) for row in joined]
        counts = np.array([len(row) for row in rows], dtype=np.int64)
        out = np.zeros((len(rows), int(counts.max(initial=0)), rows[0].shape[1] if rows else self.width), np.float32)
        for row, frames in zip(out, rows, strict=True):
            row[: len(frames)] = frames
        return out, counts

    def embed(self, x_BT: NDArray[np.float32], n_B: NDArray[np.int64], pooling: str = "valid") -> NDArray[np.float32]:
        """One vector a clip, [B, width]."""
        return self.pooled(_clips(x_BT, n_B), [pooling])[pooling]

    def pooled(self, clips: Clips, poolings: Sequence[str], layers: bool = False) -> dict[str, NDArray[np.float32]]:
        """One [B, D] array a pooling; with `layers` also '<pooling>.layer00' (the stem), '.layer01' ..."""
        out: dict[str, NDArray[np.float32]] = {}
        for pooling in poolings:
            if pooling not in ("valid", "padded"):
                raise ValueError(f"pooling '{pooling}' is not 'valid' or 'padded'")
            means = self._means(clips, pooling == "padded", layers)
            out[pooling] = means[-1]
            if layers:
                out |= {f"{pooling}.layer{i:02d}": mean for i, mean in enumerate(means)}
        return out

    def moments(self, h_BFD: Tensor) -> Tensor:
        """What is averaged over time."""
        return h_BFD

    def finish(self, mean_BD: NDArray[np.float64]) -> NDArray[np.float64]:
        """From averages to the embedding."""
        return mean_BD

    def _means(self, clips: Clips, padded: bool, layers: bool) -> list[NDArray[np.float32]]:
        sums: dict[int, NDArray[np.float64]] = {}
        counts = np.zeros(len(clips))
        for pieces, (states, f_B) in self._passes(clips, padded, layers):
            rows = [piece.clip for piece in pieces]
            np.add.at(counts, rows, f_B.numpy())
            for i, h_BFD in enumerate(states):
                beyond = torch.arange(h_BFD.shape[1])[None] >= f_B[:, None]
                values = self.moments(h_BFD.double()).masked_fill(beyond.to(h_BFD.device)[:, :, None], 0.0)
                total = values.sum(1).cpu().numpy()
                np.add.at(sums.setdefault(i, np.zeros((len(clips), total.shape[1]))), rows, total)
        return [self.finish(total / counts[:, None]).astype(np.float32) for total in sums.values()]

    @torch.inference_mode()
    def _passes(
        self, clips: Clips, padded: bool, layers: bool
    ) -> Iterator[tuple[list[Piece], tuple[list[Tensor], Tensor]]]:
        window = round(self.window_s * self.rate_hz)
        budget = round(BATCH_S.get(self.device.partition(":")[0], BATCH_S["cpu"]) * self.rate_hz)
        for pieces in batches(cut(clips, window, self.min_samples), budget, window if padded else None):
            longest = max(self.min_samples, max(p.samples for p in pieces))
            x_BT = np.zeros((len(pieces), longest), np.float32)
            for row, p in zip(x_BT, pieces, strict=True):
                row[: p.samples] = clips[p.clip][p.start : p.start + p.samples]
            n_B = torch.tensor([max(p.samples, self.min_samples) for p in pieces])
            with whole_float32():
                found = self.frames(torch.from_numpy(x_BT).to(self.device), n_B, padded, layers)
            yield pieces, found


def cut(clips: Clips, window: int, shortest: int = 1) -> list[Piece]:
    """Windows of at most `window` samples; a last one below `shortest` is dropped unless it is the only one."""
    pieces = []
    for i, clip in enumerate(clips):
        if not len(clip):
            raise DataError(f"clip {i} of the batch is empty", "leave it out")
        for start in range(0, len(clip), window):
            samples = min(window, len(clip) - start)
            if start == 0 or samples >= shortest:
                pieces.append(Piece(i, start, samples))
    return pieces


def batches(pieces: Sequence[Piece], budget: int, padded_to: int | None) -> Iterator[list[Piece]]:
    """Pieces by length, as many at once as keep rows times the longest within `budget` samples."""
    group: list[Piece] = []
    for piece in sorted(pieces, key=lambda p: (p.samples, p.clip, p.start)):
        if group and (len(group) + 1) * (padded_to or piece.samples) > budget:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def identity(folder: Path, kind: str, mels: int | None) -> str:
    """Digest of all that changes an embedding: kind, mels, configuration, weights, preprocessing."""
    found = {name: digest_file(folder / name) for name in WEIGHING if (folder / name).is_file()}
    return digest_json({"kind": kind, "mels": mels, "files": found})


def _clips(x_BT: NDArray[np.float32], n_B: NDArray[np.int64]) -> Clips:
    return [x_T[: int(n)] for x_T, n in zip(x_BT, n_B, strict=True)]
