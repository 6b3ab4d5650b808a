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
from typing import Any, cast

from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from aut.serving.limits import Refused, raw

HEADERS_S = 15.0  # from the connection, or a request's first byte, until its headers are whole
HEAD_BYTES = 1 << 18  # that are no body, at once: headers, trailers, marks of chunks
PIPELINED = 8  # requests that wait for the answers before them; no common client sends a second
OPEN = "aut.open"
"""Key of the scope: connections that are open."""
GONE = "aut.gone"
"""Key of the scope: the connection's `Gone`."""
READ_S = 30.0  # within which a client has read the rest of its answer,
LEAST = 64  # or so many slices of a longer one: 4 MB
AHEAD = 1 << 18
"""Bytes of a body that lie in a connection until they are asked for; beyond, it is not read. uvicorn's 64 KB cost most
clips a pause and two changes of the selector, and save nothing: asyncio reads 256 KB in one go."""

httptools_impl.HIGH_WATER_LIMIT = AHEAD  # type: ignore[attr-defined]


class Gone:
    """Whether the client has gone away, and whom to tell of it."""

    def __init__(self) -> None:
        self.true = False
        self.then: list[Callable[[], object]] = []

    def tell(self) -> None:
        self.true = True
        for told in self.then:
            told()


class Joined:
    """A transport that sends headers with what follows them: one packet, and one waking of the client, for two."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._begun, self._held = False, b""

    def write(self, data: bytes) -> None:
        if not self._begun:
            self._begun, self._held = True, data
            self._loop.call_soon(self._flush)  # nothing may follow
            return
        held, self._held = self._held, b""
        self._transport.write(held + data if held else data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)


class Connection(HttpToolsProtocol):
    """uvicorn's, with two more timers and counts."""

    always: Callable[[], Iterable[tuple[bytes, bytes]]] = staticmethod(tuple)  # headers of refusals
    _headers: asyncio.TimerHandle | None = None
    _answer: asyncio.TimerHandle | None = None
    _begun = False  # a request whose headers are not whole
    _head = 0  # bytes since the last of a body
    _read = 0  # slices since the timer began

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._gone = Gone()
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._headers, self._answer):
            if timer:
                timer.cancel()
        super().connection_lost(exc)
        self._gone.tell()

    def data_received(self, data: bytes) -> None:
        self._head += len(data)
        super().data_received(data)
        if self._begun and self._headers is None:  # most headers come whole, and need no timer
            self._await_headers()
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
        cast(dict[str, Any], self.scope).update({OPEN: len(self.connections), GONE: self._gone})
        self._begun = True
        if self._answer and not self.transport.get_write_buffer_size():  # the answer before has been read
            self._answer.cancel()
            self._answer = None

    def on_headers_complete(self) -> None:
        self._begun = False
        if self._headers:
            self._headers.cancel()
            self._headers = None
        super().on_headers_complete()
        self.cycle.transport = Joined(self.transport, self.loop)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head = 0
        super().on_message_complete()
        if not self.pipeline:  # that its client goes away is read, too
            self.flow.resume_reading()

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
