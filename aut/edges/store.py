"""Store: which MLflow store is meant, and that it is ready before anybody writes.

In    MLFLOW_TRACKING_URI, the address saved by `aut use`, or a default
Out   a MlflowClient bound to that address: `mlflow.*` functions without one drop a database into the current folder
Why   four first writers at once ruin a fresh SQLite file: it is made once, under a lock, before the first stage
Price 2 s for the first import of mlflow in a process, 3 s for a fresh SQLite store
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from aut.errors import TrackingError
from aut.files import locked, read_json, write_json
from aut.layout import Layout

EXPERIMENT = "aut"
HEALTH_S = 5.0
INSIST_S = 300.0
INSIST_EVERY_S = 3.0
PASSING = re.compile(
    r"too many 50[234]|code 50[234]|does not answer|refused|reset by peer|timed out|"
    r"RemoteDisconnected|NameResolution|NewConnection"
)
"""Words of errors that a restart of the server, of its database or of the network explains."""
T = TypeVar("T")
DATABASES = ("sqlite:", "postgresql", "mysql", "mssql")
SETTINGS = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # a model is code and safetensors, never a pickle
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the shipper retries by itself, for as long as it takes
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
SERVER = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Of a server of MLflow's: jobs are for its judges of language models, and start eight processes."""


def config_file() -> Path:
    """`aut/config.json` below XDG_CONFIG_HOME (default ~/.config)."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "aut/config.json"


def use(uri: str) -> Path:
    """Saves the address for this user. Returns the file that keeps it."""
    uri = absolute(uri)
    path = config_file()
    saved = read_json(path) if path.exists() else {}
    write_json(path, {**saved, "tracking_uri": uri})
    return path


def saved_uri() -> str | None:
    path = config_file()
    value = read_json(path).get("tracking_uri") if path.exists() else None
    return str(value) if value else None


def resolve_uri(default: str | None = None) -> str:
    """MLFLOW_TRACKING_URI, else the address saved by `aut use`, else `default`; TrackingError without any."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or saved_uri() or default
    if not uri:
        raise TrackingError("no MLflow address is known", "set MLFLOW_TRACKING_URI or run `aut use ADDRESS`")
    return absolute(uri)


def absolute(uri: str) -> str:
    """The address, a relative SQLite path made absolute; TrackingError for what is no server and no database."""
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).expanduser().resolve()}"
    if uri.startswith(("http://", "https://", *DATABASES[1:])):
        return uri.rstrip("/")
    raise TrackingError(f"'{uri}' is no MLflow address", "give http://HOST:PORT, or sqlite:////absolute/path/mlflow.db")


def embedded_uri(layout: Layout) -> str:
    """The SQLite store of this machine: AUT_WORK/mlflow.db, artifacts in AUT_WORK/mlartifacts."""
    return f"sqlite:///{layout.work / 'mlflow.db'}"


@cache
def mlflow_module() -> Any:
    """The library, quiet; TrackingError where it is not installed."""
    if importlib.util.find_spec("mlflow") is None:
        raise TrackingError("mlflow is not installed", "install the extra: aut[registry]")
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    read_login()
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, at import
        import mlflow
        import mlflow.tracking
    quiet()
    return mlflow


def read_login() -> None:
    """MLFLOW_TRACKING_USERNAME and _PASSWORD, where unset, from the files (mounted secrets) that ..._FILE name."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        path = os.environ.get(f"{name}_FILE")
        if path and not os.environ.get(name):
            try:
                os.environ[name] = Path(path).read_text().strip()
            except OSError as error:
                raise TrackingError(f"{name}_FILE {path} cannot be read: {error}", "give a readable file") from None


@cache
def pyfunc_module() -> Any:
    """The library with `mlflow.pyfunc`, which it imports when first used, and which warns about its own code then."""
    mlflow_module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.pyfunc
    return mlflow


def quiet() -> None:
    """MLflow and alembic report each migration step and each run's link; both reset their level when used."""
    for name in ("mlflow", "alembic", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.ERROR)


def client(uri: str) -> Any:
    """A MlflowClient whose tracking and registry address are both `uri`."""
    mlflow = mlflow_module()
    if not uri.startswith("http"):
        _map_tables()
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


@cache
def _map_tables() -> None:
    """MLflow's tables use an SQLAlchemy option that is deprecated; the warning comes when they are first mapped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.store.db.utils  # noqa: F401 - imports every table
        from sqlalchemy.orm import configure_mappers

        configure_mappers()


def ready(uri: str, layout: Layout) -> None:
    """Migrates or creates the store and its experiment, once, before any writer.

    Raises TrackingError when a server does not answer or a database cannot be opened.
    """
    if uri.startswith("http"):
        check_server(uri)
    with locked(layout.work / "locks/mlflow.lock", "setting up MLflow", wait=True):
        experiment_id(uri, layout)


def experiment_id(uri: str, layout: Layout | None) -> str:
    """Id of the experiment, made when absent. A database without a server keeps artifacts below AUT_WORK."""
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    location = None if uri.startswith("http") or layout is None else (layout.work / "mlartifacts").as_uri()
    disabled = logging.root.manager.disable
    logging.disable(logging.INFO)  # alembic's own configuration would print every migration step
    try:
        store = client(uri)
        found = store.get_experiment_by_name(EXPERIMENT)
        return str(found.experiment_id if found else store.create_experiment(EXPERIMENT, artifact_location=location))
    except Exception as error:
        raise TrackingError(f"the MLflow store {plain(uri)} cannot be used: {_first_line(error)}") from error
    finally:
        logging.disable(disabled)
        quiet()


def check_server(uri: str) -> None:
    """TrackingError unless the server answers on /health."""
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=HEALTH_S) as answer:  # noqa: S310 - http(s) only
            answer.read()
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise TrackingError(
            f"the MLflow server {plain(uri)} does not answer ({reason})", "start it, or choose another with `aut use`"
        ) from None


def away(uri: str, error: BaseException) -> TrackingError:
    """What to raise when a call failed: that nothing answers there, in few words, or what the call said."""
    if uri.startswith("http"):
        try:
            check_server(uri)
        except TrackingError as told:
            return told
    return TrackingError(f"MLflow at {plain(uri)} does not answer: {_first_line(error)}")


def insist(uri: str, call: Callable[[], T], limit_s: float = INSIST_S) -> T:
    """What `call` returns, tried again while the server or its database is away; after `limit_s` what it last raised.

    An answer that will stay what it is (no room, no rights, a wrong name) is raised at once.
    """
    until = time.monotonic() + limit_s
    while True:
        try:
            return call()
        except Exception as error:
            told = " ".join(str(e) for e in (error, error.__cause__, error.__context__) if e)
            if not uri.startswith("http") or not PASSING.search(told) or time.monotonic() > until:
                raise
        time.sleep(INSIST_EVERY_S)


def plain(uri: str) -> str:
    """The address without a password."""
    scheme, found, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if found and "@" in rest else uri


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
