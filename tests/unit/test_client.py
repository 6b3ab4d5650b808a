"""The client against the served encoder, and against a server that is busy, slow, or gone. Sync and async alike."""

import asyncio
import io
import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import numpy as np
import pytest
import soundfile

import aut
import aut.errors
from aut.client import Patience, ServerError, audio_bytes, retry_s
from aut.errors import ConfigError, DataError
from aut.serving.app import create
from aut.serving.service import Service
from tests.unit.serving_fixture import Shelf, file_of, serving, sound, write_version

ATOL = 1e-5


def busy(times, status=429, after=""):
    """A transport that refuses so many times, then gives an empty vector; it keeps what it was asked."""
    asked = []

    def answer(request):
        asked.append(request)
        if len(asked) <= times:
            body = {"error": {"reason": "busy", "message": "full"}}
            return httpx.Response(status, json=body, headers={"Retry-After": after} if after else {})
        import io

        held = io.BytesIO()
        np.save(held, np.zeros((1, 4), np.float32))
        return httpx.Response(200, content=held.getvalue(), headers={"X-Model-Version": "models:/m/1"})

    return httpx.MockTransport(answer), asked


async def both(transport, timeout_s=5.0, audio=b"x"):
    """What each of the two clients does: its result, or its error."""
    out = []
    with aut.Client("http://aut", timeout_s=timeout_s, transport=transport, key="k") as client:
        try:
            out.append(await asyncio.to_thread(client.embed, audio))
        except aut.errors.AutError as error:
            out.append(error)
    async with aut.AsyncClient("http://aut", timeout_s=timeout_s, transport=transport, key="k") as client:
        try:
            out.append(await client.embed(audio))
        except aut.errors.AutError as error:
            out.append(error)
    return out


