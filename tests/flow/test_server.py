"""A real Prefect server and a real worker: `prefect deployment run aut/finetune` completes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.flow.conftest import Place, make_place

pytestmark = [pytest.mark.flow, pytest.mark.slow]


def free_port() -> int:
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def service(place: Place, log: Path, *args: str) -> Iterator[None]:
    """A long-running `python -m ...`, stopped with its children when the block ends."""
    with log.open("w") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", *args],
            cwd=place.work,
            env=place.env,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        finally:
            os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def wait_for(url: str, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def test_a_deployment_runs_on_a_worker(tmp_path):
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    place = make_place(
        tmp_path, PREFECT_API_URL=api, PREFECT_HOME=str(tmp_path / "prefect"), PREFECT_SERVER_ANALYTICS_ENABLED="false"
    )
    for folder in (place.work, tmp_path / "prefect"):
        folder.mkdir()
    with service(
        place, tmp_path / "server.log", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)
    ):
        wait_for(f"{api}/health")
        assert "aut-stage/gpu" in place.command("aut", "deploy")
        with service(place, tmp_path / "worker.log", "prefect", "worker", "start", "--pool", "cpu"):
            parameters = ["-p", "profile=tiny", "-p", 'overrides=["probe.knn=5"]']
            place.command(
                "prefect", "deployment", "run", "aut/finetune", *parameters, "--watch", "--watch-timeout", "540"
            )
    registered = json.loads((place.copy / "reports/register/registered.json").read_text())
    assert registered["version"] == "1"
    log = (tmp_path / "worker.log").read_text()
    assert "Completed" in log
