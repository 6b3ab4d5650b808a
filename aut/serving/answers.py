"""Answers: embeddings as JSON, npy, safetensors or base64.

In    one [D] vector or [F, D] frames a clip
Out   a Response; npy and safetensors hold [N, D], or [N, F, D] zero beyond each clip's valid frames
Why   32 numbers a line of JSON are read by people, 32,000 by nobody: binary costs a tenth of the bytes and time.
      Frames are many, and padding makes more of them: the size is looked at before they are computed. A float32 as text
      has the digits that make it the same float32 again, 9 at most; Python's own json writes those of a double, 17
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.responses import Response

from aut.serving.limits import Refused

Format = Literal["json", "npy", "safetensors", "base64"]
Array = NDArray[np.float32]
BYTES = {"npy": 4.0, "safetensors": 4.0, "base64": 16 / 3, "json": 16.0}
"""Of a number; of JSON, the most that a float32 takes as text: -1.23456789e-38 and a comma."""


def check_size(frames: Sequence[int], width: int, form: Format, limit: int) -> int:
    """Bytes of the answer that clips of so many frames make. Refused 413 where they are over `limit`."""
    padded = form in ("npy", "safetensors")
    rows = len(frames) * max(frames) if padded else sum(frames)
    size = rows * width * BYTES[form]
    if size <= limit:
        return int(size)
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
    value = base64.b64encode(array.astype("<f4").tobytes()).decode() if encoded else np.ascontiguousarray(array)
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
    """JSON; arrays as lists."""
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), status, headers, "application/json")
