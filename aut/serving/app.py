"""App: the routes. OpenAPI lies at /openapi.json.

In    a Service
Out   an ASGI application: /v1/embeddings, /v1/classify, /v1/features, /v1/models, /v1/evidence, MLflow's /invocations,
      /ping and /version, /health/live, /health/ready, /metrics, the page at / and the version's report at /report
Run   `aut serve --model models:/whisper-aut@champion`
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any, cast

from fastapi import FastAPI, Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response

from aut import __version__
from aut.serving import pages
from aut.serving.answers import answer, check_size, dumped
from aut.serving.engine import Ask
from aut.serving.gate import DEADLINE, SERVED, Gate, failed, hold_answer
from aut.serving.intake import Asked, body_of, known, parse, parse_mlflow
from aut.serving.limits import Limits, Refused
from aut.serving.openapi import ENCODINGS, FORMATS, POOLS, TOLD, WORK, completed
from aut.serving.service import Answered, Check, Service, unless_gone
from aut.serving.versions import Served

BIG = 1 << 16  # numbers of an answer that is written in a thread


def create(service: Service) -> Gate:
    """The application, behind its gate."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="aut",
        summary="Audio embeddings and classes from the registered encoder.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # both pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    app.add_exception_handler(HTTPException, _plain)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(Exception, _failed)
    for path, worker in WORKERS.items():
        app.post(path, response_model=None, **WORK[path])(worker)
    for path, teller in TELLERS.items():
        app.get(path, response_model=None, response_class=Response, responses=TOLD[path])(teller)
    app.openapi = completed(app.openapi)  # type: ignore[method-assign]
    pages.add_to(app)
    return Gate(app, service, WORKERS)


async def embeddings(request: Request) -> Response:
    """Embeddings of clips: files of a form, a raw body, or base64 in JSON. Equal to `aut.load_encoder(...).encode`."""
    asked = await _asked(request)
    given = asked.options
    pool = _choice(given, "pool", POOLS)
    format = _choice(given, "format", FORMATS)
    if _choice(given, "encoding_format", ENCODINGS) == "base64":
        format = "base64"
    served = _served(request, given)
    _check_dimensions(given, served)
    ask = Ask(frames=pool == "none", layer=_number(given, "layer", None, 0, 10_000))
    service = _service(request)

    def check(served: Served, seconds: Sequence[float]) -> None:
        if ask.frames:
            frames = [math.ceil(s / served.encoder.hop_s) + 1 for s in seconds]
            size = check_size(frames, served.encoder.width, format, service.limits.answer_bytes)
            hold_answer(request.scope, service.slots, size)

    done = await _answered(request, served, asked.files, ask, check)
    arrays = [r["frames" if ask.frames else "valid"] for r in done.results]
    args = (arrays, done.seconds, served.pointer.address, format)
    if sum(a.size for a in arrays) > BIG:
        return await service._in_thread(answer, *args)
    return answer(*args)


async def classify(request: Request) -> Response:
    """Labels with probabilities from each probe set's head; where registered, the nearest clips of the probe sets."""
    asked = await _asked(request)
    top = _number(asked.options, "top", 5, 1, 1000) or 5
    neighbours = _number(asked.options, "neighbours", 0, 0, 100) or 0
    served = _served(request, asked.options)
    heads, near = served.heads, served.neighbours
    poolings = tuple(sorted({"valid", *(head.pooling for head in heads.values())}))
    done = await _answered(request, served, asked.files, Ask(poolings=poolings))
    rows = []
    for i, (result, seconds) in enumerate(zip(done.results, done.seconds, strict=True)):
        sets = {name: {"top": _top(head, result, top)} for name, head in heads.items()}
        if neighbours:
            for name, n in near.items():
                sets.setdefault(name, {})["nearest"] = n.nearest(result["valid"], neighbours)
        rows.append({"index": i, "seconds": round(seconds, 3), "sets": sets})
    return dumped({"object": "list", "model": served.pointer.address, "data": rows})


async def features(request: Request) -> Response:
    """What the model hears of one clip: waveform envelope and log-mel, for a picture. Its first 30 s."""
    asked = await _asked(request)
    return dumped(await unless_gone(request, _service(request).heard(asked.files, request.scope[DEADLINE])))


async def invocations(request: Request) -> Response:
    """MLflow's scoring protocol: a table with audio as base64 in the column `audio`."""
    asked = await _asked(request, parse_mlflow)
    done = await _answered(request, _served(request, {}), asked.files, Ask())
    return dumped({"predictions": [{"embedding": result["valid"]} for result in done.results]})


async def models(request: Request) -> Response:
    """The version that answers, its heads and a summary of its evidence."""
    served = _service(request).watcher.answering
    return dumped({"object": "list", "data": [served.described()] if served else []})


async def evidence(request: Request) -> Response:
    """evidence.json of the version that answers."""
    found = _service(request).watcher.served.evidence
    if found is None:
        raise Refused(404, "no_evidence", "this version carries no evidence")
    return dumped(found)


