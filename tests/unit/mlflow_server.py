"""A real MLflow server for tests: started, killed and started again on one loopback port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import aut
from aut.edges import store
from aut.errors import TrackingError


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, with `aut` importable from any folder."""
    return {**os.environ, "PYTHONPATH": str(Path(aut.__file__).parents[1]), **extra}


class Server:
    """A real `mlflow server` on a loopback port, artifacts proxied."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        self.uri = f"http://127.0.0.1:{port}"
        self._folder, self._port = folder, port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        args = ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}", "--serve-artifacts"]
        args += ["--artifacts-destination", str(self._folder / "artifacts")]
        args += ["--port", str(self._port), "--workers", "1"]
        env = environment(**store.SETTINGS, **store.SERVER)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *args],
            cwd=self._folder,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until = time.monotonic() + 90
        while time.monotonic() < until:
            try:
                return store.check_server(self.uri)
            except TrackingError:
                time.sleep(0.3)
        raise AssertionError("the MLflow server did not start")

    def stop(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
