"""Intake: from a request's body to the bytes of each clip, and what JSON says beside them.

In    multipart files, a raw body, OpenAI's JSON {"input": base64 or a list}, MLflow's JSON tables
Out   `Asked`: files as bytes, options from JSON
Why   counted while it arrives and given up at the limit; base64 and forms are parsed in memory, never on a disk, and an
      address is never fetched. Price: a body is held whole, and its files until they are decoded.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import string
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartParser
from starlette.requests import Request

from aut.serving.limits import Limits, Refused

OPTIONS = ("pool", "format", "layer", "top", "neighbours", "encoding_format", "model", "user", "dimensions")
SHORT = 1 << 16  # bytes that are parsed sooner than handed to a thread
BLOCK = 1 << 20  # bytes that are counted at once
SPARE, VALUES = 1024, 64  # marks of JSON: of a document, and of each clip, a table's further columns included


@dataclass
class Asked:
    """What a request holds: clips as files, and options that JSON carried."""

    files: list[bytes]
    options: dict[str, Any] = field(default_factory=dict)


async def body_of(request: Request, limits: Limits, count: Callable[[int], int], deadline: float) -> bytes:
    """The body, counted as it comes. Refused: 413 too large, 408 not whole by the deadline, 400 cut short."""
    if (coding := request.headers.get("content-encoding", "identity").strip().lower()) not in ("", "identity"):
        raise Refused(415, "encoding", f"a body packed as '{coding[:80]}' is not unpacked: send it as it is")
    if _declared(request.headers.get("content-length")) > limits.request_bytes:
        raise _too_large(limits)
    parts: list[bytes] = []
    more = True
    try:
        async with asyncio.timeout_at(deadline):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "gone", "the client went away before its body was whole")
                parts.append(message.get("body", b""))
                more = message.get("more_body", False)
                if count(len(parts[-1])) > limits.request_bytes:
                    raise _too_large(limits)
    except TimeoutError:
        raise Refused(408, "too_slow", f"the body took over {limits.request_s:g} s") from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def parse(body: bytes, headers: Headers, limits: Limits) -> Asked:
    """Clips of a body of any accepted kind. Refused 400, 413 or 415 with the reason."""
    kind = _kind(headers)
    if kind == "multipart/form-data":
        if len(body) <= SHORT:
            asked = await _multipart(body, headers, limits)
        else:  # in a loop of its own: its parser is Python, and others are served meanwhile
            asked = await asyncio.to_thread(lambda: asyncio.run(_multipart(body, headers, limits)))
    elif kind == "application/json":
        asked = await _aside(body, lambda: _openai(_json(body, limits)))
    elif kind.startswith(("audio/", "video/ogg")) or kind in ("", "application/octet-stream", "application/ogg"):
        asked = Asked([body])
    else:
        accepted = "multipart/form-data, application/json, audio/*, or application/octet-stream"
        told = f"a body of type '{kind[:80]}' is not read: send {accepted}"
        if kind == "application/x-www-form-urlencoded":  # curl --data-binary says so of whatever it sends
            told += "; of a file's own bytes say -H 'Content-Type: application/octet-stream'"
        raise Refused(415, "media_type", told)
    return _counted(asked, limits)


async def parse_mlflow(body: bytes, headers: Headers, limits: Limits) -> Asked:
    """MLflow's scoring protocol: dataframe_split, dataframe_records, instances or inputs, audio as base64."""
    if (kind := _kind(headers)) not in ("", "application/json"):
        raise Refused(415, "media_type", f"a table of type '{kind[:80]}' is not read: send application/json")
    return _counted(await _aside(body, lambda: _mlflow(_json(body, limits))), limits)


async def _aside(body: bytes, parsed: Callable[[], Asked]) -> Asked:
    """In a thread where the body is long: the others are answered meanwhile."""
    return await asyncio.to_thread(parsed) if len(body) > SHORT else parsed()


def _mlflow(document: Any) -> Asked:
    if not isinstance(document, dict):
        raise Refused(400, "json", "a JSON object is expected")
    keys = ("dataframe_split", "dataframe_records", "instances", "inputs")
    found = [k for k in keys if k in document]
    if len(found) != 1:
        raise Refused(400, "json", f"exactly one of {', '.join(keys)} is expected")
    value = document[found[0]]
    values = _split(value) if found[0] == "dataframe_split" else _records(value)
    return Asked([_base64(v) for v in values])