def test_a_path_an_array_and_bytes_give_the_encoders_vector(tmp_path):
    import uvicorn

    version = write_version(tmp_path / "1")
    encoder = aut.load_encoder(version)
    clip = sound(0.9)
    path = tmp_path / "clip.flac"
    path.write_bytes(file_of(clip, kind="FLAC", subtype="PCM_24"))
    server = uvicorn.Server(uvicorn.Config(create(Service(Shelf({"1": version}, "1"))), port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.02)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        with aut.Client(url) as client:
            (expected,) = encoder.embed(clip, 16_000)
            np.testing.assert_allclose(client.embed(clip, 16_000), expected, atol=ATOL)
            np.testing.assert_allclose(client.embed(path), expected, atol=1e-4)  # 24 bits
            np.testing.assert_allclose(client.embed(file_of(clip)), expected, atol=ATOL)
            frames = client.embed(clip, 16_000, pool="none", layer=1)
            assert frames.shape == (45, encoder.width)
            top = client.classify(clip, 16_000, top=2)
            assert len(top["words"]) == 2
            assert client.version == "models:/whisper-aut/1"
            with pytest.raises(DataError, match="not_audio"):
                client.embed(b"no audio at all")
    finally:
        server.should_exit = True
        thread.join(10)


def test_the_async_twin_says_the_same(tmp_path):
    version = write_version(tmp_path / "1")
    clip = sound(0.4)

    async def ask():
        async with (
            serving(Shelf({"1": version}, "1")) as (http, _),
            aut.AsyncClient("http://aut", transport=http._transport) as client,
        ):
            return await client.embed(clip, 16_000), await client.classify(clip, 16_000)

    vector, classes = asyncio.run(ask())
    np.testing.assert_allclose(vector, aut.load_encoder(version).embed(clip, 16_000)[0], atol=ATOL)
    assert set(classes) == {"words", "scenes"}


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(status):
    transport, asked = busy(2, status)
    first, second = asyncio.run(both(transport))
    assert first.shape == second.shape == (4,)
    assert len(asked) == 4
    assert asked[0].headers["authorization"] == "Bearer k"
    assert asked[0].content == b"x"


def test_time_runs_out_with_the_servers_own_reason():
    transport, asked = busy(99, after="30")
    for error in asyncio.run(both(transport, timeout_s=0.5)):
        assert isinstance(error, ServerError)
        assert (error.status, error.reason) == (429, "busy")
    assert len(asked) == 2, "waiting 30 s would be too late: no second try"


@contextmanager
def answering(*pieces, pause_s=0.0):
    """A server that sends the pieces whatever it is asked; its address, and the connections it had."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        seen = []

        def answer(connection):
            with connection, suppress(OSError):
                connection.recv(1 << 16)
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(pause_s)

        def accept():
            with suppress(OSError):
                while len(seen) < 100:
                    seen.append(listener.accept()[0])
                    threading.Thread(target=answer, args=(seen[-1],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
        listener.shutdown(socket.SHUT_RDWR)


def failure(kind, url, **options):
    """The error of a client of this kind."""

    async def ask():
        async with kind(url, **options) as client:
            await client.embed(b"x")

    with pytest.raises(aut.errors.AutError) as caught:
        if kind is aut.AsyncClient:
            asyncio.run(ask())
        else:
            with kind(url, **options) as client:
                client.embed(b"x")
    return caught.value


@pytest.mark.parametrize("kind", [aut.Client, aut.AsyncClient])
def test_headers_that_drip_do_not_outlast_the_time_of_a_call(kind):
    lines = [b"HTTP/1.1 200 OK\r\n", *(b"X-%d: y\r\n" % n for n in range(100))]
    started = time.monotonic()
    with answering(*lines, pause_s=0.1) as (url, _):
        error = failure(kind, url, timeout_s=0.6)
    assert isinstance(error, ServerError)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("kind", [aut.Client, aut.AsyncClient])
def test_an_answer_of_something_else_is_a_servers_error(kind):
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<ht>"
    with answering(page) as (url, seen):
        error = failure(kind, url, timeout_s=5)
    assert isinstance(error, ServerError)
    assert "text/html" in str(error)
    assert len(seen) == 1


@pytest.mark.parametrize("kind", [aut.Client, aut.AsyncClient])
@pytest.mark.parametrize(("url", "key"), [("http://a:99999", "k"), ("http://a b", "k"), ("http://a", "k\n")])
def test_what_no_request_can_say_is_told_before_one_is_made(kind, url, key):
    with pytest.raises(ConfigError):
        kind(url, key=key)


@pytest.mark.parametrize("kind", [aut.Client, aut.AsyncClient])
def test_a_request_that_cannot_be_sent_is_not_repeated(kind):
    tried = []

    def answer(request):
        tried.append(request.headers["authorization"])
        raise httpx.LocalProtocolError("illegal header")

    error = failure(kind, "http://aut", key="clé", timeout_s=5, transport=httpx.MockTransport(answer))
    assert isinstance(error, ServerError)
    assert len(tried) == 1


def test_retry_after_is_a_number_or_a_date_and_nothing_is_no_storm():
    assert retry_s("7") == 7
    assert retry_s("0") == retry_s("") == retry_s("²") == retry_s("soon") == 0
    then = datetime.now(UTC) + timedelta(seconds=30)
    assert 25 < retry_s(format_datetime(then, usegmt=True)) <= 30
    assert retry_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    transport, asked = busy(999, after="0")
    asyncio.run(both(transport, timeout_s=1.0))
    assert len(asked) < 8


@pytest.mark.parametrize("shape", [(1, 1_600), (2, 1_600), (1_600, 2), (1_600,)])
def test_arrays_are_taken_as_the_encoder_takes_them(shape):
    found, rate = soundfile.read(io.BytesIO(audio_bytes(np.zeros(shape), 16_000)), always_2d=True)
    assert (len(found), rate) == (1_600, 16_000)
    for dtype in (bool, np.int32, np.uint8, object):
        with pytest.raises(DataError, match="float in"):
            audio_bytes(np.zeros(shape, dtype), 16_000)


def test_a_refusal_is_not_repeated():
    transport, asked = busy(99, 400)
    for error in asyncio.run(both(transport)):
        assert isinstance(error, ServerError)
        assert error.status == 400
    assert len(asked) == 2


def test_a_connection_that_fails_is_tried_until_time_is_up():
    tried = []

    def answer(request):
        tried.append(request)
        raise httpx.ConnectError("refused")

    for error in asyncio.run(both(httpx.MockTransport(answer), timeout_s=0.8)):
        assert isinstance(error, ServerError)
        assert error.status is None
        assert "refused" in str(error)
    assert len(tried) > 2


class Dripping(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A byte now and then, without end."""

    def __iter__(self):
        while True:
            time.sleep(0.05)
            yield b"x"

    async def __aiter__(self):
        while True:
            await asyncio.sleep(0.05)
            yield b"x"


def test_a_server_that_drips_does_not_outlast_the_time_of_a_call():
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Dripping()))
    started = time.monotonic()
    for error in asyncio.run(asyncio.wait_for(both(transport, timeout_s=0.5), 20)):
        assert isinstance(error, ServerError)
        assert "too slowly" in str(error)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("url", ["localhost:8080", "127.0.0.1", "", "ftp://a", "http://"])
@pytest.mark.parametrize("kind", [aut.Client, aut.AsyncClient])
def test_an_address_that_is_none_is_told_at_once(kind, url):
    with pytest.raises(ConfigError, match="http://"):
        kind(url)


def test_what_cannot_be_sent_is_told_before_sending():
    transport, asked = busy(0)
    with aut.Client("http://aut", transport=transport) as client:
        with pytest.raises(DataError, match="give rate_hz"):
            client.embed(np.zeros(10))
        with pytest.raises(DataError, match="cannot be read"):
            client.embed("/no/such/file.wav")
        with pytest.raises(DataError, match="no audio"):
            client.embed(np.zeros((2, 3, 4)), 16_000)
    assert asked == []


def test_pauses_grow_and_retry_after_decides():
    patience = Patience(60.0)
    answer = httpx.Response(503, content=json.dumps({}).encode())
    pauses = [patience.after(answer) for _ in range(3)]
    assert 0.25 <= pauses[0] <= 0.5
    assert 1.0 <= pauses[2] <= 2.0
    assert patience.after(httpx.Response(429, headers={"Retry-After": "7"})) == 7.0
