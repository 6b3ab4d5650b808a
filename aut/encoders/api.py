"""Audio encoder: waveforms as users have them -> embeddings. Any rate, any channels, one clip or many.

In    one array, a [B, T] array, or a list of arrays; float in [-1, 1] or int16; rate_hz of all of them
Out   embeddings [B, F, D] float32 and valid frames [B]
Why   resampling, mixing and checking belong to one place, so that served, probed and user's vectors are equal
Run   `aut.load_encoder("models/encoders/base").encode(waveforms, rate_hz=44_100)`

`B` batch, `T` samples, `C` channels, `F` frames, `D` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aut.audio.rate import LOUDEST, resampled
from aut.errors import DataError

if TYPE_CHECKING:
    from aut.encoders.clipwise import ClipEncoder

MAX_CHANNELS = 8  # an array's shorter axis is its channels only up to here


class AudioEncoder:
    """An encoder for users. `version` and `run_id` are set on what came from a registry."""

    def __init__(self, encoder: ClipEncoder, version: str | None = None, run_id: str | None = None) -> None:
        self.encoder, self.version, self.run_id = encoder, version, run_id
        self.name, self.kind, self.digest = encoder.name, encoder.kind, encoder.digest
        self.rate_hz, self.width, self.hop_s = encoder.rate_hz, encoder.width, encoder.hop_s

    def encode(self, waveforms: Any, rate_hz: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Embeddings [B, F, D], zero beyond a clip's valid frames, and valid frames [B].

        A list item may be [T], [C, T] or [T, C] (the shorter axis is channels, mixed to mono); a single 2-D array
        is a batch [B, T]. DataError names the clip that is empty or holds NaN.
        """
        return self.encoder.encode(*stack(self.prepare(waveforms, rate_hz)))

    def embed(self, waveforms: Any, rate_hz: int, pooling: str = "valid") -> NDArray[np.float32]:
        """One vector a clip [B, D]: the mean over valid frames, as the probes use it."""
        return self.encoder.pooled(self.prepare(waveforms, rate_hz), [pooling])[pooling]

    def prepare(self, waveforms: Any, rate_hz: int) -> list[NDArray[np.float32]]:
        """Each clip mono, float32, at the encoder's rate, within full scale, as a file of it is decoded."""
        if rate_hz <= 0:
            raise DataError(f"rate_hz is {rate_hz}", "give the samples per second of the waveforms")
        clips = [resampled(mono(w, i), rate_hz, self.rate_hz) for i, w in enumerate(separate(waveforms))]
        for i, clip in enumerate(clips):
            if not len(clip):
                raise DataError(f"clip {i} is too short: no sample is left at {self.rate_hz} Hz", "leave it out")
        return clips


def separate(waveforms: Any) -> list[Any]:
    """The clips of one array or a list."""
    if isinstance(waveforms, list | tuple) and not (waveforms and np.isscalar(waveforms[0])):
        return list(waveforms)
    array = np.asarray(waveforms)
    if array.ndim == 1:
        return [array]
    if array.ndim == 2 and array.shape[1] <= MAX_CHANNELS < array.shape[0]:
        raise DataError(f"an array of shape {array.shape} looks like [samples, channels]", "pass it inside a list")
    return list(array)


def mono(waveform: Any, position: int = 0) -> NDArray[np.float32]:
    """One clip as [T] float32. DataError where it is empty, not finite, far over full scale, or has more than two
    axes."""
    array = np.asarray(waveform)
    if array.dtype == np.int16:
        array = array.astype(np.float32) / 32_768.0
    elif not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"clip {position} has values of type {array.dtype}", "give float in [-1, 1] or int16")
    if array.ndim == 2 and min(array.shape) <= MAX_CHANNELS:
        array = array.mean(axis=int(np.argmin(array.shape)))
    if array.ndim != 1:
        raise DataError(f"clip {position} has shape {array.shape}", "give [samples] or [channels, samples]")
    if not array.size:
        raise DataError(f"clip {position} is empty", "leave it out")
    if not np.isfinite(array).all():
        at = int(np.argmin(np.isfinite(array)))
        raise DataError(f"clip {position} is not finite at sample {at}", "decode it again")
    if (peak := float(np.abs(array).max())) > LOUDEST:
        raise DataError(f"clip {position} has samples up to {peak:g}", "give float in [-1, 1] or int16")
    return np.ascontiguousarray(array, dtype=np.float32)


def stack(clips: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """x_BT padded with zeros, n_B."""
    n_B = np.array([len(c) for c in clips], dtype=np.int64)
    x_BT = np.zeros((len(clips), int(n_B.max(initial=0))), np.float32)
    for row, clip in zip(x_BT, clips, strict=True):
        row[: len(clip)] = clip
    return x_BT, n_B
