"""Connections that say nothing, drip headers or send too many, or do not read their answer end; honest ones do not."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
from starlette.requests import Request

from aut.serving import connections
from aut.serving.app import create
from aut.serving.connections import Connection, named
from aut.serving.gate import sliced
from aut.serving.limits import Limits, Refused
from aut.serving.service import Service, unless_gone
from aut.serving.watcher import Folder
from tests.unit.serving_fixture import write_version

BIG = 64 << 20  # beyond what the system's own buffers hold


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(connections, "HEADERS_S", 0.3)
    monkeypatch.setattr(connections, "READ_S", 0.3)
    monkeypatch.setattr(connections, "LEAST", 8)


async def app(scope, receive, send):
    if scope["type"] == "http":
        body = b"x" * {"/big": BIG, "/some": 60_000}.get(scope["path"], 2)
        length = str(len(body)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        while scope["path"] == "/takes" and (await receive()).get("more_body"):
            pass
        for part in sliced({"type": "http.response.body", "body": body}):
            await send(part)


@asynccontextmanager
async def server(app=app, http=Connection):
    served = uvicorn.Server(uvicorn.Config(app, port=0, http=http, log_config=None, lifespan="off"))
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


@pytest.mark.parametrize(("path", "more"), [("big", ""), ("some", ""), ("some", "Connection: close\r\n")])
def test_an_answer_that_nobody_reads_is_dropped(path, more):
    """Also where it has been given away whole, and where the connection is to close after it."""

    async def ask():
        async with server() as (port, served):
            served.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            held = socket.socket()
            held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            held.setblocking(False)
            await asyncio.get_running_loop().sock_connect(held, ("127.0.0.1", port))
            held.send(f"GET /{path} HTTP/1.1\r\nHost: a\r\n{more}\r\n".encode())
            while not served.server_state.connections:
                await asyncio.sleep(0.01)
            took = await gone(served)
            held.close()
            return took

    assert 0.2 < asyncio.run(ask()) < 5


@pytest.mark.parametrize("size", [0, 100_000, 700_000])
@pytest.mark.parametrize("early", [False, True])
def test_who_goes_away_is_not_worked_for(size, early):
    """Also where the body came in more pieces than are read ahead, and where it has gone before the work began."""
    told, begun = [], asyncio.Event()

    async def works(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        begun.set()
        await asyncio.sleep(0.2 * early)
        try:
            await unless_gone(Request(scope, receive), asyncio.sleep(8))
        except Refused as refused:
            told.append(refused.reason)

    async def ask():
        async with server(works) as (port, _):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode() + bytes(size))
            await asyncio.wait_for(begun.wait(), 5)
            writer.close()
            async with asyncio.timeout(5):
                while not told:
                    await asyncio.sleep(0.02)

    asyncio.run(ask())
    assert told == ["gone"]


def test_headers_and_body_of_an_answer_come_at_once():
    """One packet; and what has no body comes, too."""

    async def ask():
        async with server() as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            whole = await reader.read(1 << 16)
            writer.write(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
            bare = await asyncio.wait_for(reader.read(1 << 16), 5)
            writer.close()
            return whole, bare

    whole, bare = asyncio.run(ask())
    assert whole.endswith(b"\r\n\r\nxx")
    assert bare.startswith(b"HTTP/1.1 200 OK\r\n")
    assert bare.endswith(b"\r\n\r\n")


def test_an_answer_that_is_read_a_little_at_a_time_is_dropped(monkeypatch):
    """Though each look finds that something was read."""
    monkeypatch.setattr(connections, "READ_S", 0.5)

    async def ask():
        async with server() as (port, served):
            held = socket.socket()
            held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            held.connect(("127.0.0.1", port))
            held.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
            held.setblocking(False)
            took, started = 0, time.monotonic()
            while not served.server_state.connections:
                await asyncio.sleep(0.01)
            while served.server_state.connections and time.monotonic() < started + 20:
                with suppress(BlockingIOError):
                    took += len(held.recv(1 << 16))
                await asyncio.sleep(0.1)
            held.close()
            return took, bool(served.server_state.connections)

    took, open_ = asyncio.run(ask())
    assert 0 < took < BIG // 2
    assert not open_


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: ",
        b"POST /takes HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n",
    ],
    ids=["lines", "a value", "trailers"],
)
def test_headers_without_end_are_refused_before_they_fill_memory(start):
    async def ask():
        async with server() as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(start)
            sent, line = 0, b"y" * 9_000 if start.endswith(b"X-Long: ") else b"X-A: " + b"b" * 8_000 + b"\r\n"
            with suppress(OSError):
                while sent < BIG:
                    writer.write(line)
                    await writer.drain()
                    sent += len(line)
            with suppress(OSError):
                assert (await reader.read())[:12] in (b"", b"HTTP/1.1 431")
            writer.close()
            return sent

    assert asyncio.run(ask()) < BIG // 4  # the system's own buffers are in it


def test_requests_that_come_without_end_are_refused():
    """Some wait for their turn; a piece of thousands is not taken apart."""

    async def ask(count):
        async with server() as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * count)
            answered = 0
            with suppress(asyncio.IncompleteReadError, ConnectionResetError):
                while answered < count and (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200"):
                    assert await reader.readexactly(2) == b"xx"
                    answered += 1
            writer.close()
            return answered

    assert asyncio.run(ask(connections.PIPELINED)) == connections.PIPELINED
    assert asyncio.run(ask(5_000)) < 50


def test_a_long_body_in_short_chunks_is_taken():
    async def ask():
        async with server() as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /takes HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(4_000):
                writer.write(b"40\r\n" + b"z" * 64 + b"\r\n")
                await writer.drain()
            writer.write(b"0\r\n\r\n")
            head = await reader.readuntil(b"xx")
            writer.close()
            return head

    assert asyncio.run(ask()).startswith(b"HTTP/1.1 200")


def test_one_that_reads_slowly_and_one_that_asks_again_are_served(monkeypatch):
    """The system's buffers pass some megabytes on at once, and nothing for a while: the window is longer than that."""
    monkeypatch.setattr(connections, "READ_S", 1.5)

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
            while part := await reader.read(4 << 20):
                took += len(part)
                if took == BIG:
                    break
                await asyncio.sleep(0.005)
            writer.close()
            return took

    assert asyncio.run(ask()) == BIG


