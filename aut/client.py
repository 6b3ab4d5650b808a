"""Client: a served encoder as a function. `aut.Client(url).embed("clip.wav")`; `aut.AsyncClient` is its twin.

In    a path, the bytes of a file, or an array with its rate
Out   one vector [D], or frames [F, D]; labels with probabilities
Why   what to send, what an answer means and when to ask again are functions without a connection; both clients are a
      loop around them. Price: httpx (the extra aut[client]).
Run   python -c 'import aut; print(aut.Client("http://127.0.0.1:8080").embed("clip.wav").shape)'

429 and 503 are asked again after what Retry-After says (else 0.5 s, doubling), and so are connections that fail, while
the time allowed lasts. What would fail again is told at once.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from aut.errors import AutError, ConfigError, DataError

if TYPE_CHECKING:
    import httpx

Audio: TypeAlias = "str | Path | bytes | NDArray[Any]"
Pool = Literal["mean", "none"]
AGAIN = (429, 503)
TIMEOUT_S = 60.0
MAX_CHANNELS = 8  # as aut/encoders/api.py
T = TypeVar("T")


class ServerError(AutError):
    """The server refused, or did not answer in time. `status` is None without an answer."""

    def __init__(self, what: str, status: int | None = None, reason: str = "") -> None:
        super().__init__(what)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Call:
    """One request, before it is sent."""

    path: str
    query: Mapping[str, str]
    body: bytes


class Client:
    """Talks to one server. `timeout_s` is of a whole call, waiting and repeating included; `key` its API key.

    `version` is what answered last: models:/NAME/NUMBER. Usable as a context manager, and from several threads.
    """

    def __init__(
        self, url: str, *, key: str | None = None, timeout_s: float = TIMEOUT_S, transport: Any = None
    ) -> None:
        self.timeout_s = timeout_s
        self.version: str | None = None
        made = _library().Client(base_url=_address(url), headers=_headers(key), transport=transport)
        self._http = _hurry().hurried(made)

    def embed(
        self, audio: Audio, rate_hz: int | None = None, *, pool: Pool = "mean", layer: int | None = None
    ) -> NDArray[np.float32]:
        """One vector [D], or with pool='none' the frames [F, D]. An array needs its `rate_hz`.

        DataError: the audio cannot be read here or there. ServerError: refused, or no answer in time.
        """
        return _array(self._send(embedding_call(audio, rate_hz, pool, layer)))

    def classify(self, audio: Audio, rate_hz: int | None = None, *, top: int = 5) -> dict[str, list[dict[str, Any]]]:
        """The most likely labels of each probe set: {set: [{label, probability}, ...]}."""
        return _labels(self._send(classes_call(audio, rate_hz, top)))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, call: Call) -> httpx.Response:
        patience = Patience(self.timeout_s)
        while True:
            try:
                answer = self._whole(call, patience)
            except _library().RequestError as error:
                time.sleep(patience.after_failure(error))
                continue
            wait = patience.after(answer)
            if wait is None:
                self.version = answer.headers.get("x-model-version")
                return answer
            time.sleep(wait)

    def _whole(self, call: Call, patience: Patience) -> httpx.Response:
        """httpx's own limit is of each wait for bytes: a server that drips would have no end."""
        given = {"params": call.query, "content": call.body, "timeout": patience.left()}
        with _hurry().until(patience.until), self._http.stream("POST", call.path, **given) as answer:
            parts = []
            for part in answer.iter_bytes():
                parts.append(part)
                if patience.over():
                    raise _library().ReadTimeout("its answer came too slowly")
            return _read(answer, parts)


