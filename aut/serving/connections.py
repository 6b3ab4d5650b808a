"""Connections: a client that says nothing, sends headers or requests without end, or reads no answer, is let go.

In    a connection of uvicorn's
Out   the same, closed where no headers were whole in time or in size, or where an answer stands still
Why   uvicorn's keep-alive timer runs between requests only: before the first one, and while headers drip, nobody
      counts, and its parser keeps headers of any length and all requests of one piece. An
      answer lies in memory until it is read (gate.py slices and counts it); bodies have the Gate's deadline. What is
      no HTTP is refused here, in the form and with the headers of all other answers.
Price a connection that a pool opens ahead is closed after `HEADERS_S` without a request
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from aut.serving.limits import Refused, raw

HEADERS_S = 15.0  # from the connection, or a request's first byte, until its headers are whole
HEAD_BYTES = 1 << 18  # that are no body, at once: headers, trailers, marks of chunks
PIPELINED = 8  # requests that wait for the answers before them; no common client sends a second
OPEN = "aut.open"
"""Key of the scope: connections that are open."""
READ_S = 30.0  # within which a client has read the rest of its answer,
LEAST = 64  # or so many slices of a longer one: 4 MB


class Connection(HttpToolsProtocol):
    """uvicorn's, with two more timers and counts."""

    always: Callable[[], Iterable[tuple[bytes, bytes]]] = staticmethod(tuple)  # headers of refusals
    _headers: asyncio.TimerHandle | None = None
    _answer: asyncio.TimerHandle | None = None
    _head = 0  # bytes since the last of a body
    _read = 0  # slices since the timer began

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._headers, self._answer):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head += len(data)
        super().data_received(data)
        if self._head > HEAD_BYTES and not self.transport.is_closing():
            told = f"headers of over {HEAD_BYTES >> 10} KB, or that much beside a body"
            self._refuse(Refused(431, "headers", told))
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed."""
        self._refuse(Refused(400, "http", msg))
        self.transport.close()
        self._watch_answer()

    def _refuse(self, refused: Refused) -> None:
        body, status = refused.json(), HTTPStatus(refused.status)
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        lines = [b"%s: %s" % header for header in (*raw(headers), *self.always())]
        first = f"HTTP/1.1 {status.value} {status.phrase}".encode()
        self.transport.write(b"\r\n".join([first, *lines, b"", body]))

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= PIPELINED:
            raise ValueError("too many requests wait for their turn")  # ends the parsing: 400
        super().on_message_begin()
        self.scope[OPEN] = len(self.connections)  # type: ignore[literal-required]
        if self._headers is None:
            self._await_headers()
        if self._answer and not self.transport.get_write_buffer_size():  # the answer before has been read
            self._answer.cancel()
            self._answer = None

    def on_headers_complete(self) -> None:
        if self._headers:
            self._headers.cancel()
            self._headers = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_answer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read += 1

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_answer()

    def _await_headers(self) -> None:
        self._headers = self.loop.call_later(HEADERS_S, self.transport.abort)

    def _watch_answer(self) -> None:
        if self._answer is None and self.transport.get_write_buffer_size():  # also where it closes after the answer
            self._read, self._answer = 0, self.loop.call_later(READ_S, self._look_again)

    def _look_again(self) -> None:
        """More to come: enough was read meanwhile. The last of it: all was."""
        self._answer = None
        ended = self.cycle is None or self.cycle.response_complete
        if self.transport.get_write_buffer_size() and self._read < (1 if ended else LEAST):
            self.transport.abort()
        else:
            self._watch_answer()


def named(headers: Callable[[], Iterable[tuple[bytes, bytes]]]) -> type[Connection]:
    """Connections whose own refusals carry these headers, too."""
    return type("Named", (Connection,), {"always": staticmethod(headers)})
