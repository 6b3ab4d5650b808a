"""Answers: embeddings as JSON, npy, safetensors or base64.

In    one [D] vector or [F, D] frames a clip
Out   a Response; npy and safetensors hold [N, D], or [N, F, D] zero beyond each clip's valid frames
Why   32 numbers a line of JSON are read by people, 32,000 by nobody: binary costs a tenth of the bytes and time
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

Format = Literal["json", "npy", "safetensors", "base64"]
Array = NDArray[np.float32]


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
