"""OpenAPI: what the routes take and answer, beyond what their signatures say. Part of /openapi.json."""

from __future__ import annotations

from typing import Any

POOLS = ("mean", "none")
FORMATS = ("json", "npy", "safetensors", "base64")
BODIES = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "audio/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["input"],
                    "properties": {
                        "input": {
                            "description": "base64 audio (wav, flac, ogg, mp3), or a list of it",
                            "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
                        },
                        "encoding_format": {"enum": ["float", "base64"]},
                    },
                }
            },
        },
    }
}
TABLE = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object"},
                "example": {"dataframe_split": {"columns": ["audio"], "data": [["<base64>"]]}},
            }
        },
    }
}
ROW = {"object": "embedding", "index": 0, "embedding": [0.12, -0.4], "seconds": 1.5}
LISTED = {"object": "list", "data": [ROW], "model": "models:/whisper-aut/3", "usage": {"audio_seconds": 1.5}}
NEAREST = {"id": "esc10/1-100032-A-0", "label": "dog", "cosine": 0.93}
SETS = {"esc10": {"top": [{"label": "dog", "probability": 0.91}], "nearest": [NEAREST]}}
NAMED = {  # on every response once a version answers
    "X-Model-Version": {"description": "models:/NAME/NUMBER", "schema": {"type": "string"}},
    "X-Model-Run-Id": {"description": "the run that registered it, where there is one", "schema": {"type": "string"}},
    "X-Model-Weights": {"description": "digest of its weights and preprocessing", "schema": {"type": "string"}},
}
BINARY = {"schema": {"type": "string", "format": "binary"}}


def _told(description: str, example: Any, **others: Any) -> dict[int | str, dict[str, Any]]:
    """What a route answers, for /openapi.json."""
    content = {"application/json": {"schema": {"type": "object"}, "example": example}, **others}
    return {200: {"description": description, "content": content, "headers": NAMED}, **ERRORS}


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "the request cannot be understood; error.reason says why"},
    413: {"description": "over a limit of bytes, clips or seconds"},
    422: {"description": "no audio: error.reason is not_audio, truncated, too_long ..."},
    429: {"description": "full; Retry-After says when to try again"},
    503: {"description": "no version to answer yet"},
    504: {"description": "the deadline passed"},
}
EMBEDDED = _told(
    "json or base64: OpenAI's list; npy: [N, D] or [N, F, D]; safetensors: `embeddings`, with frames `valid_frames`",
    LISTED,
    **{"application/x-npy": BINARY, "application/x-safetensors": BINARY},
)
CLASSIFIED = _told(
    "labels of each probe set, most likely first; with `neighbours` the nearest probe clips",
    {"object": "list", "model": LISTED["model"], "data": [{"index": 0, "seconds": 1.5, "sets": SETS}]},
)
HEARD = _told(
    "waveform minima and maxima, and log-mel as bytes in base64, frame after frame",
    {"seconds": 1.5, "shown_s": 1.5, "low": [-0.1], "high": [0.1], "mel": {"frames": 150, "bins": 80, "data": "..."}},
)
PREDICTED = _told("a row a clip, as the registered model answers", {"predictions": [{"embedding": [0.12, -0.4]}]})


def _option(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def _work(answers: Any, body: dict[str, Any], *options: dict[str, Any]) -> dict[str, Any]:
    return {"responses": answers, "openapi_extra": {**body, "parameters": list(options)} if options else body}


WORK = {
    "/v1/embeddings": _work(
        EMBEDDED,
        BODIES,
        _option("pool", "mean: one vector a clip; none: a vector a frame", enum=list(POOLS), default="mean"),
        _option("format", "of the answer", enum=list(FORMATS), default="json"),
        _option("layer", "0 is the stem, then each block; none: the last", type="integer", minimum=0),
    ),
    "/v1/classify": _work(
        CLASSIFIED,
        BODIES,
        _option("top", "labels of each probe set", type="integer", minimum=1, maximum=1000, default=5),
        _option("neighbours", "nearest probe clips of each set", type="integer", minimum=0, maximum=100, default=0),
    ),
    "/v1/features": _work(HEARD, BODIES),
    "/invocations": _work(PREDICTED, TABLE),
}
"""What each route that computes says of itself, for FastAPI: its options may also come in a form or in JSON."""
