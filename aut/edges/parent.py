"""Parent runs: one MLflow run a pipeline run, under which every stage's run is nested.

A flow opens its own. A stage started alone finds the newest parent of the same revision and params, or opens one,
under a file lock, so that stages started one after another (or together) share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from aut.edges.spool import code_revision, flat, params_digest
from aut.edges.store import client, experiment_id, mlflow_module, ready
from aut.files import locked
from aut.layout import Layout

PARAMS_A_CALL = 100  # MLflow's limits of one log_batch call
METRICS_A_CALL = 1000
TEXT_MAX = 6000  # of a param's value


def open_parent(uri: str, params: BaseModel | Mapping[str, Any], layout: Layout, tags: Mapping[str, str]) -> str:
    """Opens the run of a pipeline run, with all params, the code's revision and `tags`; returns its id.

    Raises TrackingError when the store cannot be used.
    """
    values = params.model_dump(mode="json", by_alias=True) if isinstance(params, BaseModel) else dict(params)
    identity = {
        "profile": values.get("profile", ""),
        "seed": values.get("seed"),
        "revision": code_revision(layout),
        "params_digest": params_digest(layout),
    }
    ready(uri, layout)
    run_id = _create(uri, layout, identity, tags)
    log_params(uri, run_id, flat(values))
    return run_id


def close_parent(uri: str, run_id: str, status: str) -> None:
    """Ends the run: FINISHED, FAILED or KILLED."""
    client(uri).set_terminated(run_id, status)


def close_abandoned(uri: str, flow_run: str) -> int:
    """Ends as KILLED what dead earlier starts of the same flow run left open; returns how many starts there were."""
    parents = [r.info.run_id for r in find_runs(uri, {"aut.flow_run": flow_run, "aut.stage": "run"}, limit=100)]
    runs = [r for parent in parents for r in find_runs(uri, {"mlflow.parentRunId": parent}, limit=1000)]
    open_ids = [r.info.run_id for r in runs if r.info.status == "RUNNING"]
    for run_id in (*open_ids, *parents):
        if client(uri).get_run(run_id).info.status == "RUNNING":
            close_parent(uri, run_id, "KILLED")
    return len(parents)


def find_or_open_parent(uri: str, start: Mapping[str, Any], layout: Layout) -> str:
    """The newest parent with this revision and params digest; opened when there is none.

    One opened here only groups stages that come and go, so it is marked as finished at once.
    """
    with locked(layout.work / "locks/mlflow-parent.lock", "opening the parent run", wait=True):
        wanted = {"aut.revision": start["revision"], "aut.params_digest": start["params_digest"], "aut.stage": "run"}
        found = find_runs(uri, wanted, limit=1)
        if found:
            return str(found[0].info.run_id)
        run_id = _create(uri, layout, start, {})
        if layout.params.exists() and params_digest(layout) == start["params_digest"]:
            log_params(uri, run_id, flat(yaml.safe_load(layout.params.read_text())))
        close_parent(uri, run_id, "FINISHED")
        return run_id


def find_runs(uri: str, tags: Mapping[str, str], limit: int) -> list[Any]:
    """Runs of the experiment with all these tags, newest first."""
    clauses = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
    found: list[Any] = client(uri).search_runs(
        [experiment_id(uri, None)], " and ".join(clauses), max_results=limit, order_by=["attributes.start_time DESC"]
    )
    return list(found)


def log_params(uri: str, run_id: str, values: Mapping[str, str]) -> None:
    param = mlflow_module().entities.Param
    for part in parts([param(k, v[:TEXT_MAX]) for k, v in values.items()], PARAMS_A_CALL):
        client(uri).log_batch(run_id, params=part)


def parts(rows: Iterable[Any], size: int) -> list[list[Any]]:
    """The rows in lists of at most `size`."""
    rows = list(rows)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _create(uri: str, layout: Layout, identity: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    own = {f"aut.{k}": str(identity[k]) for k in ("profile", "seed", "revision", "params_digest")}
    own |= {"aut.stage": "run", "mlflow.source.git.commit": str(identity["revision"])[:40], **tags}
    name = f"run-{identity['profile']}" if identity["profile"] else "run"
    return str(client(uri).create_run(experiment_id(uri, layout), tags=own, run_name=name).info.run_id)
