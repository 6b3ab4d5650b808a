"""A run without services: Prefect's server, MLflow's database and the warm process, brought up side by side.

In    the checkout; what the environment already names (PREFECT_API_URL, MLFLOW_TRACKING_URI) is used as it is
Out   the flow, once all three are there
Why   one after the other they take half a minute, as long as many a run.
      Prefect would start a server of its own when first asked: later, and one that outlives a run that is killed.
      Price: the command line that Prefect starts its server with is repeated here.
Run   with embedded(checkout) as flow: flow(profile="demo")
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from aut.errors import AutError
from aut.layout import Layout
from flows.reproduce import die_with_parent, stage_limits, warm_server

IDLE_SERVICES = ("SCHEDULER", "LATE_RUNS", "PAUSE_EXPIRATIONS", "CANCELLATION_CLEANUP", "FOREMAN", "TRIGGERS")
"""One run needs no scheduler: the server starts in half the time."""
START_S = 120.0
CHOSEN = ("PREFECT_API_URL", "PREFECT_PROFILES_PATH", "PREFECT_HOME")
"""Where one of these is set, which server to use is Prefect's to find out."""


@contextmanager
def embedded(checkout: Layout) -> Iterator[Callable[..., str]]:
    """The flow `aut`, to be called in this process. AutError where Prefect's server does not come up."""
    signal.signal(signal.SIGTERM, _interrupt)
    own = not any(name in os.environ for name in CHOSEN)
    quiet_prefect(checkout)
    log = Path(os.environ["PREFECT_HOME"]) / "server.log"
    with prefect_server(log) if own else nullcontext(lambda: None) as wait:
        flow = _flow(checkout)
        with warm_server(checkout.root, stage_limits()) as warm, set_env(warm):
            wait()
            yield flow


@contextmanager
def set_env(values: Mapping[str, str]) -> Iterator[None]:
    """Variables that this process and its children have inside the block, and not after it."""
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]


def _flow(checkout: Layout) -> Callable[..., str]:
    """The flow, its libraries imported, and MLflow's database made if it is ours to make."""
    from aut.edges import tracking
    from flows.pipeline import aut

    uri = tracking.resolve_uri(tracking.embedded_uri(checkout))
    if not uri.startswith("http"):
        tracking.ready(uri, checkout)
    return aut


def quiet_prefect(checkout: Layout) -> None:
    """Prefect keeps its files under AUT_WORK and says only what matters; what you set stays.

    CRITICAL, because a server that ends is reported as errors; a stage's error is raised, not logged.
    """
    os.environ.setdefault("PREFECT_HOME", str(checkout.work / "prefect"))
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    for name in ("PREFECT_LOGGING_LEVEL", "PREFECT_SERVER_LOGGING_LEVEL"):
        os.environ.setdefault(name, "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90")  # where Prefect starts its own
    for service in IDLE_SERVICES:
        os.environ.setdefault(f"PREFECT_SERVER_SERVICES_{service}_ENABLED", "false")


@contextmanager
def prefect_server(log: Path) -> Iterator[Callable[[], None]]:
    """A server on a free port of loopback, named in PREFECT_API_URL; what is yielded waits until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    args = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    args += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    env = os.environ | {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    with log.open("w") as out:
        server = subprocess.Popen(
            args, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, preexec_fn=die_with_parent
        )
    try:
        with set_env({"PREFECT_API_URL": url}):
            yield lambda: _until_healthy(server, url, log)
    finally:
        server.terminate()
        server.wait()


def _until_healthy(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and server.poll() is None:
        with suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310
            return
        time.sleep(0.1)
    told = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    raise AutError(f"the Prefect server of this run did not come up: {told[0]}", f"see {log}; set PREFECT_API_URL")


def _interrupt(_signal: int, _frame: object) -> None:
    """Dying of SIGTERM, this process would close nothing."""
    raise KeyboardInterrupt