def _counted(asked: Asked, limits: Limits) -> Asked:
    if not asked.files:
        raise Refused(400, "no_clip", "the request holds no clip")
    if len(asked.files) > limits.clips:
        raise Refused(413, "too_many", f"{len(asked.files)} clips, the limit of a request is {limits.clips}")
    return asked


async def _multipart(body: bytes, headers: Headers, limits: Limits) -> Asked:
    """Every file of a form, whatever its field is called; text fields are options."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(headers, stream(), max_files=limits.clips + 1, max_fields=32, max_part_size=1 << 16)
    parser.spool_max_size = limits.request_bytes + 1  # what was read into memory stays there
    try:
        form = await parser.parse()
    except Exception as error:  # of a parser that meets hostile bytes: whatever it raises, the form is at fault
        raise Refused(400, "multipart", f"the form cannot be read: {str(error)[:200] or 'malformed'}") from None
    try:
        files = [await v.read() for v in (v for _, v in form.multi_items()) if isinstance(v, UploadFile)]
        options = known({k: v for k, v in form.multi_items() if isinstance(v, str)})
    finally:
        await form.close()
    return Asked(files, options)


def _openai(document: Any) -> Asked:
    """{"input": "<base64>" or ["<base64>", ...], "encoding_format": "float" or "base64", ...}."""
    if not isinstance(document, dict) or "input" not in document:
        raise Refused(400, "json", 'a JSON object with "input" is expected: base64 audio, or a list of it')
    given = document["input"]
    values = given if isinstance(given, list) else [given]
    options = known({k: v for k, v in document.items() if k != "input"})
    return Asked([_base64(v) for v in values], options)


def known(options: dict[str, Any]) -> dict[str, Any]:
    """The options. Refused 400 where one of them is none: a misspelt one would be left out in silence."""
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise Refused(400, "option", f"unknown option '{unknown[0][:80]}', known are {', '.join(OPTIONS)}")
    return options


def _split(value: Any) -> list[Any]:
    columns, rows = (value.get("columns"), value.get("data")) if isinstance(value, dict) else (None, None)
    if not isinstance(rows, list) or not isinstance(columns, list) or "audio" not in columns:
        raise Refused(400, "json", "dataframe_split needs columns with 'audio', and data")
    at = columns.index("audio")
    if not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        raise Refused(400, "json", "every row of data must have a value for each column")
    return [row[at] for row in rows]


def _records(value: Any) -> list[Any]:
    if isinstance(value, dict) and "audio" in value:
        value = value["audio"] if isinstance(value["audio"], list) else [value["audio"]]
    if not isinstance(value, list):
        raise Refused(400, "json", "a list of rows with 'audio' is expected")
    return [row.get("audio") if isinstance(row, dict) else row for row in value]


def _json(body: bytes, limits: Limits) -> Any:
    _check_structure(body, limits)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise Refused(400, "json", f"the body is not JSON: {str(error)[:120]}") from None


def _check_structure(body: bytes, limits: Limits) -> None:
    """Refused 400 where there are more values than any clips need. A parser makes an object of each, and nothing else
    runs meanwhile, in whichever thread: 30 MB of empty lists stop a server for 10 s. Base64 has none of these bytes."""
    allowed, found = SPARE + VALUES * limits.clips, 0
    for start in range(0, len(body), BLOCK):
        found += sum(body.count(mark, start, start + BLOCK) for mark in (b",", b"[", b"{", b":"))
        if found > allowed:
            told = f"over {allowed:,} commas, colons and brackets, which {limits.clips} clips cannot need"
            raise Refused(400, "json", f"the body has {told}")


def _base64(value: Any) -> bytes:
    if not isinstance(value, str):
        raise Refused(400, "base64", f"audio must be base64 text, not {type(value).__name__}")
    head = value[:200].lstrip()
    if "://" in head.partition(",")[0]:
        raise Refused(400, "address", "addresses are not fetched: send the audio itself, as base64")
    if head.startswith("data:"):
        value = value.partition(",")[2]
    try:  # MLflow's client breaks lines
        return base64.b64decode(value.encode("ascii").translate(None, string.whitespace.encode()), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, "base64", "audio is not base64") from None


def _kind(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _declared(length: str | None) -> int:
    return int(length) if length and length.isascii() and length.isdigit() and len(length) < 20 else 0


def _too_large(limits: Limits) -> Refused:
    return Refused(413, "too_large", f"the body is over the limit of {limits.request_bytes:,} bytes")
