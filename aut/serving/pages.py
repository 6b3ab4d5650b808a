"""Pages: the files of the page at /, from the package. No build, no outside request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

from fastapi import FastAPI
from starlette.responses import Response

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}


def add_to(app: FastAPI) -> None:
    folder = resources.files("aut.serving") / "page"
    for path, (name, kind) in FILES.items():
        app.get(path, include_in_schema=False, response_model=None)(_file((folder / name).read_bytes(), kind))


def _file(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def handler() -> Response:
        return Response(content, media_type=kind)

    return handler
