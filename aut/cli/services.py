"""The deployed services (MLflow, Prefect, the champion's server), as `aut doctor` asks them and `aut env` names them.

In    MLFLOW_TRACKING_URI, PREFECT_API_URL, AUT_SERVE_URL and their logins, also as *_FILE (a mounted secret)
Out   findings: does it answer, does it know us, does it refuse a stranger
Run   aut doctor (on the host after `eval $(aut env)`, or inside: docker compose exec worker-cpu aut doctor)
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from aut.cli.findings import Finding
from aut.errors import ConfigError

TIMEOUT_S = 5.0
LOOPBACK = ("127.", "localhost", "[::1]")


def secret(name: str) -> str | None:
    """The variable, else the contents of the file that <name>_FILE names; ConfigError where it cannot be read."""
    if os.environ.get(name):
        return os.environ[name]
    path = os.environ.get(f"{name}_FILE")
    try:
        return Path(path).read_text().strip() if path else None
    except OSError as error:
        raise ConfigError(f"{name}_FILE {path} cannot be read: {error}", "give a readable file") from None


def ask(url: str, login: str | None = None, body: Any = None) -> tuple[int, Any]:
    """Status and JSON (or None) of a GET, or a POST with `body`. OSError where nothing answers."""
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)  # noqa: S310 - addresses the person has set
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            text = answer.read()
    except urllib.error.HTTPError as error:
        return error.code, None
    try:
        return 200, json.loads(text)
    except ValueError:
        return 200, None


def mlflow_findings() -> Iterator[Finding]:
    """The tracking server's doors, where it is a server; its store is asked by `aut doctor` itself."""
    url = os.environ.get("MLFLOW_TRACKING_URI", "").rstrip("/")
    if not url.startswith("http"):
        return
    status, _ = ask(f"{url}/api/2.0/mlflow/experiments/search", body={"max_results": 1})
    if status in (401, 403):
        yield Finding("MLflow login", "ok", "it refuses who gives none")
    elif not _loopback(url):
        yield Finding(
            "MLflow login", "wrong", "it asks for none", "start it with --app-name basic-auth, or keep it local"
        )


def prefect_findings() -> Iterator[Finding]:
    """Prefect answers, knows our login, has the deployments, and workers that are online."""
    url = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    if not url:
        yield Finding("Prefect", "ok", "in this process (PREFECT_API_URL is not set)")
        return
    if not url.startswith(("http://", "https://")):
        yield Finding("Prefect", "wrong", f"PREFECT_API_URL is {url}", "it starts with http:// and ends with /api")
        return
    try:
        ask(f"{url}/health")
        status, found = ask(f"{url}/deployments/filter", secret("PREFECT_API_AUTH_STRING"), {})
    except OSError as error:
        reason = getattr(error, "reason", error)
        yield Finding("Prefect", "wrong", f"{url}: {reason}", "start it (`docker compose up`) or unset PREFECT_API_URL")
        return
    if status in (401, 403):
        yield Finding("Prefect", "wrong", f"{url} refuses the login", "set PREFECT_API_AUTH_STRING: eval $(aut env)")
        return
    yield Finding("Prefect", "ok", url)
    names = sorted(d["name"] for d in found or ())
    state, remedy = ("ok", "") if "finetune" in names else ("wrong", "aut deploy")
    yield Finding("deployments", state, ", ".join(names) or "none", remedy)
    yield from _workers(url)


def _workers(url: str) -> Iterator[Finding]:
    login = secret("PREFECT_API_AUTH_STRING")
    _, pools = ask(f"{url}/work_pools/filter", login, {})
    for pool in sorted(p["name"] for p in pools or ()):
        _, workers = ask(f"{url}/work_pools/{pool}/workers/filter", login, {})
        online = sum(w["status"] == "ONLINE" for w in workers or ())
        remedy = "" if online else f"prefect worker start --pool {pool}"
        yield Finding(f"pool {pool}", "ok" if online else "wrong", f"workers online: {online}", remedy)


def serve_findings() -> Iterator[Finding]:
    """The server of the champion lives, and which version answers."""
    url = os.environ.get("AUT_SERVE_URL", "").rstrip("/")
    if not url:
        return
    try:
        status, _ = ask(f"{url}/health/live")
        ready, told = ask(f"{url}/health/ready")
    except OSError as error:
        yield Finding("serve", "wrong", f"{url}: {getattr(error, 'reason', error)}", "docker compose logs serve")
        return
    if status != 200:
        yield Finding("serve", "wrong", f"{url} answers {status}", "docker compose logs serve")
    elif ready == 200:
        yield Finding("serve", "ok", f"{url}, {(told or {}).get('version', 'a version')} answers")
    else:
        yield Finding("serve", "note", f"{url} lives and has no version yet", "a run whose gates pass makes a champion")


def _loopback(url: str) -> bool:
    return url.partition("://")[2].startswith(LOOPBACK)


def env(
    project: Annotated[str, typer.Option("--project", "-p", help="Of docker compose, where it is not `aut`.")] = "",
) -> None:
    """Print the addresses and logins of the platform on this host, for `eval $(aut env)`."""
    from aut.workcopy import checkout_root

    command = [
        "docker",
        "compose",
        *(["-p", project] if project else []),
        "run",
        "--rm",
        "--no-deps",
        "-T",
        "init",
        "env",
    ]
    try:
        done = subprocess.run(command, cwd=checkout_root(), capture_output=True, text=True)
    except FileNotFoundError:
        raise ConfigError("docker is not installed here", "run it on the platform's host") from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("export ")]
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"the platform does not tell its logins: {last}", "docker compose up -d --wait")
    typer.echo("\n".join(lines))


def add_to(app: typer.Typer) -> None:
    app.command(env.__name__, rich_help_panel="Runs")(env)
