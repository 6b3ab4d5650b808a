"""The client against the served encoder, and against a server that is busy, slow, or gone. Sync and async alike."""

import asyncio
import json
import threading
import time

import httpx
import numpy as np
import pytest

import aut
import aut.errors
from aut.client import Patience, ServerError
from aut.errors import ConfigError, DataError
from aut.serving.app import create
from aut.serving.service import Service
from tests.unit.serving_fixture import Shelf, file_of, serving, sound, write_version

ATOL = 1e-5


def busy(times, status=429, after="0"):
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
