"""docker/backup on folders of the host: what is saved comes back, and what a running platform does to it."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docker/backup"


@pytest.fixture
def platform(tmp_path):
    """Makes a root with the folders of a platform, and files in them."""

    def make(name, **files):
        root = tmp_path / name
        for folder in ("secrets/mlflow", "artifacts/.incoming", "remote"):
            (root / folder).mkdir(parents=True)
        for path, text in files.items():
            target = root / path.replace("__", "/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return root

    return make


def backup(verb, root, data=b"", path=None):
    env = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]}
    return subprocess.run(["sh", SCRIPT, verb, root], input=data, env=env, capture_output=True)


def saved(platform):
    old = platform(
        "old", secrets__mlflow__key="k", artifacts__model="m", artifacts__incoming="i", remote__ab__cd="abcd"
    )
    done = backup("save", old)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_saved_comes_back(platform):
    new = platform("new")
    assert backup("restore", new, saved(platform)).returncode == 0
    texts = {p.relative_to(new).as_posix(): p.read_text() for p in new.rglob("*") if p.is_file()}
    assert texts == {
        "secrets/mlflow/key": "k",
        "artifacts/model": "m",
        "artifacts/incoming": "i",
        "remote/ab/cd": "abcd",
    }


def test_a_remote_that_outlived_the_volumes_is_completed_and_not_written_over(platform):
    new = platform("new", remote__ab__ef="more", remote__ab__cd="here")
    assert backup("restore", new, saved(platform)).returncode == 0
    assert (new / "remote/ab/cd").read_text() == "here"
    assert (new / "remote/ab/ef").read_text() == "more"
    assert (new / "secrets/mlflow/key").read_text() == "k"


@pytest.mark.parametrize("path", ["secrets__mlflow__key", "artifacts__model"])
def test_another_platform_is_not_mixed_in(platform, path):
    new = platform("new", **{path: "other"})
    done = backup("restore", new, saved(platform))
    assert done.returncode == 1
    assert b"down --volumes" in done.stderr
    assert (new / path.replace("__", "/")).read_text() == "other"


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (1, 0), (2, 2)])
def test_a_file_that_changes_as_it_is_read_is_no_failure_and_a_lost_one_is(platform, tmp_path, status, expected):
    stub = tmp_path / "bin/tar"
    stub.parent.mkdir()
    stub.write_text(f"#!/bin/sh\necho 'tar: artifacts/model: file changed as we read it' >&2\nexit {status}\n")
    stub.chmod(0o755)
    assert backup("save", platform("old"), path=stub.parent).returncode == expected
