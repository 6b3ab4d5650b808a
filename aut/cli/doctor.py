"""`aut doctor`: what is wrong with this machine and the remedy, a line a check. Exit code 1 if any failed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path

import typer

from aut.cli.findings import Finding
from aut.cli.services import mlflow_findings, prefect_findings, serve_findings
from aut.errors import AutError
from aut.layout import Layout

MIN_FREE_GB = 5.0


def _python() -> Finding:
    version = sys.version.split()[0]
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Finding("python", "ok", version)
    return Finding("python", "wrong", version, "use Python 3.11 or 3.12: make PYTHON=python3.11 setup")


def _packages() -> Iterator[Finding]:
    for name in ("transformers", "accelerate", "deepspeed", "mlflow", "prefect", "dvc"):
        if util.find_spec(name) is None:
            yield Finding(name, "wrong", "not installed", "make setup, or pip install 'aut[pipeline]'")
        else:
            yield Finding(name, "ok", metadata.version(name))


def _torch() -> Finding:
    import torch

    gpus = torch.cuda.device_count()
    if gpus:
        names = {torch.cuda.get_device_name(i) for i in range(gpus)}
        return Finding("torch", "ok", f"{torch.__version__}, {gpus} x {', '.join(sorted(names))}")
    if Path("/proc/driver/nvidia/version").exists():
        return Finding(
            "torch",
            "wrong",
            f"{torch.__version__} sees no GPU, though a driver is loaded",
            "install the CUDA build: rm -r .venv && make setup",
        )
    return Finding("torch", "note", f"{torch.__version__}, no GPU: stages marked for one run on the CPU")


def _disk() -> Iterator[Finding]:
    layout = _checkout()
    layout.work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(layout.work).free / 1e9
    state = "ok" if free >= MIN_FREE_GB else "wrong"
    yield Finding("AUT_WORK", state, f"{layout.work}, {free:.0f} GB free", "" if state == "ok" else "free some space")
    data = os.environ.get("AUT_DATA")
    if not data:
        yield Finding("AUT_DATA", "note", "not set: only generated corpora can be read", "set it, or pass --audio")
    elif not Path(data).is_dir():
        yield Finding("AUT_DATA", "wrong", f"{data} is no folder", "mount the corpora there, or set another")
    else:
        yield Finding("AUT_DATA", "ok", data)


def _remote() -> Finding:
    from aut.workcopy import remote_url

    url = remote_url(_checkout().work)
    if "://" in url:
        return Finding("DVC remote", "ok", url)
    parent = next(p for p in (Path(url), *Path(url).parents) if p.exists())
    if os.access(parent, os.W_OK):
        return Finding("DVC remote", "ok", url)
    return Finding("DVC remote", "wrong", f"{url} cannot be written", "set AUT_DVC_REMOTE to one that can")


def _tracking() -> Finding:
    from aut.edges import tracking
    from aut.edges.store import plain

    layout = _checkout()
    uri = tracking.resolve_uri(tracking.embedded_uri(layout))
    if uri.startswith("http") and plain(uri) != uri:
        login = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        return Finding("MLflow", "wrong", f"the address {plain(uri)} holds a login", login)
    tracking.ready(uri, layout)
    return Finding("MLflow", "ok", plain(uri))


def _checkout() -> Layout:
    from aut.workcopy import checkout_root

    return Layout(checkout_root())


CHECKS: tuple[Callable[[], Finding | Iterator[Finding]], ...] = (
    _python,
    _packages,
    _torch,
    _disk,
    _remote,
    _tracking,
    mlflow_findings,
    prefect_findings,
    serve_findings,
)


def findings() -> Iterator[Finding]:
    """Every check's findings; a check that breaks is itself a finding."""
    for check in CHECKS:
        try:
            found = check()
            yield from [found] if isinstance(found, Finding) else found
        except AutError as error:
            yield Finding(check.__name__.strip("_"), "wrong", error.what, error.remedy)
        except Exception as error:  # the doctor reports, it does not fall ill
            yield Finding(check.__name__.strip("_"), "wrong", str(error), "")


def doctor() -> None:
    """Check this machine and the services: what is wrong, and the remedy."""
    marks = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}
    wrong = 0
    for finding in findings():
        wrong += finding.state == "wrong"
        remedy = f"  ->  {finding.remedy}" if finding.remedy else ""
        typer.echo(f"{marks[finding.state]}  {finding.what:<13}  {finding.detail}{remedy}")
    if wrong:
        raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    app.command()(doctor)
