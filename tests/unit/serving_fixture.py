"""A small version made here, a source that a test moves, and an app to talk to without a socket."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from aut.audio.decode import Unreadable
from aut.encoders.clipwise import identity
from aut.encoders.tower import WhisperTower
from aut.errors import TrackingError
from aut.files import write_json
from aut.serving.app import create
from aut.serving.desk import Desk
from aut.serving.limits import Limits
from aut.serving.service import Service
from aut.serving.versions import Pointer
from aut.serving.workers import Crew

WIDTH = 32
LABELS = {"words": ["yes", "no", "stop"], "scenes": ["rain", "dog"]}


def write_version(folder: Path, seed: int = 0, width: int = WIDTH, layers: int = 2) -> Path:
    """The package of a version: an encoder with random weights, written as `aut export` does, heads, evidence."""
    write_encoder(folder / "encoder", seed, width, layers)
    rng = np.random.default_rng([seed])
    for name, labels in LABELS.items():
        head = {"weight": rng.standard_normal((len(labels), width)), "bias": np.zeros(len(labels))}
        head |= {"mean": np.zeros(width), "scale": np.ones(width)}
        (folder / "heads" / name).mkdir(parents=True)
        save_file({k: v.astype(np.float32) for k, v in head.items()}, folder / "heads" / name / "head.safetensors")
        write_json(folder / "heads" / name / "head.json", {"labels": labels, "set": name, "pooling": "valid"})
    vectors = rng.standard_normal((20, width)).astype(np.float32)
    (folder / "neighbours").mkdir()
    save_file({"valid": vectors}, folder / "neighbours/words.safetensors")
    ids = [f"words/{i}" for i in range(20)]
    write_json(folder / "neighbours/words.json", {"ids": ids, "labels": [LABELS["words"][i % 3] for i in range(20)]})
    difference = {
        "set": "words",
        "domain": "speech",
        "a": "adapted",
        "b": "base",
        "diff": 1.5,
        "low": -0.5,
        "high": 3.4,
    }
    verdict = {"gate": "gain", "passed": True, "decides": True, "detail": "the gain is above zero"}
    rows = [difference | {"p_holm": 0.04, "clips": 120}]
    write_json(folder / "evidence.json", {"profile": "demo", "verdicts": [verdict], "differences": rows})
    (folder / "report.html").write_text("<!doctype html><title>Evidence</title><p>the report")
    return folder


def write_encoder(folder: Path, seed: int = 0, width: int = WIDTH, layers: int = 2) -> Path:
    config = {"model_type": "whisper", "d_model": width, "encoder_layers": layers, "encoder_attention_heads": 4}
    config |= {"encoder_ffn_dim": 4 * width, "num_mel_bins": 80, "max_source_positions": 1500}
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    tower = WhisperTower(config)
    torch.nn.init.normal_(tower.embed_positions.weight, std=0.1)
    save_torch(tower.state_dict(), folder / "model.safetensors")
    write_json(folder / "preprocessor_config.json", {"feature_size": 80})
    facts = {"kind": "whisper", "name": f"adapted-{seed}", "mels": 80, "length": "native", "rate_hz": 16_000}
    facts |= {"width": width, "hop_s": 0.02, "digest": identity(folder, "whisper", 80)}
    write_json(folder / "encoder.json", facts)
    return folder


class Shelf:
    """A source whose alias a test moves; `away` makes it fail as a registry that does not answer."""

    command = "aut run --profile demo"

    def __init__(self, folders: dict[str, Path], number: str | None = None) -> None:
        self.folders, self.number, self.away = folders, number, False
        self.kept: tuple[Pointer, Path] | None = None

    def warm(self) -> None:
        pass

    def current(self) -> Pointer | None:
        if self.away:
            raise TrackingError("the registry does not answer")
        return Pointer("whisper-aut", self.number, f"run{self.number}", "champion") if self.number else None

    def fetch(self, pointer: Pointer) -> Path:
        self.kept = pointer, self.folders[pointer.number]
        return self.folders[pointer.number]

    def local(self) -> tuple[Pointer, Path] | None:
        return self.kept


@asynccontextmanager
async def serving(
    source: Any, limits: Limits | None = None, **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    """A client of a started service, its first look done."""
    service = Service(source, limits, poll_s=options.pop("poll_s", 0.05), **options)
    gate = create(service)
    service.batcher.start()
    await asyncio.to_thread(service.watcher.look)
    service.watcher.start()
    service.gate = gate  # type: ignore[attr-defined]  # for tests that send or read by themselves
    transport = httpx.ASGITransport(app=gate, raise_app_exceptions=False)  # type: ignore[arg-type]
    try:
        hooks = {"response": [documented(gate.app.openapi()["paths"])]}
        async with httpx.AsyncClient(transport=transport, base_url="http://aut", event_hooks=hooks) as client:
            yield client, service
    finally:
        await service.stop()


def scripted(folder: str) -> Any:
    """Runs in the child: a decoder that does what its clip says, once; `folder` has a file for each clip begun."""

    def handler(head: dict[str, Any], parts: list[memoryview]) -> tuple[dict[str, Any], list[Any]]:
        word = bytes(parts[0][:4]).decode()
        Path(folder, f"begun-{time.monotonic_ns()}-{os.getpid()}").touch()
        if word == "fail":
            raise Unreadable("not_audio", "as its clip says")
        until = time.monotonic() + (20 if word == "wait" else 0.02)
        while time.monotonic() < until and not Path(folder, "go").exists():
            time.sleep(0.005)
        return {"seconds": 0.6}, [np.zeros(9_600, np.float32)]

    return handler, {}


def direct(service: Service, folder: Path) -> Callable[[], int]:
    """Gives the service decoders of that kind; returns what counts the clips begun. They go on once folder/go is."""
    service.decoders.close()
    service.decoders._crew = crew = Crew(scripted, (str(folder),), 2)
    service.decoders.desk = Desk(crew, service.threads)
    service.decoders.desk.left = service.slots.busy
    return lambda: len(list(folder.glob("begun-*")))


def documented(paths: dict[str, Any]) -> Any:
    """Fails where a route answers what /openapi.json does not tell of it: status, type, or a header."""

    async def check(answer: httpx.Response) -> None:
        told = paths.get(answer.request.url.path, {}).get(answer.request.method.lower())
        if told is None:
            return
        kind = answer.headers.get("content-type", "").partition(";")[0]
        found = told["responses"].get(str(answer.status_code), {})
        assert kind in found.get("content", {}), f"{answer.request.url}: {answer.status_code} {kind}"
        own = {name for name in answer.headers if name.startswith("x-") and name != "x-content-type-options"}
        own |= {"retry-after"} & set(answer.headers)
        assert own <= {name.lower() for name in found["headers"]}, f"{answer.request.url}: {own}"

    return check


def sound(seconds: float, seed: int = 0, rate_hz: int = 16_000) -> np.ndarray:
    rng = np.random.default_rng([seed])
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * 330 * (1 + seed) * t) + 0.02 * rng.standard_normal(len(t))).astype(np.float32)


def file_of(samples: np.ndarray, rate_hz: int = 16_000, kind: str = "WAV", subtype: str | None = "FLOAT") -> bytes:
    held = io.BytesIO()
    soundfile.write(held, samples, rate_hz, format=kind, subtype=subtype)
    return held.getvalue()


def publish_version(uri: str, work: Path, folder: Path, passed: bool = True) -> str:
    """Registers a version's folder in a real store, as `aut register` does; returns its number."""
    from aut.edges.registry import publish
    from aut.edges.store import ready
    from aut.files import digest_file, digest_tree, read_json
    from aut.gates import Verdict
    from aut.layout import Layout
    from aut.stages.register import Package

    layout = Layout(work)
    ready(uri, layout)
    facts = read_json(folder / "encoder/encoder.json")
    package = Package(
        folder=folder,
        name="whisper-aut",
        encoder=facts["name"],
        weights=facts["digest"],
        tree=digest_tree(folder / "encoder"),
        evidence=digest_file(folder / "evidence.json"),
        verdicts=(Verdict("gain", passed, "made for a test"),),
        lineage={},
        card="# a version",
    )
    result = publish(uri, layout, package, {"aut.digest.weights": package.weights}, None)
    return str(result["version"])
