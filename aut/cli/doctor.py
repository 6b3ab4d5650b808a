"""`aut doctor`: what is wrong with this machine and the remedy, a line a check. Exit code 1 if any failed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import typer

MIN_FREE_GB = 5.0


@dataclass(frozen=True)
class Finding:
    """One check: `ok`, `note` (works, but you may want to know) or `wrong`, with the remedy."""

    what: str
    state: str
    detail: str
    remedy: str = ""


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
    from aut.layout import here

    layout = here()
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
    from aut.layout import here
    from aut.workcopy import remote_url

    url = remote_url(here().work)
    if "://" in url:
        return Finding("DVC remote", "ok", url)
    parent = next(p for p in (Path(url), *Path(url).parents) if p.exists())
    if os.access(parent, os.W_OK):
        return Finding("DVC remote", "ok", url)
    return Finding("DVC remote", "wrong", f"{url} cannot be written", "set AUT_DVC_REMOTE to one that can")


def _tracking() -> Finding:
    from aut.edges import tracking
    from aut.layout import here

    layout = here()
    uri = tracking.resolve_uri(tracking.embedded_uri(layout))
    tracking.ready(uri, layout)
    return Finding("MLflow", "ok", uri)


def _prefect() -> Finding:
    import urllib.error
    import urllib.request

    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return Finding("Prefect", "ok", "in this process (PREFECT_API_URL is not set)")
    if not url.startswith(("http://", "https://")):
        return Finding("Prefect", "wrong", f"PREFECT_API_URL is {url}", "it starts with http:// and ends with /api")
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5):  # noqa: S310 - scheme checked above
            return Finding("Prefect", "ok", url)
    except (urllib.error.URLError, TimeoutError) as error:
        return Finding(
            "Prefect", "wrong", f"{url}: {error}", "start it (`prefect server start`) or unset PREFECT_API_URL"
        )


CHECKS: tuple[Callable[[], Finding | Iterator[Finding]], ...] = (
    _python,
    _packages,
    _torch,
    _disk,
    _remote,
    _tracking,
    _prefect,
)


def findings() -> Iterator[Finding]:
    """Every check's findings; a check that breaks is itself a finding."""
    for check in CHECKS:
        try:
            found = check()
            yield from [found] if isinstance(found, Finding) else found
        except Exception as error:  # the doctor reports, it does not fall ill
            yield Finding(check.__name__.strip("_"), "wrong", str(error), "")


def doctor() -> None:
    """Check Python, torch, GPUs, disk, DVC remote, MLflow and Prefect; say what is wrong and the remedy."""
    marks = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}
    wrong = 0
    for finding in findings():
        wrong += finding.state == "wrong"
        remedy = f"  ->  {finding.remedy}" if finding.remedy else ""
        typer.echo(f"{marks[finding.state]}  {finding.what:<12}  {finding.detail}{remedy}")
    if wrong:
        raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    app.command()(doctor)