class AsyncClient:
    """`Client` for asyncio: the same arguments, the same errors."""

    def __init__(
        self, url: str, *, key: str | None = None, timeout_s: float = TIMEOUT_S, transport: Any = None
    ) -> None:
        self.timeout_s = timeout_s
        self.version: str | None = None
        self._http = _library().AsyncClient(base_url=_address(url), headers=_headers(key), transport=transport)

    async def embed(
        self, audio: Audio, rate_hz: int | None = None, *, pool: Pool = "mean", layer: int | None = None
    ) -> NDArray[np.float32]:
        """See `Client.embed`."""
        return _array(await self._send(embedding_call(audio, rate_hz, pool, layer)))

    async def classify(
        self, audio: Audio, rate_hz: int | None = None, *, top: int = 5
    ) -> dict[str, list[dict[str, Any]]]:
        """See `Client.classify`."""
        return _labels(await self._send(classes_call(audio, rate_hz, top)))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(self, call: Call) -> httpx.Response:
        patience = Patience(self.timeout_s)
        while True:
            try:
                answer = await self._whole(call, patience)
            except _library().RequestError as error:
                await asyncio.sleep(patience.after_failure(error))
                continue
            wait = patience.after(answer)
            if wait is None:
                self.version = answer.headers.get("x-model-version")
                return answer
            await asyncio.sleep(wait)

    async def _whole(self, call: Call, patience: Patience) -> httpx.Response:
        given = {"params": call.query, "content": call.body, "timeout": patience.left()}
        try:
            async with asyncio.timeout(patience.left()), self._http.stream("POST", call.path, **given) as answer:
                return _read(answer, [part async for part in answer.aiter_bytes()])
        except TimeoutError:
            raise _library().ReadTimeout("its answer came too slowly") from None


class Patience:
    """How long to wait before asking again, and when to give up."""

    def __init__(self, timeout_s: float) -> None:
        self._begun = time.monotonic()
        self.until, self._pause_s = self._begun + timeout_s, 0.5

    def left(self) -> float:
        return max(0.001, self.until - time.monotonic())

    def over(self) -> bool:
        return time.monotonic() >= self.until

    def after(self, answer: httpx.Response) -> float | None:
        """Seconds to wait; None when the answer is one. ServerError or DataError when it is a refusal."""
        if answer.status_code == 200:
            return None
        error = refusal(answer)
        if answer.status_code not in AGAIN:
            raise error
        return self._pause(retry_s(answer.headers.get("retry-after", "")), error)

    def after_failure(self, error: Exception) -> float:
        """Seconds to wait after a connection that failed. ServerError where it would fail again, or time is up."""
        library, why = _library(), str(error) or type(error).__name__
        if not isinstance(error, library.TimeoutException | library.NetworkError | library.RemoteProtocolError):
            raise ServerError(f"the request cannot be sent, or its answer not read: {why}")
        spent = time.monotonic() - self._begun
        return self._pause(0.0, ServerError(f"no answer after {spent:.1f} s: {why}"))

    def _pause(self, told_s: float, error: AutError) -> float:
        pause_s = told_s or self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - spread only
        self._pause_s *= 2
        if pause_s >= self.left():
            raise error
        return pause_s