async def report(request: Request) -> Response:
    """report.html of the version that answers."""
    found = _service(request).watcher.served.report
    if found is None:
        raise Refused(404, "no_report", "this version carries no report")
    return Response(found, media_type="text/html; charset=utf-8")


async def live() -> Response:
    """200 while the process answers."""
    return dumped({"live": True})


async def ready(request: Request) -> Response:
    """200 once a version answers; says where it came from, and whether the registry is away."""
    watcher = _service(request).watcher
    told = watcher.status()
    if not told["ready"]:
        try:
            _ = watcher.served
        except Refused as refused:
            return dumped(told | refused.body(), 503, refused.headers())
    return dumped(told)


async def ping(request: Request) -> Response:
    """MLflow's health check: 200 once a version answers, else 404."""
    return Response("\n", 200 if _service(request).watcher.answering else 404, media_type="application/json")


async def mlflow_version() -> Response:
    """MLflow's version, as its scoring server tells it."""
    try:
        told = metadata.version("mlflow")
    except metadata.PackageNotFoundError:  # a folder is served, without a registry
        told = __version__
    return Response(told, media_type="application/json")


async def prometheus(request: Request) -> Response:
    """Counters in Prometheus' text format."""
    return Response(_service(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


WORKERS: dict[str, Callable[[Request], Awaitable[Response]]] = {
    "/v1/embeddings": embeddings,
    "/v1/classify": classify,
    "/v1/features": features,
    "/invocations": invocations,
}
TELLERS: dict[str, Callable[..., Awaitable[Response]]] = {
    "/v1/models": models,
    "/v1/evidence": evidence,
    "/report": report,
    "/health/live": live,
    "/health/ready": ready,
    "/health": ready,
    "/ping": ping,
    "/version": mlflow_version,
    "/metrics": prometheus,
}


Parser = Callable[[bytes, Headers, Limits], Awaitable[Asked]]


def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


async def _asked(request: Request, parse: Parser = parse) -> Asked:
    service = _service(request)
    with service.slots.reading() as count:
        body = await body_of(request, service.limits, count, request.scope[DEADLINE])
        asked = await parse(body, request.headers, service.limits)
    if request.scope["query_string"]:  # the body's word counts more
        asked.options = known(dict(request.query_params)) | asked.options
    return asked


def _served(request: Request, options: dict[str, Any]) -> Served:
    """The version that answers this request, all of it. Refused 404 where another is asked for."""
    served, name = _service(request).watcher.served, options.get("model")
    if name is None or (isinstance(name, str) and served.goes_by(name)):
        return served
    told = f"'{str(name)[:80]}' is not served here, {served.pointer.address} is"
    raise Refused(404, "model", told)


async def _answered(
    request: Request, served: Served, files: list[bytes], ask: Ask, check: Check | None = None
) -> Answered:
    done = await unless_gone(request, _service(request).answer(served, files, ask, request.scope[DEADLINE], check))
    request.scope[SERVED] = done.served
    return done


def _top(head: Any, result: Any, count: int) -> list[dict[str, Any]]:
    p_C = head.probabilities(result[head.pooling][None])[0]
    return [{"label": head.labels[c], "probability": round(float(p_C[c]), 6)} for c in (-p_C).argsort()[:count]]


def _choice(options: dict[str, Any], name: str, allowed: tuple[str, ...]) -> Any:
    """One of the allowed; the first where nothing is said."""
    value = options.get(name, allowed[0])
    if value not in allowed:
        raise Refused(400, name, f"{name} must be one of {', '.join(allowed)}")
    return value


def _number(options: dict[str, Any], name: str, default: int | None, low: int, high: int) -> int | None:
    value = options.get(name, default)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 8:
        value = int(value)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Refused(400, name, f"{name} must be a whole number from {low} to {high}")
    return value


def _check_dimensions(options: dict[str, Any], served: Served) -> None:
    """OpenAI's option, for models whose first numbers are an embedding, too: these are not."""
    wanted, width = _number(options, "dimensions", None, 1, 1_000_000), served.encoder.width
    if wanted is not None and wanted != width:
        raise Refused(400, "dimensions", f"embeddings of this version have {width} dimensions and are not shortened")


async def _refused(request: Request, error: Exception) -> Response:
    refused = cast(Refused, error)
    _service(request).metrics.refusals.labels(refused.reason).inc()
    headers = refused.headers() | ({"Connection": "close"} if refused.status in (408, 413) else {})
    return dumped(refused.body(), refused.status, headers)


async def _failed(request: Request, _: Exception) -> Response:
    return await _refused(request, failed())


async def _plain(_: Request, error: Exception) -> Response:
    """Starlette's own: no such route, wrong method."""
    found = cast(HTTPException, error)
    body = Refused(found.status_code, "route", str(found.detail)).body()
    return dumped(body, found.status_code, dict(found.headers or {}))  # Allow, of 405
