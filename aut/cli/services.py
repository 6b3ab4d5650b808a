"""The deployed services (MLflow, Prefect, the champion's server), as `aut doctor` asks them and `aut env` names them.

In    MLFLOW_TRACKING_URI, PREFECT_API_URL, AUT_SERVE_URL and their logins, also as *_FILE (a mounted secret)
Out   findings: does it answer, does it know us, does it refuse a stranger
Run   aut doctor (on the host after `eval $(aut env)`, or inside: docker compose exec worker-cpu aut doctor)
"""

from __future__ import annotations

import base64
import http.client
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
REFUSED = (401, 403)
ENDS_WITH_API = "it starts with http:// and ends with /api"


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
    """Status and JSON (or None) of a GET, or a POST with `body`. OSError where nothing, or no HTTP, answers."""
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
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"no HTTP server: {error}") from None
    try:
        return 200, json.loads(text)
    except ValueError:
        return 200, None


def mlflow_findings() -> Iterator[Finding]:
    """The tracking server's doors, where it is a server; its store is asked by `aut doctor` itself."""
    from aut.edges.store import plain, saved_uri

    url = _address("MLFLOW_TRACKING_URI") or plain(saved_uri() or "").rstrip("/")
    if not url.startswith(("http://", "https://")):
        return
    door = f"{url}/api/2.0/mlflow/experiments/search"
    logs, how = "docker compose logs mlflow", "start it with --app-name basic-auth, or keep it local"
    expected = bool(os.environ.get("MLFLOW_TRACKING_USERNAME"))
    try:
        yield from _stranger("MLflow login", door, expected, logs, how, {"max_results": 1})
    except OSError as error:
        yield _away("MLflow login", url, error, "start it (`docker compose up`), or another: `aut use ADDRESS`")


def prefect_findings() -> Iterator[Finding]:
    """Prefect answers, knows our login and no stranger, has the deployments, and workers that are online."""
    url = _address("PREFECT_API_URL")
    if not url:
        yield Finding("Prefect", "ok", "in this process (PREFECT_API_URL is not set)")
        return
    if not url.startswith(("http://", "https://")):
        yield Finding("Prefect", "wrong", f"PREFECT_API_URL is {url}", ENDS_WITH_API)
        return
    try:
        yield from _prefect(url, secret("PREFECT_API_AUTH_STRING"))
    except OSError as error:
        yield _away("Prefect", url, error, "start it (`docker compose up`) or unset PREFECT_API_URL")


def _prefect(url: str, login: str | None) -> Iterator[Finding]:
    """What a server at `url` answers; OSError where nothing does."""
    health, _ = ask(f"{url}/health")
    status, found = ask(f"{url}/deployments/filter", login, {})
    if status in REFUSED:
        yield Finding("Prefect", "wrong", f"{url} refuses the login", "set PREFECT_API_AUTH_STRING: eval $(aut env)")
        return
    if health != 200 or status != 200 or not isinstance(found, list):
        told = next((s for s in (health, status) if s != 200), "no list of deployments")
        remedy = "docker compose logs prefect" if url.endswith("/api") else ENDS_WITH_API
        yield Finding("Prefect", "wrong", f"{url} answers {told}", remedy)
        return
    yield Finding("Prefect", "ok", url)
    how = "set PREFECT_SERVER_API_AUTH_STRING for it, or keep it local"
    door = f"{url}/deployments/filter"
    yield from _stranger("Prefect login", door, bool(login), "docker compose logs prefect", how, {})
    names = sorted(d["name"] for d in found)
    state, remedy = ("ok", "") if "finetune" in names else ("wrong", "aut deploy")
    yield Finding("deployments", state, ", ".join(names) or "none", remedy)
    yield from _workers(url, login)


def _workers(url: str, login: str | None) -> Iterator[Finding]:
    _, pools = ask(f"{url}/work_pools/filter", login, {})
    for pool in sorted(p["name"] for p in pools or ()):
        _, workers = ask(f"{url}/work_pools/{pool}/workers/filter", login, {})
        online = sum(w["status"] == "ONLINE" for w in workers or ())
        remedy = "" if online else f"prefect worker start --pool {pool}"
        yield Finding(f"pool {pool}", "ok" if online else "wrong", f"workers online: {online}", remedy)


def serve_findings() -> Iterator[Finding]:
    """The server of the champion lives, which version answers, and whether it refuses a stranger."""
    url = _address("AUT_SERVE_URL")
    if not url:
        return
    if not url.startswith(("http://", "https://")):
        yield Finding("serve", "wrong", f"AUT_SERVE_URL is {url}", "give http://HOST:PORT")
        return
    try:
        yield from _serve(url)
    except OSError as error:
        yield _away("serve", url, error, "docker compose logs serve")


def _serve(url: str) -> Iterator[Finding]:
    """What a server at `url` answers; OSError where nothing does."""
    logs = "docker compose logs serve"
    status, _ = ask(f"{url}/health/live")
    ready, told = ask(f"{url}/health/ready")
    if status != 200 or ready not in (200, 503):
        answer = status if status != 200 else f"{ready} on /health/ready"
        yield Finding("serve", "wrong", f"{url} answers {answer}", f"{logs}; is AUT_SERVE_URL right?")
        return
    if ready == 200:
        version = told.get("version") if isinstance(told, dict) else None
        yield Finding("serve", "ok", f"{url}, {version or 'a version'} answers")
    else:
        yield Finding("serve", "note", f"{url} lives and has no version yet", "a run whose gates pass makes a champion")
    expected = bool(os.environ.get("AUT_SERVE_KEY") or os.environ.get("AUT_SERVE_KEY_FILE"))
    yield from _stranger("serve key", f"{url}/v1/models", expected, logs, "give it AUT_SERVE_KEY, or keep it local")


def _stranger(what: str, door: str, expected: bool, logs: str, how: str, body: Any = None) -> Iterator[Finding]:
    """What who gives no login gets. To be let in is wrong where we have a login, and on an address others can reach."""
    status, _ = ask(door, body=body)
    if status in REFUSED:
        yield Finding(what, "ok", "it refuses who gives none")
    elif status != 200:
        yield Finding(what, "wrong", f"{door} answers {status} to who gives none", logs)
    elif expected or not _loopback(door):
        yield Finding(what, "wrong", "it asks for none", how)


def _away(what: str, url: str, error: OSError, remedy: str) -> Finding:
    return Finding(what, "wrong", f"{url} does not answer ({getattr(error, 'reason', error)})", remedy)


def _address(name: str) -> str:
    """What the variable holds, without the password that it may hold too; empty where it is unset."""
    from aut.edges.store import plain

    return plain(os.environ.get(name, "")).rstrip("/")


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
