"""Restore: a registered version's data, models and evidence, back in a clone; nothing is computed.

In    a version of the registered model, the git commit it names, the DVC remote
Out   a clone at that commit with params.yaml, dvc.lock and every output
Why   a pull needs dvc.lock, and no robot commits to git: the lock lies with the version's parent MLflow run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from aut.edges import artifacts, registry, tracking
from aut.edges.registry import VersionFacts
from aut.errors import DataError
from aut.files import locked
from aut.layout import RESTORING, Layout
from aut.workcopy import clone_at, command, point_dvc, tool_env

INPUTS = {"index", "screen", "mixture", "export"}
"""Stages whose outputs probing and comparing read."""


def restore_version(version: str, checkout: Path, into: Path | None = None) -> Path:
    """Brings `version` (a number or an alias) back; the folder. DataError where something is not in the remote."""
    layout = Layout(checkout)
    uri = tracking.resolve_uri(tracking.embedded_uri(layout))
    facts = registry.version_facts(uri, version)
    root = into.resolve() if into else layout.work / "copies" / f"{facts.profile}-v{facts.version}"
    commit = facts.revision.partition("-dirty")[0]
    with locked(root.with_name(f"{root.name}.lock"), f"a restore into {root}"), tempfile.TemporaryDirectory() as draft:
        kept = kept_files(uri, facts, Path(draft))
        clone_at(checkout, root, commit)
        patch = kept / "edits.patch"
        if patch.exists() and patch.stat().st_size:
            command(["git", "apply", "--whitespace=nowarn", patch], root)
        shutil.copytree(kept, root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("edits.patch"))
        point_dvc(root, layout.work)
        _pull(root, facts.version)
    return root


def kept_files(uri: str, facts: VersionFacts, into: Path) -> Path:
    """The folder of params.yaml, dvc.lock, inventories and edits kept with the run that made a version."""
    kept = artifacts.download(uri, facts.parent_run, "reproduce", into)
    if not (kept / "dvc.lock").exists():
        raise DataError(
            f"version {facts.version} has no dvc.lock with its run {facts.parent_run}",
            "its run was cut short before the end: `aut run` again completes it",
        )
    return kept


def pull_inputs(version: str, layout: Layout) -> VersionFacts:
    """Into a working copy at today's code: what a registered version is made of, up to its exported encoders.

    For probing it again. Sets that the version never had are not there: index them first.
    """
    uri = tracking.resolve_uri(tracking.embedded_uri(layout))
    facts = registry.version_facts(uri, version)
    with tempfile.TemporaryDirectory() as draft:
        kept = kept_files(uri, facts, Path(draft))
        shutil.copy2(kept / "dvc.lock", layout.root / "dvc.lock")
        if (kept / "data").is_dir():
            shutil.copytree(kept / "data", layout.root / "data", dirs_exist_ok=True)
    stages = yaml.safe_load((layout.root / "dvc.lock").read_text())["stages"]
    wanted = [s for s in stages if s.partition("@")[0] in INPUTS]
    command([sys.executable, "-m", "dvc", "--wait-for-lock", "pull", *wanted], layout.root)
    return facts


def _pull(root: Path, version: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "--pull"],
        cwd=root,
        env=tool_env() | {RESTORING: "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        told = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("aut: ", "ERROR"))]
        raise DataError(
            f"version {version} is not whole in the DVC remote: {' '.join(told[-2:])}", "push from where it was made"
        )
