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
