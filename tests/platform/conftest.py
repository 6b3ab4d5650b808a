"""The platform as an operator has it: `docker compose up`, in a project, on ports and with volumes of its own.

Skipped, with the reason, where no Docker engine answers. AUT_PLATFORM_KEEP=1 leaves it running at the end;
AUT_PLATFORM_REUSE=PROJECT breaks one that is up already, with its images, on the usual ports, and leaves it;
AUT_PLATFORM_PATIENCE=4 waits four times as long where waiting is no part of what must hold;
AUT_PLATFORM_RESULTS names a file that takes the scenarios' results with their times.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = float(os.environ.get("AUT_PLATFORM_PATIENCE", "1"))  # more on a machine that does other work
SERVICES = ("postgres", "mlflow", "prefect", "worker-cpu", "serve")
SHORT = [
    "finetune.arms=[adapted]",
    "compare.against=[base]",
    "finetune.training.checkpoint_every=10",
    "finetune.training.eval_every=100000",
]


def no_engine() -> str | None:
    """Why the platform cannot be started here; None where it can."""
    try:
        done = subprocess.run(["docker", "compose", "version"], capture_output=True, text=True)
        if done.returncode:
            return "docker compose is not installed"
        done = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return "docker is not installed"
    except subprocess.TimeoutExpired:
        return "the Docker engine does not answer"
    return "no Docker engine answers" if done.returncode else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [i for i in items if Path(__file__).parent in Path(i.fspath).parents]
    reason = no_engine() if mine else None
    for item in mine:
        item.add_marker(pytest.mark.platform)
        item.add_marker(pytest.mark.timeout(1800))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def free_port() -> int:
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass
class Stack:
    """One compose project and what a person does with it."""

    project: str
    env: dict[str, str]
    files: list[str] = field(default_factory=lambda: ["docker-compose.yml"])
    logins: dict[str, str] = field(default_factory=dict)

    def compose(self, *args: str, data: bytes | None = None, timeout: float = 900, check: bool = True) -> str:
        """Standard output of `docker compose ...` of this project."""
        files = [word for name in self.files for word in ("-f", name)]
        done = subprocess.run(
            ["docker", "compose", "-p", self.project, *files, *args],
            cwd=ROOT,
            env=self.env,
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            timeout=timeout,
        )
        assert not (check and done.returncode), f"compose {args}: {(done.stdout + done.stderr).decode()[-3000:]}"
        return done.stdout.decode()

    def up(self, *services: str) -> float:
        """`up -d --wait`; seconds until all is healthy."""
        start = time.monotonic()
        self.compose("up", "-d", "--wait", *services)
        took = time.monotonic() - start
        self.learn()
        return took

    def learn(self) -> None:
        """Addresses and logins, as `aut env` prints them."""
        lines = self.compose("run", "--rm", "--no-deps", "-T", "init", "env").splitlines()
        pairs = (shlex.split(line.removeprefix("export "))[0].partition("=") for line in lines if "=" in line)
        self.logins = {name: value for name, _, value in pairs}

    def down(self, *options: str) -> None:
        self.compose("--profile", "*", "down", "--remove-orphans", *options)

    def inside(self, service: str, *args: str, timeout: float = 600, check: bool = True) -> str:
        return self.compose("exec", "-T", service, *args, timeout=timeout, check=check)

    def container(self, service: str) -> str:
        return self.compose("ps", "-q", "--all", service).split()[0]

    def inspect(self, service: str, template: str) -> str:
        done = subprocess.run(
            ["docker", "inspect", "-f", template, self.container(service)], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def kill(self, service: str) -> None:
        """kill -9 from outside, as a failing machine would: the restart policy applies."""
        subprocess.run(["kill", "-9", self.inspect(service, "{{.State.Pid}}")], check=True)

    def healthy(self, service: str) -> bool:
        return self.inspect(service, "{{.State.Status}} {{.State.Health.Status}}") == "running healthy"

    # --- Prefect ---
    def prefect(self, path: str, body: Any = None) -> Any:
        return self._json(f"{self.logins['PREFECT_API_URL']}{path}", self.logins["PREFECT_API_AUTH_STRING"], body)

    def start(self, *overrides: str, deployment: str = "finetune", **parameters: Any) -> str:
        """A flow run of a deployment on profile tiny; its id."""
        found = self.prefect(f"/deployments/name/aut/{deployment}")
        body = {"parameters": {"profile": "tiny", "overrides": list(overrides), **parameters}}
        body["state"] = {"type": "SCHEDULED"}
        return str(self.prefect(f"/deployments/{found['id']}/create_flow_run", body)["id"])

    def state(self, run: str) -> str:
        return str((self.prefect(f"/flow_runs/{run}")["state"] or {}).get("name"))

    def ended(self, run: str, seconds: float = 420) -> str:
        """The state in which the run ends."""
        ends = ("Completed", "Failed", "Crashed", "Cancelled")
        return until(lambda: (s := self._state(run)) in ends and s, seconds, lambda: f"run is {self._state(run)}")

    def _state(self, run: str) -> str:
        try:
            return self.state(run)
        except OSError:
            return "unknown: the server is away"

    # --- MLflow ---
    def mlflow(self, path: str, body: Any = None) -> Any:
        login = f"admin:{self.logins['MLFLOW_TRACKING_PASSWORD']}"
        return self._json(f"{self.logins['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/{path}", login, body)

    def runs(self, **tags: str) -> list[dict[str, Any]]:
        """Runs with these tags, newest first; none before the first run made the experiment."""
        found = self.mlflow("experiments/search", {"max_results": 10, "filter": "name = 'aut'"}).get("experiments", [])
        if not found:
            return []
        clauses = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        body = {"experiment_ids": [found[0]["experiment_id"]], "filter": clauses, "max_results": 1000}
        body["order_by"] = ["attributes.start_time DESC"]
        return list(self.mlflow("runs/search", body).get("runs", []))

    def metric(self, run_id: str, name: str) -> list[dict[str, Any]]:
        path = f"metrics/get-history?run_id={run_id}&metric_key={name}&max_results=25000"
        return list(self.mlflow(path).get("metrics", []))

    def versions(self) -> list[str]:
        found = self.mlflow("model-versions/search?max_results=1000").get("model_versions", [])
        return sorted(v["version"] for v in found)

    def _json(self, url: str, login: str, body: Any) -> Any:
        for _ in range(20):  # a server whose database is away, or that starts, answers again
            try:
                status, text = ask(url, login, body)
            except OSError as error:
                status, text = 503, str(error).encode()
            if status < 500:
                break
            time.sleep(3)
        assert status < 300, f"{url}: {status} {text[:500]!r}"
        return json.loads(text)


def ask(
    url: str, login: str | None = None, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and body of a GET, or a POST with a JSON body."""
    head = {"Content-Type": "application/json", **(headers or {})}
    if login:
        head["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), head)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def until(what: Callable[[], Any], seconds: float, why: Callable[[], str] = lambda: "", every: float = 0.5) -> Any:
    """The first true value of `what`; an AssertionError after `seconds` times AUT_PLATFORM_PATIENCE."""
    end = time.monotonic() + seconds * PATIENCE
    while not (found := what()):
        assert time.monotonic() < end, f"not within {seconds * PATIENCE:.0f} s. {why()}"
        time.sleep(every)
    return found


def make_stack(project: str, **env: str) -> Stack:
    ports = {f"AUT_{name}_PORT": str(free_port()) for name in ("MLFLOW", "PREFECT", "SERVE")}
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AUT_", "MLFLOW_", "PREFECT_", "COMPOSE_"))}
    kept = {k: v for k, v in os.environ.items() if k in ("AUT_TORCH_INDEX", "AUT_VERSION")}
    return Stack(project, {**clean, **kept, **ports, **env})


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Images built, volumes empty; the first scenario starts it."""
    reused = os.environ.get("AUT_PLATFORM_REUSE")
    if reused:
        up = Stack(reused, dict(os.environ))
        up.learn()
        yield up
        return
    made = make_stack("aut-test")
    made.down("--volumes")
    made.compose("build", timeout=3600)
    yield made
    if os.environ.get("AUT_PLATFORM_KEEP") != "1":
        made.down("--volumes")


@pytest.fixture(scope="session")
def _results() -> Iterator[dict[str, Any]]:
    rows: dict[str, Any] = {}
    yield rows
    path = os.environ.get("AUT_PLATFORM_RESULTS")
    if path:
        Path(path).write_text(json.dumps({"date": date.today().isoformat(), "scenarios": rows}, indent=1) + "\n")


@pytest.fixture
def told(_results: dict[str, Any], request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Figures of this scenario, kept with its time and whether it passed."""
    row: dict[str, Any] = {"passed": False}
    _results[request.node.name.removeprefix("test_")] = row
    start = time.monotonic()
    failed = request.session.testsfailed
    yield row
    row["seconds"] = round(time.monotonic() - start, 1)
    row["passed"] = request.session.testsfailed == failed
