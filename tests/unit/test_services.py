"""Logins from files, what `aut deploy` would make, and the doctor's eye on services."""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from aut.cli import doctor, services
from aut.cli.serve import _source
from aut.edges import store
from aut.errors import ConfigError, TrackingError
from tests.unit.mlflow_server import environment

ROOT = Path(__file__).parents[2]


def test_a_login_comes_from_a_file(tmp_path, monkeypatch):
    path = tmp_path / "password"
    path.write_text("open sesame\n")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD_FILE", str(path))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    store.read_login()
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "open sesame"
    assert services.secret("MLFLOW_TRACKING_PASSWORD") == "open sesame"


def test_the_variable_wins_over_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "given")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD_FILE", str(tmp_path / "absent"))
    store.read_login()
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "given"


def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD_FILE", str(tmp_path / "absent"))
    with pytest.raises(TrackingError, match="absent"):
        store.read_login()
    with pytest.raises(ConfigError, match="absent"):
        services.secret("MLFLOW_TRACKING_PASSWORD")


def test_a_call_is_made_again_while_the_server_is_away_and_only_then(monkeypatch):
    monkeypatch.setattr(store, "INSIST_EVERY_S", 0.0)
    answers = [TrackingError("x: (Caused by ResponseError('too many 503 error responses'))"), "done"]

    def call():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert store.insist("http://x", call) == "done"
    answers[:] = [TrackingError("too many 500 error responses"), "never asked"]
    with pytest.raises(TrackingError, match="500"):
        store.insist("http://x", call)
    answers[:] = [TrackingError("refused"), "never asked"]
    with pytest.raises(TrackingError, match="refused"):
        store.insist("http://x", call, limit_s=-1.0)


