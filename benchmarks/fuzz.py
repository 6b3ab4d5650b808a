"""Hostile input: malformed requests by the thousand against a real server; does it ever fail, fall over, or grow?

In    a version made here with random weights, served by `aut serve` as a process of its own
Kinds random bytes, cut files, headers that lie, small files that claim hours, clips of few samples, broken
      forms, JSON of wrong types, base64 that is none, unknown options, odd methods and paths, bodies cut short
Figures  requests, server_errors (5xx, and connections that ended without an answer to a whole request),
         rss_growth_mb (resident memory of all its processes at the end less that after a tenth of the requests)
         decoders_lost (processes that died at their work, and were replaced)
Run   python -m benchmarks.fuzz --quick      1,500 requests; else 10,000
"""

from __future__ import annotations

import base64
import io
import json
import struct
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import psutil
import soundfile

from benchmarks._common import arguments, finish, machine, say
from benchmarks._serving import Server, write_version

Rng = np.random.Generator
PATHS = ("/v1/embeddings", "/v1/classify", "/v1/features", "/invocations")
LOST = 'aut_workers_lost{kind="decoder"}'
Request = tuple[str, str, dict[str, str], bytes]
"""Method, path, headers, body."""


def good(rng: Rng, kind: str) -> bytes:
    """A short readable file."""
    held = io.BytesIO()
    rate = int(rng.choice([8_000, 16_000, 44_100]))
    samples = 0.1 * rng.standard_normal((int(rate * rng.uniform(0.05, 0.4)), int(rng.integers(1, 3))))
    soundfile.write(held, samples, rate, format=kind)
    return held.getvalue()


def noise(rng: Rng) -> bytes:
    heads = (b"", b"RIFF", b"fLaC", b"OggS", b"ID3\x04", b"\xff\xfb", b"\x80\x04\x95", b"FORM", b"caff")
    return bytes(rng.choice(np.array(heads, object))) + rng.bytes(int(rng.integers(0, 4_000)))


def cut(rng: Rng) -> bytes:
    whole = good(rng, str(rng.choice(["WAV", "FLAC", "OGG", "MP3"])))
    return whole[: int(rng.integers(0, len(whole)))]


def flipped(rng: Rng) -> bytes:
    """A file with a few bytes changed, in its header more often than not."""
    whole = bytearray(good(rng, str(rng.choice(["WAV", "FLAC", "OGG", "MP3"]))))
    reach = len(whole) if rng.random() < 0.3 else min(len(whole), 128)
    for at in rng.integers(0, reach, int(rng.integers(1, 12))):
        whole[at] = int(rng.integers(0, 256))
    return bytes(whole)


def lying(rng: Rng) -> bytes:
    """A WAV header with any rate, channels, width and length, and little behind it."""
    rate, channels = int(rng.integers(0, 1 << 32)), int(rng.integers(0, 1 << 16))
    bits, size = int(rng.choice([0, 1, 8, 16, 24, 32, 64, 65_535])), int(rng.integers(0, 1 << 32))
    form = struct.pack("<HHIIHH", int(rng.choice([0, 1, 3, 6, 0xFFFE])), channels, rate, rate, channels, bits)
    return (
        b"RIFF"
        + struct.pack("<I", size)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", size)
        + rng.bytes(int(rng.integers(0, 500)))
    )


def claiming(rng: Rng) -> bytes:
    """Hours in a small file: FLAC whose header counts two hours, or that long a silence in truth."""
    if rng.random() < 0.05:
        held = io.BytesIO()
        soundfile.write(held, np.zeros(8_000 * 600, np.int16), 8_000, format="FLAC")
        return held.getvalue()
    whole = bytearray(good(rng, "FLAC"))
    whole[21:26] = struct.pack(">Q", (int(whole[21]) & 0xF0) << 32 | int(rng.integers(1 << 27, 1 << 36)))[3:]
    return bytes(whole)


def tiny(rng: Rng) -> bytes:
    """A whole file of 1 to 10 samples at an odd rate: nothing may be left of it once it is resampled."""
    held = io.BytesIO()
    rate = int(rng.choice([2_000, 7_999, 11_025, 33_000, 44_100, 96_000, 192_000, 768_000]))
    soundfile.write(held, 0.1 * rng.standard_normal(int(rng.integers(1, 11))), rate, format="WAV")
    return held.getvalue()


AUDIO: tuple[Callable[[Rng], bytes], ...] = (noise, cut, flipped, lying, claiming, tiny)


def raw(rng: Rng) -> Request:
    kinds = ("audio/wav", "application/octet-stream", "audio/mpeg", "", "text/html", "application/x-pickle")
    body = AUDIO[int(rng.integers(len(AUDIO)))](rng)
    return "POST", _path(rng), {"Content-Type": str(rng.choice(kinds))}, body