def retry_s(told: str) -> float:
    """Seconds that Retry-After asks for, a number or a date; 0 where it says nothing."""
    if told.isascii() and told.isdigit():
        return float(told)
    try:
        then = parsedate_to_datetime(told)
    except ValueError:
        return 0.0
    return max(0.0, (then.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def embedding_call(audio: Audio, rate_hz: int | None, pool: Pool, layer: int | None) -> Call:
    query = {"pool": pool, "format": "npy"} | ({} if layer is None else {"layer": str(layer)})
    return Call("/v1/embeddings", query, audio_bytes(audio, rate_hz))


def classes_call(audio: Audio, rate_hz: int | None, top: int) -> Call:
    return Call("/v1/classify", {"top": str(top)}, audio_bytes(audio, rate_hz))


def audio_bytes(audio: Audio, rate_hz: int | None) -> bytes:
    """A file as it is; an array [T], [C, T] or [T, C] (the shorter axis is channels) as a WAV of float32 samples, or
    int16, which loses nothing."""
    if isinstance(audio, bytes):
        return audio
    if isinstance(audio, str | os.PathLike):
        try:
            return Path(audio).expanduser().read_bytes()
        except OSError as error:
            raise DataError(f"{audio} cannot be read: {error.strerror or error}") from None
    if rate_hz is None:
        raise DataError("an array says nothing of its rate", "give rate_hz")
    import soundfile

    array = np.asarray(audio)
    if array.dtype != np.int16 and not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"an array has values of type {array.dtype}", "give float in [-1, 1] or int16")
    if array.ndim == 2 and array.shape[0] < array.shape[1] and array.shape[0] <= MAX_CHANNELS:
        array = array.T
    if array.dtype != np.int16:
        array = array.astype(np.float32)
    held = io.BytesIO()
    subtype = "PCM_16" if array.dtype == np.int16 else "FLOAT"
    try:
        soundfile.write(held, array, rate_hz, format="WAV", subtype=subtype)
    except (ValueError, RuntimeError, IndexError) as error:
        raise DataError(f"an array of shape {array.shape} is no audio: {error}", "give [samples]") from None
    return held.getvalue()


def refusal(answer: httpx.Response) -> AutError:
    """The error a refusal stands for: DataError where the audio is at fault."""
    try:
        told = answer.json()["error"]
        reason, message = str(told["reason"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        reason, message = "", f"the server answered {answer.status_code}"
    if answer.status_code in (413, 422):
        return DataError(f"{reason}: {message}")
    return ServerError(f"{message} ({answer.status_code})", answer.status_code, reason)


def _array(answer: httpx.Response) -> NDArray[np.float32]:
    return _understood(answer, lambda: np.asarray(_rows(answer.content)[0], np.float32))


def _labels(answer: httpx.Response) -> dict[str, list[dict[str, Any]]]:
    def sets() -> dict[str, list[dict[str, Any]]]:
        return {name: found["top"] for name, found in json.loads(answer.content)["data"][0]["sets"].items()}

    return _understood(answer, sets)


def _rows(content: bytes) -> NDArray[Any]:
    rows = np.load(io.BytesIO(content), allow_pickle=False)
    if not isinstance(rows, np.ndarray):
        raise TypeError(type(rows).__name__)
    return rows


def _understood(answer: httpx.Response, read: Callable[[], T]) -> T:
    """ServerError where something else answers at this address."""
    try:
        return read()
    except (ValueError, TypeError, LookupError, AttributeError, EOFError, OSError):
        kind = answer.headers.get("content-type", "no type")
        told = f"the answer ({kind[:80]}) is not what aut serve gives: is the address right?"
        raise ServerError(told, answer.status_code) from None


def _read(answer: httpx.Response, parts: list[bytes]) -> httpx.Response:
    """The answer with its content, which has been decompressed on the way."""
    headers = {k: v for k, v in answer.headers.items() if k not in ("content-encoding", "transfer-encoding")}
    whole: httpx.Response = _library().Response(answer.status_code, headers=headers, content=b"".join(parts))
    return whole


def _address(url: str) -> str:
    scheme, colon, rest = url.partition("://")
    if scheme not in ("http", "https") or not rest.strip("/") or len(url.split()) != 1:
        raise ConfigError(f"'{url}' is no address of a server", f"write http://{rest if colon else url or 'HOST:PORT'}")
    try:
        urlsplit(url).port  # noqa: B018 - raises
        _library().URL(url)
    except (ValueError, _library().InvalidURL) as error:
        raise ConfigError(f"'{url}' is no address of a server: {error}", "write http://HOST:PORT") from None
    return url


def _headers(key: str | None) -> dict[str, bytes]:
    kind = {"Content-Type": b"application/octet-stream"}
    if key and not key.isprintable():
        raise ConfigError("the key holds a line break, or another character that no header carries", "strip it")
    return kind | ({"Authorization": f"Bearer {key}".encode()} if key else {})


def _hurry() -> Any:
    _library()
    from aut import hurry

    return hurry


def _library() -> Any:
    try:
        import httpx
    except ImportError:
        raise AutError("httpx is not installed", "install the extra: aut[client]") from None
    return httpx
