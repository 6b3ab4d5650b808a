"""Tracking: the MLflow side of a run, for the command line and the flow.

In    spools of stage processes, dvc.lock, data/runs/*.json
Out   a parent run with one nested run a stage; tags that close the chain from DVC's digests to the runs
Why   stages never import MLflow; what they report is shipped from here (see spool.py and shipper.py)
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aut.edges.parent import close_abandoned, close_parent, find_runs, open_parent
from aut.edges.shipper import Shipper, forget_sent, send_folder, unsent
from aut.edges.store import (
    check_server,
    client,
    config_file,
    embedded_uri,
    insist,
    ready,
    resolve_uri,
    saved_uri,
    use,
)
from aut.errors import AutError, Busy
from aut.files import read_json
from aut.layout import Layout

__all__ = [
    "Shipper",
    "close_abandoned",
    "close_parent",
    "config_file",
    "embedded_uri",
    "insist",
    "latest_runs",
    "open_parent",
    "ready",
    "resolve_uri",
    "saved_uri",
    "send_alone",
    "send_leftovers",
    "tag_outs",
    "use",
]

TAG_MAX = 5000  # characters; MLflow refuses longer tag values on some stores


def send_alone(folder: Path, layout: Layout, limit_s: float) -> None:
    """Sends the spool of a stage that runs without a flow, from inside its own process.

    Raises TrackingError once the store has been away for `limit_s` (a server that is down: at once).
    """
    uri = resolve_uri(embedded_uri(layout))
    ready(uri, layout)
    until = time.monotonic() + limit_s
    while True:
        try:
            return send_folder(uri, folder, layout)
        except Busy:
            raise
        except AutError:
            if time.monotonic() > until:
                raise
            if uri.startswith("http"):
                check_server(uri)
            time.sleep(1.0)


def send_leftovers(uri: str, layout: Layout) -> int:
    """Sends what earlier runs could not; returns how many stages' spools are still unsent.

    Spools of live stages count as unsent. Those that were wholly sent before are removed.
    """
    spool = layout.work / "spool"
    forget_sent(spool)
    folders = unsent(spool)
    if folders:
        ready(uri, layout)
    for folder in folders:
        with suppress(Busy):
            send_folder(uri, folder, layout)
    return len(unsent(spool))


def tag_outs(uri: str, layout: Layout) -> int:
    """Sets `aut.dvc` (DVC's digest of each out) on the runs named in data/runs; returns how many were tagged.

    DVC knows the digests only after a stage's process has ended, so this is for the flow's end.
    """
    import yaml

    lock = layout.root / "dvc.lock"
    stages = (yaml.safe_load(lock.read_text()) or {}).get("stages", {}) if lock.exists() else {}
    tagged = 0
    for stage in stages.values():
        outs = {o["path"]: o.get("md5", "") for o in stage.get("outs", [])}
        record = next((layout.root / p for p in outs if p.startswith("data/runs/")), None)
        with suppress(AutError):
            run_id = read_json(record)["run_id"] if record else None
            if run_id:
                client(uri).set_tag(run_id, "aut.dvc", json.dumps(outs, sort_keys=True)[:TAG_MAX])
                tagged += 1
    return tagged


def latest_runs(uri: str, limit: int = 10) -> list[dict[str, Any]]:
    """The newest pipeline runs: run_id, name, status, start_ms, profile, revision, flow_run."""
    return [_summary(run) for run in find_runs(uri, {"aut.stage": "run"}, limit)]


def _summary(run: Any) -> dict[str, Any]:
    tags: Mapping[str, str] = run.data.tags
    return {
        "run_id": run.info.run_id,
        "name": run.info.run_name,
        "status": run.info.status,
        "start_ms": run.info.start_time,
        "profile": tags.get("aut.profile", ""),
        "revision": tags.get("aut.revision", ""),
        "flow_run": tags.get("aut.flow_run", ""),
    }