def test_what_is_refused_before_it_is_a_request_has_the_form_of_all_answers(tmp_path):
    """No HTTP, endless headers, more connections than are held: JSON, and the headers of the version."""
    gate = create(Service(Folder(write_version(tmp_path / "1")), Limits(connections=2)))
    get = b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n"

    async def answer(port, said):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().lower()
        body = await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
        return writer, head, body

    async def ask():
        await asyncio.to_thread(gate.service.watcher.look)
        async with server(gate, named(gate.headers)) as (port, _):
            out = [await answer(port, said) for said in (b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"y" * 300_000)]
            for writer, _, _ in out:
                writer.close()
            await asyncio.sleep(0.2)
            held = [await answer(port, get % b"/health/live") for _ in range(2)]
            out.append(await answer(port, get % b"/v1/models"))
            held.append(await answer(port, get % b"/health/live"))
            for writer, _, _ in [*held, *out]:
                writer.close()
            return out, held

    out, held = asyncio.run(ask())
    gate.service.watcher.stop()
    told = [(head.split()[1], json.loads(body)["error"]["reason"]) for _, head, body in out]
    assert told == [("400", "http"), ("431", "headers"), ("429", "connections")]
    for _, head, _ in out:
        assert "x-model-version: models:/1/0" in head
        assert "content-type: application/json" in head
        assert "connection: close" in head
    assert "retry-after: 1" in out[2][1]
    assert {head.split()[1] for _, head, _ in held} == {"200"}


def test_the_port_is_told_once_it_is_listened_on(tmp_path):
    write_version(tmp_path / "1")
    args = [sys.executable, "-m", "aut", "serve", "--model", str(tmp_path / "1"), "--port", "0"]
    with subprocess.Popen(args, stderr=subprocess.PIPE, text=True) as process:
        try:
            told = next(line for line in process.stderr if "aut serves on" in line)
            port = int(told.split("http://127.0.0.1:")[1].split()[0])
            socket.create_connection(("127.0.0.1", port), 5).close()
        finally:
            process.terminate()
    assert port > 0
