"""Connections: a client that says nothing, or does not read its answer, is let go.

In    a connection of uvicorn's
Out   the same, closed where no headers were whole in time, or where an answer stands still
Why   uvicorn's keep-alive timer runs between requests only: before the first one, and while headers drip, nobody
      counts. An answer lies in memory until it is read; bodies have the Gate's deadline.
Price a connection that a pool opens ahead is closed after `HEADERS_S` without a request
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS_S = 15.0  # from the connection, or a request's first byte, until its headers are whole
READ_S = 30.0  # within which a client has read something of what waits for it


class Connection(HttpToolsProtocol):
    """uvicorn's, with two more timers."""

    _headers: asyncio.TimerHandle | None = None
    _answer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._headers, self._answer):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._headers is None:
            self._await_headers()

    def on_headers_complete(self) -> None:
        if self._headers:
            self._headers.cancel()
            self._headers = None
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._answer is None:
            self._watch_answer()

    def _await_headers(self) -> None:
        self._headers = self.loop.call_later(HEADERS_S, self.transport.abort)

    def _watch_answer(self) -> None:
        waiting = 0 if self.transport.is_closing() else self.transport.get_write_buffer_size()
        self._answer = self.loop.call_later(READ_S, self._look_again, waiting) if waiting else None

    def _look_again(self, before: int) -> None:
        if self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._watch_answer()
