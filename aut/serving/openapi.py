"""OpenAPI: what the routes take and answer, beyond what their signatures say. Part of /openapi.json.

In    the document that FastAPI makes of the routes
Out   the same with every option of query, form and JSON, every status with its body and headers, and the two ways to
      send a key. Each option is described once
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

POOLS = ("mean", "none")
FORMATS = ("json", "npy", "safetensors", "base64")
ENCODINGS = ("float", "base64")
Schema = dict[str, Any]
SHARED: dict[str, Schema] = {
    "model": {"type": "string", "description": "the model, alias or version that must answer; another is 404"},
    "user": {"type": "string", "description": "not looked at"},
}
EMBEDDING: dict[str, Schema] = {
    "pool": {"enum": list(POOLS), "default": "mean", "description": "mean: one vector a clip; none: a vector a frame"},
    "format": {"enum": list(FORMATS), "default": "json", "description": "of the answer"},
    "layer": {"type": "integer", "minimum": 0, "description": "0 is the stem, then each block; none: the last"},
    "encoding_format": {"enum": list(ENCODINGS), "default": "float", "description": "OpenAI's; base64 is that format"},
    "dimensions": {"type": "integer", "minimum": 1, "description": "OpenAI's; other than the version's width is 400"},
}
CLASSES: dict[str, Schema] = {
    "top": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 5, "description": "labels of each probe set"},
    "neighbours": {
        "type": "integer",
        "minimum": 0,
        "maximum": 100,
        "default": 0,
        "description": "nearest probe clips of each set",
    },
}
FILE: Schema = {"type": "string", "format": "binary"}
INPUT: Schema = {
    "description": "base64 audio (wav, flac, ogg, mp3), or a list of it",
    "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}
TABLE: Schema = {
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
FRAMES = {"X-Valid-Frames": {"description": "npy of frames: those of each clip", "schema": {"type": "string"}}}
AGAIN = {"Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}}
ALLOW = {"Allow": {"description": "methods of the route", "schema": {"type": "string"}}}
ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["reason", "message"],
            "properties": {"reason": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}
Answers = dict[int | str, dict[str, Any]]


def _error(description: str, **headers: Any) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": description, "content": content, "headers": NAMED | headers}


ANYWHERE: Answers = {
    401: _error("no API key, or a wrong one"),
    403: _error("not a name of this server"),
    405: _error("another method", **ALLOW),
    429: _error("full; Retry-After says when to try again", **AGAIN),
    500: _error("the server failed"),
    503: _error("no version to answer yet, or the process that computed ended", **AGAIN),
}
ERRORS: Answers = ANYWHERE | {
    400: _error("the request cannot be understood; error.reason says why"),
    404: _error("another model is asked for than is served"),
    408: _error("the body took too long"),
    413: _error("over a limit of bytes, clips or seconds"),
    415: _error("a body of this type is not read"),
    422: _error("no audio: error.reason is not_audio, truncated, too_long ..."),
    504: _error("the deadline passed", **AGAIN),
}


def _told(description: str, example: Any, **others: Any) -> Answers:
    """What a route that computes answers."""
    content = {"application/json": {"schema": {"type": "object"}, "example": example}, **others}
    return {200: {"description": description, "content": content, "headers": NAMED}, **ERRORS}


def _tells(kind: str, description: str, *absent: int) -> Answers:
    """What a route answers that only tells."""
    schema = {"type": "object"} if kind == "application/json" else {"type": "string"}
    content = {kind: {"schema": schema}}
    found: Answers = {200: {"description": description, "content": content, "headers": NAMED}}
    return {**found, **ANYWHERE, **{status: _error("there is none") for status in absent}}


EMBEDDED = _told(
    "json or base64: OpenAI's list; npy: [N, D] or [N, F, D]; safetensors: `embeddings`, with frames `valid_frames`",
    LISTED,
    **{"application/x-npy": {"schema": FILE}, "application/x-safetensors": {"schema": FILE}},
)
EMBEDDED[200]["headers"] = NAMED | FRAMES
CLASSIFIED = _told(
    "labels of each probe set, most likely first; with `neighbours` the nearest probe clips",
    {"object": "list", "model": LISTED["model"], "data": [{"index": 0, "seconds": 1.5, "sets": SETS}]},
)
HEARD = _told(
    "waveform minima and maxima, and log-mel as bytes in base64, frame after frame",
    {"seconds": 1.5, "shown_s": 1.5, "low": [-0.1], "high": [0.1], "mel": {"frames": 150, "bins": 80, "data": "..."}},
)
PREDICTED = _told("a row a clip, as the registered model answers", {"predictions": [{"embedding": [0.12, -0.4]}]})


def _work(answers: Answers, body: Schema | None = None, **options: Schema) -> dict[str, Any]:
    """Of a route: its answers; its options in the query, in a form, and in JSON."""
    query = [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": schema["description"]}
        for name, schema in options.items()
    ]
    return {"responses": answers, "openapi_extra": {**(body or _bodies(options)), "parameters": query}}


def _bodies(options: dict[str, Schema]) -> Schema:
    form = {"type": "object", "properties": {"file": {"type": "array", "items": FILE}, **options}}
    document = {"type": "object", "required": ["input"], "properties": {"input": INPUT, **options}}
    kinds = {"multipart/form-data": form, "audio/*": FILE, "application/octet-stream": FILE}
    content = {kind: {"schema": schema} for kind, schema in (kinds | {"application/json": document}).items()}
    return {"requestBody": {"required": True, "content": content}}


WORK = {
    "/v1/embeddings": _work(EMBEDDED, **EMBEDDING, **SHARED),
    "/v1/classify": _work(CLASSIFIED, **CLASSES, **SHARED),
    "/v1/features": _work(HEARD),
    "/invocations": _work(PREDICTED, TABLE),
}
"""What each route that computes says of itself, for FastAPI."""
TOLD = {
    "/v1/models": _tells("application/json", "the version that answers, its heads, a summary of its evidence"),
    "/v1/evidence": _tells("application/json", "evidence.json of the version", 404),
    "/report": _tells("text/html", "the version's report", 404),
    "/health/live": _tells("application/json", "the process answers"),
    "/health/ready": _tells("application/json", "a version answers, and where it came from"),
    "/health": _tells("application/json", "as /health/ready"),
    "/ping": _tells("application/json", "MLflow's: a version answers", 404),
    "/version": _tells("application/json", "MLflow's version"),
    "/metrics": _tells("text/plain", "counters in Prometheus' text format"),
}
"""What the others answer."""


def completed(made: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The document with what FastAPI cannot know: the form of errors, and how a key is sent."""

    def document() -> dict[str, Any]:
        told = made()
        parts = told.setdefault("components", {})
        parts.setdefault("schemas", {})["Error"] = ERROR
        bearer = {"type": "http", "scheme": "bearer"}
        parts["securitySchemes"] = {"bearer": bearer, "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}
        told["security"] = [{}, {"bearer": []}, {"key": []}]  # {}: a server without a key asks nobody
        return told

    return document
