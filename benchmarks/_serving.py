"""What `serve` and `fuzz` share: a version with random weights, `aut serve` as a process, and its peer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from aut.encoders.clipwise import identity
from aut.files import write_json


def write_version(folder: Path, width: int = 128, layers: int = 4, seed: int = 0) -> Path:
    """An encoder as `aut export` writes it, random weights, in the package of a version."""
    import torch
    from safetensors.torch import save_file

    from aut.encoders.tower import WhisperTower

    encoder = folder / "encoder"
    encoder.mkdir(parents=True)
    config = {"model_type": "whisper", "d_model": width, "encoder_layers": layers, "encoder_attention_heads": 4}
    config |= {"encoder_ffn_dim": 4 * width, "num_mel_bins": 80, "max_source_positions": 1500}
    torch.manual_seed(seed)
    tower = WhisperTower(config)
    torch.nn.init.normal_(tower.embed_positions.weight, std=0.1)
    write_json(encoder / "config.json", config)
    write_json(encoder / "preprocessor_config.json", {"feature_size": 80})
    save_file(tower.state_dict(), encoder / "model.safetensors")
    facts = {"kind": "whisper", "name": f"random-{seed}", "mels": 80, "length": "native", "rate_hz": 16_000}
    facts |= {"width": width, "hop_s": 0.02, "digest": identity(encoder, "whisper", 80)}
    write_json(encoder / "encoder.json", facts)
    write_json(folder / "evidence.json", {"verdicts": [], "differences": []})
    (folder / "report.html").write_text("<!doctype html><title>none</title>")
    return folder


class Process:
    """A server as a process of its own, from its start until it answers `health`."""

    health = "/health/ready"

    def __init__(self, args: Sequence[str], port: int, log: Path, env: dict[str, str] | None = None) -> None:
        self.args, self.port, self.log, self.env = list(args), port, log, env or {}
        self.url = f"http://127.0.0.1:{port}"
        self.ready_s = 0.0
        self.started: float | None = None

    def start(self) -> None:
        """Without waiting; entered, it is waited for."""
        self.started = time.perf_counter()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.args, stdout=log, stderr=log, env={**os.environ, **self.env})

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> Process:
        if self.started is None:
            self.start()
        started = self.started or 0.0
        while not self._answers():
            if self.process.poll() is not None or time.perf_counter() - started > 90:
                self.process.kill()
                raise RuntimeError(f"{' '.join(self.args[:6])} does not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.05)
        self.ready_s = time.perf_counter() - started
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def pause(self) -> None:
        """It costs nothing until it goes on."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + self.health, timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class Server(Process):
    """`aut serve` of a folder or an address."""

    def __init__(self, model: Path | str, scratch: Path, *options: str, env: dict[str, str] | None = None) -> None:
        port = free_port()
        args = [sys.executable, "-m", "aut", "serve", "--model", str(model), "--port", str(port), *options]
        super().__init__(args, port, scratch / f"serve-{port}.log", env)


class Peer(Process):
    """`mlflow models serve` of a model folder."""

    health = "/ping"

    def __init__(self, model: Path, scratch: Path, extra: Mapping[str, str] | None = None, workers: int = 1) -> None:
        port = free_port()
        args = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
        env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"}
        env |= extra or {}
        args += ["--workers", str(workers)]
        super().__init__([*args, "--port", str(port), "--host", "127.0.0.1"], port, scratch / f"mlflow-{port}.log", env)


def publish(uri: str, work: Path, folder: Path) -> Path:
    """Registers a version's folder in a SQLite store; returns the MLflow model's folder."""
    from urllib.parse import unquote, urlparse

    from aut.edges import registry
    from aut.edges.store import client, ready
    from aut.files import digest_file, digest_tree, read_json
    from aut.gates import Verdict
    from aut.layout import Layout
    from aut.stages.register import Package

    ready(uri, Layout(work))
    facts = read_json(folder / "encoder/encoder.json")
    package = Package(
        folder=folder,
        name="whisper-aut",
        encoder=facts["name"],
        weights=facts["digest"],
        tree=digest_tree(folder / "encoder"),
        evidence=digest_file(folder / "evidence.json"),
        verdicts=(Verdict("made", True, "for a benchmark"),),
        lineage={},
        card="# random weights",
    )
    tags = {"aut.digest.weights": package.weights, "aut.digest.evidence": package.evidence}
    number = registry.publish(uri, Layout(work), package, tags, None)["version"]
    source = client(uri).get_model_version_download_uri("whisper-aut", number)
    return Path(unquote(urlparse(source).path))


IDENTITY = """import mlflow
import pandas as pd


class Identity(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return pd.DataFrame({"embedding": [[0.0] * 128 for _ in model_input["audio"]]})


mlflow.models.set_model(Identity())
"""


def identity_model(folder: Path) -> Path:
    """A pyfunc that looks at nothing, with the signature of the real one."""
    import warnings

    from aut.edges.store import pyfunc_module

    code = folder.with_suffix(".py")
    code.write_text(IDENTITY)
    mlflow = pyfunc_module()
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        signature = ModelSignature(inputs=Schema([ColSpec(DataType.binary, "audio")]))
        mlflow.pyfunc.save_model(str(folder), python_model=str(code), signature=signature, pip_requirements=["mlflow"])
    return folder


def hollow(*opening: Any) -> tuple[Any, dict[str, Any]]:
    """In an engine's process: opens a version, and gives zeros for every clip."""
    import numpy as np

    from aut.serving.engine import opened

    _, greeting = opened(*opening)

    def handler(head: dict[str, Any], parts: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
        return {"width": 128}, [np.zeros((len(parts), 128), np.float32)]

    return handler, greeting


def serve_identity(port: int, whole: bool) -> None:
    """The server with an encoder that does nothing. `whole`: all else as `aut serve` runs it, decoding, the engine's
    processes and the way there included; else HTTP, queue and answers alone, as an identity pyfunc decodes nothing."""
    import tempfile

    import numpy as np

    from aut.serving import engine
    from aut.serving.app import create
    from aut.serving.listen import listen
    from aut.serving.service import Service
    from aut.serving.watcher import Folder
    from benchmarks import _serving

    class Identity(Service):
        async def _decode(self, data: bytes, position: int, rate_hz: int) -> tuple[int, np.ndarray[Any, Any], float]:
            return position, np.zeros(1_600, np.float32), 0.1

    vector = np.zeros(128, np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        source = Folder(write_version(Path(scratch) / "1", layers=1))
        if whole:
            setattr(engine, "opened", _serving.hollow)  # noqa: B010 - by its module's name: a process of its own finds it there
            service = Service(source)
        else:
            service = Identity(source, run=lambda _, __, clips: [{"valid": vector} for _ in clips])
        listen(create(service), "127.0.0.1", port)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    serve_identity(int(sys.argv[1]), sys.argv[2:] == ["whole"])
