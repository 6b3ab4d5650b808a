"""Answers: embeddings as JSON, npy, safetensors or base64.

In    one [D] vector or [F, D] frames a clip
Out   a Response; npy and safetensors hold [N, D], or [N, F, D] zero beyond each clip's valid frames
Why   32 numbers a line of JSON are read by people, 32,000 by nobody: binary costs a tenth of the bytes and time.
      Frames are many, and padding makes more of them: the size is looked at before they are computed
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from aut.serving.limits import Refused

Format = Literal["json", "npy", "safetensors", "base64"]
Array = NDArray[np.float32]
BYTES = {"npy": 4.0, "safetensors": 4.0, "base64": 16 / 3, "json": 22.0}
"""Of a number; of JSON, the most that a float32 takes as text, which is twice that in memory before it is written."""


def check_size(frames: Sequence[int], width: int, form: Format, limit: int) -> None:
    """Refused 413 where clips of so many frames would make an answer over `limit` bytes."""
    padded = form in ("npy", "safetensors")
    rows = len(frames) * max(frames) if padded else sum(frames)
    size = rows * width * BYTES[form]
    if size <= limit:
        return
    remedy = "fewer or shorter clips, or pool=mean"
    if form == "json":
        remedy = f"format=npy, {remedy}"
    elif padded and sum(frames) * width * BYTES["base64"] <= limit:
        remedy = f"format=base64, which pads nothing, {remedy}"
    told = f"{rows:,} frames of {width} numbers{', padded' if padded else ''} are {size / 1e6:,.0f} MB as {form}"
    raise Refused(413, "answer_too_large", f"{told}, the limit is {limit / 1e6:,.0f} MB: ask for {remedy}")


def answer(arrays: Sequence[Array], seconds: Sequence[float], model: str, form: Format) -> Response:
    """The arrays in the format asked for."""
    if form == "npy":
        held = io.BytesIO()
        np.save(held, stacked(arrays), allow_pickle=False)
        frames = ",".join(str(len(a)) for a in arrays) if arrays[0].ndim == 2 else ""
        headers = {"X-Valid-Frames": frames} if frames else {}
        return Response(held.getvalue(), media_type="application/x-npy", headers=headers)
    if form == "safetensors":
        from safetensors.numpy import save

        tensors: dict[str, Any] = {"embeddings": stacked(arrays)}
        if arrays[0].ndim == 2:
            tensors["valid_frames"] = np.array([len(a) for a in arrays], np.int64)
        return Response(save(tensors, {"model": model}), media_type="application/x-safetensors")
    rows = [row(a, i, s, form == "base64") for i, (a, s) in enumerate(zip(arrays, seconds, strict=True))]
    usage = {"audio_seconds": round(sum(seconds), 3), "prompt_tokens": 0, "total_tokens": 0}
    return dumped({"object": "list", "data": rows, "model": model, "usage": usage})


def row(array: Array, index: int, seconds: float, encoded: bool) -> dict[str, Any]:
    """One entry of OpenAI's list; base64 is of little-endian float32, row after row."""
    value = base64.b64encode(array.astype("<f4").tobytes()).decode() if encoded else array.tolist()
    shape = {"shape": list(array.shape)} if encoded else {}
    return {"object": "embedding", "index": index, "embedding": value, "seconds": round(seconds, 3), **shape}


def stacked(arrays: Sequence[Array]) -> Array:
    """[N, D], or [N, F, D] with zeros beyond a clip's frames."""
    if arrays[0].ndim == 1:
        return np.stack(arrays)
    out = np.zeros((len(arrays), max(len(a) for a in arrays), arrays[0].shape[1]), np.float32)
    for place, array in zip(out, arrays, strict=True):
        place[: len(array)] = array
    return out


def dumped(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(value, separators=(",", ":")), status, headers, "application/json")
