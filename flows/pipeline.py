"""The flow `aut`: the graph of dvc.yaml, stage by stage, as early as each may run.

In    profile, Hydra overrides, the first and last stage; `version` starts from a registered version instead
Out   artefacts in the profile's working copy, a parent MLflow run, a registered version
Why   DVC decides whether a stage runs, Prefect when and where: order, retries, limits, links. Price: one process
      of DVC a stage, about a second; stages whose inputs did not change are skipped before that.
Run   aut run --profile demo            (in this process)
      prefect deployment run aut/finetune   (on a worker)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from aut.workcopy import checkout_root, working_copy
from flows.graph import Stage, read_graph, select
from flows.lineage import Lineage
from flows.reproduce import Outcome, StageFailed, changed_stages, reproduce_stage
from flows.say import say

CORES = os.cpu_count() or 1
JOBS = int(os.environ.get("AUT_JOBS", CORES))
GPU = threading.Semaphore(1)  # one stage a GPU set


def worth_retrying(_task: Any, _run: Any, state: Any) -> bool:
    """A killed child or a full disk may pass; bad params, bad data and failed limits do not."""
    error = state.result(raise_on_failure=False)
    return not (isinstance(error, StageFailed) and error.hopeless)


class Run:
    """What the tasks of one flow run share. A plain object: Prefect copies collections that it is handed."""

    def __init__(self, root: Path, log: Path, env: Mapping[str, str], dirty: set[str]) -> None:
        self.root, self.log, self.env, self.dirty = root, log, env, dirty

    def limits(self, stage: Stage) -> dict[str, str]:
        """Threads of a stage: all cores for the base, which runs alone, else a fair share."""
        threads = CORES if stage.verb == "base" else max(1, CORES // JOBS)
        return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} | dict(self.env)

    def may_skip(self, stage: Stage) -> bool:
        """Whether neither the stage nor anything it needs has moved since it last ran."""
        return stage.name not in self.dirty and not self.dirty.intersection(stage.needs)


@task(
    task_run_name="{stage.name}",
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=worth_retrying,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def reproduce(stage: Stage, run: Run) -> Outcome:
    """One stage of the graph."""
    if run.may_skip(stage):
        return Outcome(stage.name, "cached", 0.0)
    with GPU if stage.gpu and _has_gpu() else nullcontext():
        outcome = reproduce_stage(run.root, stage.name, run.limits(stage), run.log / f"{stage.name}.log", say.line)
    if outcome.how == "ran":
        run.dirty.add(stage.name)
    say.outcome(outcome)
    return outcome


def _has_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists()


@flow(name="aut", task_runner=ThreadPoolTaskRunner(max_workers=JOBS), persist_result=False)
def aut(
    profile: str = "demo",
    overrides: list[str] | None = None,
    first: str = "index",
    last: str = "register",
    version: str | None = None,
    place: Literal["here", "deployment"] = "here",
) -> str:
    """Runs the graph; the parent MLflow run's id. StageFailed names the first stage that failed."""
    checkout = checkout_root()
    copy = profile if version is None else f"{profile}-v{version}"
    with working_copy(checkout, copy, profile, overrides or []) as (layout, params):
        lineage = Lineage.begin(checkout, layout, params, flow_run.get_id(), version)
        stages = select(read_graph(layout.root), first, last)
        with lineage.shipping() as env:
            try:
                run = Run(layout.root, layout.work / "logs" / copy, env, changed_stages(layout.root))
                outcomes = _run_all(stages, run)
            except BaseException:
                lineage.end("FAILED")
                raise
        lineage.end("FINISHED", outcomes)
        return lineage.run_id


def _run_all(stages: list[Stage], run: Run) -> list[Outcome]:
    futures: dict[str, PrefectFuture[Outcome]] = {}
    for stage in stages:
        waits = [futures[n] for n in stage.needs if n in futures]
        futures[stage.name] = reproduce.submit(stage, run, wait_for=waits)
    results = [f.result(raise_on_failure=False) for f in futures.values()]
    failures = [r for r in results if isinstance(r, StageFailed)]
    if failures:
        raise failures[0]
    for future in futures.values():
        future.result()  # raises what was no StageFailed
    return [r for r in results if isinstance(r, Outcome)]
