"""Gate: what every request passes first. Key, fullness, headers of the version, security headers, counting.

In    ASGI
Out   the same, with each response naming its version
Why   pure ASGI, because a full server must say 429 before it has routed, parsed or read anything
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aut.serving.limits import Refused
from aut.serving.service import Service

log = logging.getLogger("aut.serving")
GUARDED = ("/v1/", "/invocations", "/metrics", "/report")
WORK = ("/v1/embeddings", "/v1/classify", "/v1/features", "/invocations")
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
DEADLINE = "aut.deadline"
"""Key of the scope: until when, of the loop's clock, the body must have come and the answer be made."""


class Gate:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service
        self._key = service.key.encode() if service.key else None
        self._hosts = service.hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, path = time.perf_counter(), scope["path"]
        status, begun, ended = 500, False, False
        scope[DEADLINE] = asyncio.get_running_loop().time() + self.service.limits.request_s

        async def counted(message: Message) -> None:
            nonlocal status, begun, ended
            if message["type"] == "http.response.body":
                ended = not message.get("more_body", False)
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = [*message["headers"], *self._headers(scope)]
            await send(message)

        try:
            self._admit(scope)
            await self.app(scope, receive, counted)
        except Refused as refused:
            await self.refuse(refused, counted)
        except Exception as error:
            if begun and not ended:  # the connection is all that can be ended
                raise
            log.exception("a request failed: %s", type(error).__name__)
            if not begun:
                await self.refuse(failed(), counted)
        finally:
            route = path if path in ROUTES else "other"
            self.service.metrics.answered(route, status, time.perf_counter() - started)

    async def refuse(self, refused: Refused, send: Send) -> None:
        self.service.metrics.refusals.labels(refused.reason).inc()
        body = json.dumps(refused.body()).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers()}
        if refused.status in (401, 408, 413, 429):  # an unread body is not worth reading
            headers |= {"WWW-Authenticate": "Bearer"} if refused.status == 401 else {}
            headers |= {"Connection": "close"} if refused.status in (408, 413) else {}
        await send({"type": "http.response.start", "status": refused.status, "headers": _raw(headers)})
        await send({"type": "http.response.body", "body": body})

    def _admit(self, scope: Scope) -> None:
        path = scope["path"]
        if self._hosts is not None and (name := _named(scope)) not in self._hosts:
            raise Refused(403, "host", f"'{name[:80]}' is not a name of this server: set AUT_HOSTS, or AUT_SERVE_KEY")
        if self._key and path.startswith(GUARDED) and not hmac.compare_digest(_given(scope), self._key):
            raise Refused(401, "key", "an API key is needed: Authorization: Bearer KEY")
        if path in WORK and scope["method"] == "POST":
            self.service.slots.check()

    def _headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        served = scope.get(SERVED) or self.service.watcher.answering
        csp = REPORT_CSP if scope["path"] == "/report" else CSP
        page = PAGE if scope["path"] == "/" else {}
        return _raw({**FIXED, **page, "Content-Security-Policy": csp, **(served.headers() if served else {})})


def failed() -> Refused:
    """What is told of an error that nobody expected."""
    return Refused(500, "internal", "the server failed; its log says why")


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


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(k.lower().encode("latin-1"), v.encode("latin-1", "replace")) for k, v in headers.items()]
