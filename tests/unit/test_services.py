"""Logins from files, what `aut deploy` would make, and the doctor's eye on services."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aut.cli import services
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


@pytest.mark.slow
def test_automations(tmp_path):
    """In a process of its own: Prefect's import takes seconds and has warnings of its own."""
    script = """
from flows.deploy import automations
silent, stuck, again = automations()
assert silent.actions[0].state == stuck.actions[0].state == "CRASHED" and again.actions[0].state == "SCHEDULED"
assert again.trigger.match["prefect.run-count"] == ["1", "2"]
"""
    env = environment(PREFECT_HOME=str(tmp_path), PREFECT_LOGGING_LEVEL="CRITICAL")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
