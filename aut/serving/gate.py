"""Gate: what every request passes first. Key, fullness, headers of the version, security headers, counting.

In    ASGI
Out   the same, with each response naming its version
Why   pure ASGI, because a full server must say 429 before it has routed, parsed or read anything; and what computes is
      called from here, because the framework's own layers cost 0.4 ms a request on busy cores
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aut.serving.connections import OPEN
from aut.serving.limits import Refused, Slots, raw
from aut.serving.openapi import WORK
from aut.serving.service import Service
from aut.serving.versions import Served

log = logging.getLogger("aut.serving")
GUARDED = ("/v1/", "/invocations", "/metrics", "/report")
ROUTES = {*WORK, "/v1/models", "/v1/evidence", "/metrics", "/report", "/ping", "/version", "/"}
ROUTES |= {"/health/live", "/health/ready", "/health", "/openapi.json"}
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
REPORT_CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
FIXED = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PAGE = {"Permissions-Policy": "microphone=(self), camera=(), geolocation=()"}
SERVED = "aut.served"
"""Key of the scope where a handler leaves the version that computed its answer."""
HELD = "aut.held"
"""Key of the scope: bytes of memory set aside for the answer."""
DEADLINE = "aut.deadline"
"""Key of the scope: until when, of the loop's clock, the body must have come and the answer be made."""


SLICE = 1 << 16  # bytes of an answer that wait in a connection at once: the next goes when they have been read
Worker = Callable[[Request], Awaitable[Response]]


class Gate:
    """Wraps the application. `workers` answer a POST to their path without it."""

    def __init__(self, app: ASGIApp, service: Service, workers: Mapping[str, Worker]) -> None:
        self.app, self.service, self._workers = app, service, workers
        self._key = service.key.encode() if service.key else None
        self._hosts = service.hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, path = time.perf_counter(), scope["path"]
        status, begun, ended = 500, False, False
        if head := scope["method"] == "HEAD":  # as GET, without its body; the server keeps the scope it gave
            scope = {**scope, "method": "GET"}
        scope[DEADLINE] = asyncio.get_running_loop().time() + self.service.limits.request_s

        async def counted(message: Message) -> None:
            nonlocal status, begun, ended
            if message["type"] == "http.response.body":
                for part in sliced({**message, "body": b""} if head else message):
                    await send(part)
                ended = not message.get("more_body", False)
                return
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = [*message["headers"], *self.headers(path, scope.get(SERVED))]
            await send(message)

        try:
            self._admit(scope)
            worker = self._workers.get(path) if scope["method"] == "POST" else None
            if worker is None:
                await self.app(scope, receive, counted)
            else:
                scope["app"] = self.app
                answer = await worker(Request(scope, receive))
                hold_answer(scope, self.service.slots, len(answer.body))
                await answer(scope, receive, counted)
        except Refused as refused:
            await self.refuse(refused, counted)
        except Exception as error:
            if begun and not ended:  # the connection is all that can be ended
                raise
            log.exception("a request failed: %s", type(error).__name__)
            if not begun:
                await self.refuse(failed(), counted)
        finally:
            self.service.slots.answers -= scope.get(HELD, 0)
            scope.pop(SERVED, None)  # an idle connection keeps its last scope, and would keep the version's processes
            route = path if path in ROUTES else "other"
            self.service.metrics.answered(route, status, time.perf_counter() - started)

    async def refuse(self, refused: Refused, send: Send) -> None:
        self.service.metrics.refusals.labels(refused.reason).inc()
        body = refused.json()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers()}
        if refused.status in (401, 408, 413, 429):  # an unread body is not worth reading
            headers |= {"WWW-Authenticate": "Bearer"} if refused.status == 401 else {}
            closes = refused.status in (408, 413) or refused.reason == "connections"
            headers |= {"Connection": "close"} if closes else {}
        await send({"type": "http.response.start", "status": refused.status, "headers": raw(headers)})
        await send({"type": "http.response.body", "body": body})

    def _admit(self, scope: Scope) -> None:
        path = scope["path"]
        if scope.get(OPEN, 0) > self.service.limits.connections and not path.startswith("/health"):
            raise Refused(429, "connections", f"{scope[OPEN]:,} connections are open: try again later", 1.0)
        if self._hosts is not None and (name := _named(scope)) not in self._hosts:
            raise Refused(403, "host", f"'{name[:80]}' is not a name of this server: set AUT_HOSTS, or AUT_SERVE_KEY")
        if self._key and path.startswith(GUARDED) and not hmac.compare_digest(_given(scope), self._key):
            raise Refused(401, "key", "an API key is needed: Authorization: Bearer KEY")
        if path in WORK and scope["method"] == "POST":
            self.service.slots.check()

    def headers(self, path: str = "", served: Served | None = None) -> list[tuple[bytes, bytes]]:
        """Of every answer: those of `served`, else of the version that answers now."""
        served = served or self.service.watcher.answering
        return [*_secured(path), *(served.headers if served else ())]


def hold_answer(scope: Any, slots: Slots, size: int) -> None:
    """Sets memory aside until the client has read its answer; short ones are always let through. Refused 429."""
    size = size if size > SLICE else 0
    slots.take_answer(size - scope.get(HELD, 0))
    scope[HELD] = size


def sliced(message: Message) -> Iterator[Message]:
    """A message of a body as several, each of at most `SLICE` bytes."""
    body, more = message.get("body", b""), message.get("more_body", False)
    for start in range(0, max(1, len(body)), SLICE):
        end = start + SLICE
        yield {**message, "body": body[start:end], "more_body": more or end < len(body)}


def failed() -> Refused:
    """What is told of an error that nobody expected."""
    return Refused(500, "internal", "the server failed; its log says why")


def _secured(path: str) -> list[tuple[bytes, bytes]]:
    return {"/": ON_PAGE, "/report": ON_REPORT}.get(path, ON_ALL)


def _named(scope: Any) -> str:
    """The host that a request asks for, without its port."""
    name: str = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
    return name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]


def _given(scope: Any) -> bytes:
    """The key of a request, as bytes of any length: compare_digest takes no text beyond ASCII."""
    headers = dict(scope["headers"])
    bearer: bytes = headers.get(b"authorization", b"")
    if bearer[:7].lower() == b"bearer ":
        return bytes(bearer[7:].strip())
    return bytes(headers.get(b"x-api-key", b""))


ON_ALL = raw({**FIXED, "Content-Security-Policy": CSP})
ON_PAGE = raw({**FIXED, **PAGE, "Content-Security-Policy": CSP})
ON_REPORT = raw({**FIXED, "Content-Security-Policy": REPORT_CSP})
