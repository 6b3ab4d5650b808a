"""The services of a run without services: what is set is used, what does not come up is said."""

from __future__ import annotations

import os

import pytest

from aut.errors import AutError
from flows import embedded


def test_a_server_that_does_not_come_up_is_one_sentence(tmp_path, monkeypatch):
    silent = tmp_path / "python"
    silent.write_text("#!/bin/sh\necho no such module >&2\nexit 1\n")
    silent.chmod(0o755)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(embedded.sys, "executable", str(silent))
    with (
        embedded.prefect_server(tmp_path / "server.log") as wait,
        pytest.raises(AutError, match="did not come up: no such module"),
    ):
        assert os.environ["PREFECT_API_URL"].startswith("http://127.0.0.1:")
        wait()
    assert "PREFECT_API_URL" not in os.environ


def test_variables_last_as_long_as_their_block(monkeypatch):
    monkeypatch.delenv("AUT_X", raising=False)
    with pytest.raises(KeyError), embedded.set_env({"AUT_X": "1"}):
        assert os.environ["AUT_X"] == "1"
        raise KeyError
    assert "AUT_X" not in os.environ