def test_the_entrypoint_reads_secrets_into_the_environment(tmp_path):
    path = tmp_path / "login"
    path.write_text("admin:it's $HOME")
    env = {"PATH": os.environ["PATH"], "PREFECT_API_AUTH_STRING_FILE": str(path)}
    command = ["sh", ROOT / "docker/entrypoint", "sh", "-c", 'printf %s "$PREFECT_API_AUTH_STRING"']
    assert subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout == "admin:it's $HOME"
    env["MLFLOW_TRACKING_PASSWORD_FILE"] = str(tmp_path / "absent")
    failed = subprocess.run(command, env=env, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "MLFLOW_TRACKING_PASSWORD_FILE" in failed.stderr


def test_a_service_that_is_away_is_a_finding(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    monkeypatch.setenv("AUT_SERVE_URL", "http://127.0.0.1:1")
    found = [*services.prefect_findings(), *services.serve_findings()]
    assert [f.state for f in found] == ["wrong", "wrong"]


@pytest.fixture
def server(monkeypatch):
    """A loopback server whose answers are `answers[path]`: to a stranger, and to who gives a login. Else 404."""
    for name in ("MLFLOW_TRACKING_USERNAME", "PREFECT_API_AUTH_STRING", "AUT_SERVE_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            stranger, known, body = self.server.answers.get(self.path, (404, 404, None))
            self.send_response(known if "Authorization" in self.headers else stranger)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        do_POST = do_GET

        def log_message(self, *_):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.answers, made.url = {}, f"http://127.0.0.1:{made.server_port}"
    Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


SEARCH = "/api/2.0/mlflow/experiments/search"
PREFECT = {
    "/api/health": (200, 200, True),
    "/api/deployments/filter": (401, 200, [{"name": "finetune"}]),
    "/api/work_pools/filter": (401, 200, []),
}


def told(findings):
    return {f.what: (f.state, f.detail, f.remedy) for f in findings}


def test_prefect_as_it_should_be(server, monkeypatch):
    server.answers = PREFECT
    monkeypatch.setenv("PREFECT_API_URL", f"{server.url}/api/")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:x")
    found = told(services.prefect_findings())
    assert {what: state for what, (state, *_) in found.items()} == dict.fromkeys(
        ("Prefect", "Prefect login", "deployments"), "ok"
    )


@pytest.mark.parametrize(("path", "remedy"), [("", "/api"), ("/api", "logs")])
@pytest.mark.parametrize("answer", [404, 500])
def test_what_is_no_prefect_is_wrong_with_the_remedy(server, monkeypatch, path, remedy, answer):
    server.answers = {f"{path}{p.removeprefix('/api')}": (answer, answer, None) for p in PREFECT}
    monkeypatch.setenv("PREFECT_API_URL", f"{server.url}{path}")
    state, detail, told_remedy = told(services.prefect_findings())["Prefect"]
    assert (state, str(answer) in detail, remedy in told_remedy) == ("wrong", True, True)


def test_a_page_that_answers_everything_is_no_prefect(server, monkeypatch):
    """Prefect's own page does, where /api is forgotten."""
    server.answers = {p.removeprefix("/api"): (200, 200, "<html>") for p in PREFECT}
    monkeypatch.setenv("PREFECT_API_URL", server.url)
    assert told(services.prefect_findings())["Prefect"][0] == "wrong"


def test_a_prefect_that_lets_strangers_in_is_wrong_where_we_have_a_login(server, monkeypatch):
    server.answers = {path: (200, 200, body) for path, (_, _, body) in PREFECT.items()}
    monkeypatch.setenv("PREFECT_API_URL", f"{server.url}/api")
    assert "Prefect login" not in told(services.prefect_findings())  # on the loopback address nobody need be asked
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:x")
    assert told(services.prefect_findings())["Prefect login"][:2] == ("wrong", "it asks for none")


@pytest.mark.parametrize(("answer", "state"), [(401, "ok"), (403, "ok"), (500, "wrong"), (200, "wrong")])
def test_mlflow_asked_by_a_stranger(server, monkeypatch, answer, state):
    server.answers = {SEARCH: (answer, 200, {})}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    found = told(services.mlflow_findings())["MLflow login"]
    assert found[0] == state
    assert state == "ok" or found[2]
    assert ("500" in found[1]) == (answer == 500)


def test_mlflow_that_is_away_has_a_remedy(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    (found,) = services.mlflow_findings()
    assert (found.state, "urlopen" in found.detail, bool(found.remedy)) == ("wrong", False, True)


def test_serve_lives_and_asks_for_its_key(server, monkeypatch):
    server.answers = {"/health/live": (200, 200, {}), "/health/ready": (503, 503, {}), "/v1/models": (401, 200, {})}
    monkeypatch.setenv("AUT_SERVE_URL", server.url)
    assert [f.state for f in services.serve_findings()] == ["note", "ok"]
    monkeypatch.setenv("AUT_SERVE_KEY", "key")
    server.answers["/v1/models"] = (200, 200, {})
    assert [f.state for f in services.serve_findings()] == ["note", "wrong"]
    server.answers["/health/ready"] = (500, 500, {})
    assert [f.state for f in services.serve_findings()] == ["wrong"]


def test_no_password_of_an_address_is_told(tmp_path, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "AUT_SERVE_URL"):
        monkeypatch.setenv(name, "http://admin:sesame@127.0.0.1:1/api")
    monkeypatch.setenv("AUT_WORK", str(tmp_path))
    checks = (doctor._tracking, services.mlflow_findings, services.prefect_findings, services.serve_findings)
    monkeypatch.setattr(doctor, "CHECKS", checks)
    found = list(doctor.findings())
    assert len(found) == 4
    assert all(f.state == "wrong" and f.remedy and "sesame" not in f.detail + f.remedy for f in found)


def test_what_serve_tells_where_there_is_no_version_can_be_set(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.delenv("AUT_SERVE_HINT", raising=False)
    assert _source("", "").command.startswith("aut run")
    monkeypatch.setenv("AUT_SERVE_HINT", "docker compose exec worker-cpu something")
    assert _source("", "").command == "docker compose exec worker-cpu something"


@pytest.mark.slow
def test_automations(tmp_path):
    """In a process of its own: Prefect's import takes seconds and has warnings of its own."""
    script = """
from flows.deploy import automations
silent, stuck, again = automations()
assert silent.actions[0].state == stuck.actions[0].state == "CRASHED" and again.actions[0].state == "SCHEDULED"
assert again.trigger.match["prefect.run-count"] == ["0", "1", "2"]
"""
    env = environment(PREFECT_HOME=str(tmp_path), PREFECT_LOGGING_LEVEL="CRITICAL")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
