"""Files kept with a run: put there, and fetched again on another machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from aut.edges.store import SERVER, client, mlflow_module, plain
from aut.errors import TrackingError
from aut.layout import Layout


def log_artifact(uri: str, run_id: str, path: Path, folder: str) -> None:
    """A file, or a folder's contents, under the artifact folder `folder/<name>`. TrackingError: it was not taken."""
    store = client(uri)
    with _keeping(uri, run_id, path.name):
        if path.is_dir():
            store.log_artifacts(run_id, str(path), f"{folder}/{path.name}".strip("/"))
        else:
            store.log_artifact(run_id, str(path), folder or None)


def log_text(uri: str, run_id: str, text: str, name: str) -> None:
    """A text as the artifact `name`. TrackingError: it was not taken."""
    with _keeping(uri, run_id, name):
        client(uri).log_text(run_id, text, name)


@contextmanager
def _keeping(uri: str, run_id: str, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each store has errors of its own; a server whose volume is full says only 500
        first = " ".join(str(error).split())[:200]
        raise TrackingError(
            f"MLflow at {plain(uri)} could not keep the artifact '{what}' of run {run_id}: {first}",
            "is there room where its artifacts lie, and does it know us? see `aut doctor`",
        ) from error


def set_tags(uri: str, run_id: str, tags: Mapping[str, str]) -> None:
    store = client(uri)
    for name, value in tags.items():
        store.set_tag(run_id, name, value)


def download(uri: str, run_id: str, folder: str, into: Path) -> Path:
    """The run's artifact folder, below `into`; TrackingError where the run has none of that name."""
    mlflow = mlflow_module()
    try:
        return Path(
            mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=folder, dst_path=str(into), tracking_uri=uri
            )
        )
    except Exception as error:  # MLflow wraps each store's own error differently
        first = " ".join(str(error).split())[:200]
        raise TrackingError(f"run {run_id} on {plain(uri)} gives no '{folder}': {first}") from error


def serve_embedded(uri: str, layout: Layout, port: int) -> None:
    """MLflow's page on the embedded store, on the loopback address, until it is stopped."""
    root = (layout.work / "mlartifacts").as_uri()
    args = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", uri]
    args += ["--default-artifact-root", root]
    subprocess.run([*args, "--host", "127.0.0.1", "--port", str(port)], env=SERVER | os.environ, check=False)
