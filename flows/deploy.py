"""Pools and deployments on the Prefect server that PREFECT_API_URL names. Safe to run again at any time.

Out   pools `cpu` and `h200` (one run a GPU set), deployments of prefect.yaml; without a GPU pool `aut-stage/gpu`
      points at `cpu`
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from aut.errors import AutError
from aut.workcopy import checkout_root, tool_env


def deploy(gpu: bool, gpu_limit: int = 1) -> None:
    """Makes the pools and deployments; AutError with Prefect's own words where it refuses."""
    root = checkout_root()
    _prefect(root, "work-pool", "create", "cpu", "--type", "process", "--overwrite")
    if gpu:
        _prefect(root, "work-pool", "create", "h200", "--type", "process", "--overwrite")
        _prefect(root, "work-pool", "set-concurrency-limit", "h200", str(gpu_limit))
    for name, pool in (("finetune", "cpu"), ("probe", "cpu"), ("gpu", "h200" if gpu else "cpu")):
        _prefect(root, "--no-prompt", "deploy", "--name", name, "--pool", pool)


def _prefect(root: Path, *args: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *args], cwd=root, env=tool_env(), capture_output=True, text=True
    )
    if done.returncode:
        told = " ".join((done.stdout + done.stderr).split())[-400:]
        raise AutError(f"`prefect {' '.join(args)}` failed: {told}", "is PREFECT_API_URL right? see `aut doctor`")