def form(rng: Rng) -> Request:
    """Multipart: a broken file in a whole form, or the form itself broken."""
    body = AUDIO[int(rng.integers(len(AUDIO)))](rng)
    name = bytes(
        rng.choice(
            np.array([b'"file"', b'"x"; filename="a.wav"', b"\xff\xfe", b"", b'"f"; filename="' + b"A" * 3_000], object)
        )
    )
    part = b"--B\r\nContent-Disposition: form-data; name=" + name + b"\r\n\r\n" + body
    whole = part * int(rng.integers(0, 4)) + bytes(rng.choice(np.array([b"\r\n--B--\r\n", b"", b"\r\n--B"], object)))
    kind = str(rng.choice(["multipart/form-data; boundary=B", "multipart/form-data", "multipart/form-data; boundary="]))
    return "POST", _path(rng), {"Content-Type": kind}, whole


def document(rng: Rng) -> Request:
    """JSON with wrong types in every place, deep nesting, and text that is no base64."""
    text = base64.b64encode(AUDIO[int(rng.integers(len(AUDIO)))](rng)).decode()
    values: list[object] = [
        None,
        True,
        -1,
        1e300,
        "",
        "é",
        "http://localhost/secret.wav",
        "file:///etc/passwd",
        [],
        {},
        [[]],
        text,
        text[:-3],
    ]

    def pick() -> object:
        return values[int(rng.integers(len(values)))]

    documents: list[object] = [
        {"input": pick()},
        {"input": [pick() for _ in range(int(rng.integers(0, 80)))]},
        {"input": text, "pool": pick(), "format": pick(), "layer": pick()},
        {"input": text, "top": pick(), "encoding_format": pick(), str(pick()): pick()},
        {"dataframe_split": {"columns": pick(), "data": [[pick()]]}},
        {"dataframe_split": {"columns": ["audio"], "data": [pick(), [pick()]]}},
        {"dataframe_records": [pick(), {"audio": pick()}]},
        {"instances": pick()},
        {"inputs": {"audio": pick()}},
        pick(),
    ]
    body = json.dumps(documents[int(rng.integers(len(documents)))]).encode()
    body = bytes(rng.choice(np.array([body, body, body, body[:-2], b"[" * 50_000, b"\xff" + body, b"NaN"], object)))
    return "POST", _path(rng), {"Content-Type": "application/json"}, body


def odd(rng: Rng) -> Request:
    """Unknown routes, methods and options."""
    queries = (
        "?layer=99",
        "?layer=-1",
        "?layer=x",
        "?format=pickle",
        "?pool=max",
        "?top=0",
        "?top=1e9",
        "?neighbours=-4",
        "?%00",
    )
    path = str(rng.choice(["/v1/../etc/passwd", "/%ff%fe", "/v1/nothing", "//", "/app.js/..", *PATHS]))
    method = str(rng.choice(["GET", "PUT", "DELETE", "OPTIONS", "POST", "PATCH", "HEAD"]))
    headers = {
        "Authorization": "Bearer " + "k" * int(rng.integers(0, 2_000)),
        "Range": "bytes=0-",
        "Host": "evil.example" if rng.random() < 0.1 else "localhost",  # the first never reaches a route
    }
    return method, path + str(rng.choice(queries)), headers, good(rng, "WAV")


KINDS: tuple[Callable[[Rng], Request], ...] = (raw, raw, raw, form, document, odd)


def _path(rng: Rng) -> str:
    pool = "?pool=none&format=npy" if rng.random() < 0.2 else ""
    path = str(rng.choice(PATHS))
    return path + (pool if path == "/v1/embeddings" else "")


def attack(client: httpx.Client, n: int) -> str:
    """Sends request n; its status, or 'lost' where the connection ended without an answer."""
    method, path, headers, body = KINDS[n % len(KINDS)](np.random.default_rng([7, n]))
    try:
        answer = client.request(method, path, headers=headers, content=body)
    except httpx.TransportError as error:
        say(f"request {n}: {method} {path} {headers}: {type(error).__name__} {error}")
        return "lost"
    if answer.status_code >= 500:
        say(f"request {n}: {method} {path} {headers} -> {answer.status_code} {answer.text[:200]}")
    return str(answer.status_code)


def resident(pid: int) -> int:
    """Bytes of a process and all below it."""
    process = psutil.Process(pid)
    return sum(int(p.memory_info().rss) for p in (process, *process.children(recursive=True)))


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    total = 1_500 if options.quick else 10_000
    statuses: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        server = Server(write_version(scratch / "1"), scratch)
        with server, httpx.Client(base_url=server.url, timeout=60) as client:
            statuses.update(attack(client, n) for n in range(total // 10))
            before = resident(server.pid)
            statuses.update(attack(client, n) for n in range(total // 10, total))
            grown = (resident(server.pid) - before) / 2**20
            lost = sum(
                float(line.split()[-1]) for line in client.get("/metrics").text.splitlines() if line.startswith(LOST)
            )
            alive = client.get("/health/live").status_code == 200
    say(str(dict(statuses)))
    failed = sum(count for status, count in statuses.items() if status == "lost" or status.startswith("5"))
    figures = {"requests": total, "server_errors": failed + (not alive), "rss_growth_mb": max(0.0, grown)}
    figures["decoders_lost"] = lost
    facts = {"machine": machine("fastapi", "soundfile", "starlette"), "statuses": dict(statuses)}
    finish("fuzz", figures, options.keep, facts)


if __name__ == "__main__":
    main()
