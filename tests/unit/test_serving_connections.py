"""Connections that say nothing, drip headers, or do not read their answer end; honest ones do not."""

import asyncio
import time
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn

from aut.serving import connections
from aut.serving.connections import Connection

BIG = 64 << 20  # beyond what the system's own buffers hold


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(connections, "HEADERS_S", 0.3)
    monkeypatch.setattr(connections, "READ_S", 0.3)


async def app(scope, receive, send):
    if scope["type"] == "http":
        body = b"x" * (BIG if scope["path"] == "/big" else 2)
        length = str(len(body)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def server():
    served = uvicorn.Server(uvicorn.Config(app, port=0, http=Connection, log_config=None, lifespan="off"))
    task = asyncio.create_task(served.serve())
    while not served.started:
        await asyncio.sleep(0.01)
    try:
        yield served.servers[0].sockets[0].getsockname()[1], served
    finally:
        served.should_exit = True
        await task


async def gone(served):
    """Seconds until the server has no connection any more; at most ten."""
    started = time.monotonic()
    while served.server_state.connections and time.monotonic() < started + 10:
        await asyncio.sleep(0.02)
    return time.monotonic() - started


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: "])
def test_a_client_that_never_ends_its_headers_is_let_go(said):
    async def ask():
        async with server() as (port, served):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            for _ in range(3):  # what drips is no sign of life
                await asyncio.sleep(0.05)
                writer.write(said[-1:])
            while not served.server_state.connections:
                await asyncio.sleep(0.01)
            took = await gone(served)
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            return took

    assert asyncio.run(ask()) < 5


def test_an_answer_that_nobody_reads_is_dropped():
    async def ask():
        async with server() as (port, served):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 10)
            writer.transport.pause_reading()
            writer.write(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
            while not served.server_state.connections:
                await asyncio.sleep(0.01)
            took = await gone(served)
            writer.transport.abort()
            return took

    assert 0.2 < asyncio.run(ask()) < 5


def test_one_that_reads_slowly_and_one_that_asks_again_are_served():
    async def ask():
        async with server() as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(3):
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await reader.readuntil(b"xx")).startswith(b"HTTP/1.1 200")
                await asyncio.sleep(0.2)
            writer.write(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            took = 0
            while took < BIG:
                took += len(await reader.read(4 << 20))
                await asyncio.sleep(0.02)
            writer.close()
            return took

    assert asyncio.run(ask()) == BIG
