"""A real Prefect server, MLflow server and two workers: `prefect deployment run aut/finetune` completes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.flow.conftest import Place, make_place
from tests.unit.mlflow_server import Server
from tests.waiting import answers, wait_for

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


def on_server(folder: Path, api: str, tracking: Server) -> Iterator[Place]:
    """The checkout as seen from two hosts: they share the DVC remote, MLflow and Prefect, and nothing else."""
    shared = {"PREFECT_API_URL": api, "MLFLOW_TRACKING_URI": tracking.uri, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    shared |= {"PREFECT_WORKER_QUERY_SECONDS": "1"}  # as in docker-compose.yml
    place = make_place(folder, **shared)
    for host in ("cpu", "gpu"):
        own = {"AUT_WORK": str(folder / host), "PREFECT_HOME": str(folder / f"prefect-{host}")}
        own |= {"XDG_CACHE_HOME": str(folder / f"cache-{host}"), "DVC_SITE_CACHE_DIR": str(folder / f"dvc-{host}")}
        for path in (own["AUT_WORK"], own["PREFECT_HOME"]):
            Path(path).mkdir()
        yield replace(place, env=place.env | own)


def test_a_deployment_runs_on_two_hosts(tmp_path):
    """index to register on the host of pool `cpu`; base, finetune and embed on the one of pool `h200`."""
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    tracking = Server(tmp_path / "mlflow")
    cpu, gpu = on_server(tmp_path, api, tracking)
    server = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    with service(cpu, tmp_path / "server.log", *server), running(tracking):
        wait_for(lambda: answers(f"{api}/health"), 90)
        assert "aut-stage/gpu" in cpu.command("aut", "deploy", "--gpu")
        worker = ("prefect", "worker", "start", "--pool")
        with (
            service(cpu, tmp_path / "cpu.log", *worker, "cpu"),
            service(gpu, tmp_path / "gpu.log", *worker, "h200"),
        ):
            overrides = json.dumps(["finetune.arms=[adapted]", "compare.against=[base]"])
            parameters = ["-p", "profile=tiny", "-p", f"overrides={overrides}"]
            run = ("prefect", "deployment", "run", "aut/finetune", *parameters, "--watch", "--watch-timeout", "540")
            told = cpu.command(*run, code=None)
        logs = "".join((tmp_path / f"{host}.log").read_text()[-6000:] for host in ("cpu", "gpu"))
        registered = cpu.copy / "reports/register/registered.json"
        assert registered.exists(), told[-2000:] + logs
        assert json.loads(registered.read_text())["version"] == "1"
        assert made_on(gpu.work) == {"base", "finetune", "embed"}
        assert made_on(cpu.work).isdisjoint({"base", "finetune", "embed"})
        assert tracked_stages(tracking.uri) >= {"index", "base", "finetune", "embed", "probe", "compare", "register"}


def made_on(work: Path) -> set[str]:
    """Verbs of the stages whose code ran under an AUT_WORK, by the logs DVC left there."""
    logs = (work / "logs").rglob("*.log")
    return {log.stem.partition("@")[0] for log in logs if "Running stage" in log.read_text()}


def tracked_stages(uri: str) -> set[str]:
    from aut.edges.parent import find_runs

    return {run.data.tags["aut.stage"] for run in find_runs(uri, {}, 500)}


@contextmanager
def running(tracking: Server) -> Iterator[None]:
    tracking.start()
    try:
        yield
    finally:
        tracking.stop()
