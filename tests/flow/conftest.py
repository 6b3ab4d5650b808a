"""A checkout of its own, made from the tree under test, with its own AUT_WORK: flow tests edit code, and run it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from aut import workcopy

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Place:
    """A checkout and the environment in which `aut` runs there."""

    checkout: Path
    env: dict[str, str]

    @property
    def work(self) -> Path:
        return Path(self.env["AUT_WORK"])

    @property
    def copy(self) -> Path:
        return self.work / "copies/tiny"

    def command(self, *args: str, timeout: float = 600, code: int | None = 0) -> str:
        """Output of `python -m ...` in the checkout, both streams."""
        done = subprocess.run(
            [sys.executable, "-m", *args],
            cwd=self.checkout,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert code is None or done.returncode == code, done.stdout[-4000:]
        return done.stdout

    def run(self, *overrides: str, profile: str = "tiny") -> str:
        return self.command("aut", "run", "--profile", profile, *overrides)


def stages(output: str, how: str) -> set[str]:
    """Verbs of the stages that a run reports as 'ran' or 'cached'."""
    mark = {"ran": "+ ", "cached": "= "}[how]
    return {line.split()[1].partition("@")[0] for line in output.splitlines() if line.strip().startswith(mark)}


def make_place(folder: Path, **env: str) -> Place:
    """A clone of the tree under test, uncommitted edits included, committed there."""
    checkout = folder / "checkout"
    workcopy.clone_at(ROOT, checkout, workcopy._head(ROOT))
    workcopy._overlay(ROOT, checkout)
    (checkout / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "add", "-A"], cwd=checkout, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "under test"], cwd=checkout, check=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AUT_", "MLFLOW_", "PREFECT_", "DVC_"))}
    own = {
        "AUT_WORK": str(folder / "work"),
        "AUT_CHECKOUT": str(checkout),
        "AUT_DVC_REMOTE": str(folder / "remote"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "DVC_SITE_CACHE_DIR": str(folder / "dvc-site"),
        "PYTHONPATH": str(checkout),
    }
    return Place(checkout, clean | own | env)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[Place, str]:
    """A place where profile tiny has run once, and what that printed."""
    place = make_place(tmp_path_factory.mktemp("flow"))
    return place, place.run()
