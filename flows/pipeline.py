"""The flow `aut`: the graph of dvc.yaml, stage by stage, as early as each may run.

In    profile, Hydra overrides, the first and last stage; `version` starts from a registered version instead
Out   artefacts in the profile's working copy, a parent MLflow run, a registered version
Why   DVC decides whether a stage runs, Prefect when and where: order, retries, limits, links. Price: one process
      of DVC a stage, about a second; stages whose inputs did not change are skipped before that.
Run   aut run --profile demo            (in this process)
      prefect deployment run aut/finetune   (on a worker)
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from aut.errors import AutError
from aut.layout import Layout
from aut.restore import pull_inputs
from aut.sources import scan
from aut.workcopy import checkout_root, working_copy
from flows.graph import STAGES, Stage, read_graph, select
from flows.lineage import Lineage
from flows.placement import WorkerDied, dvc, hand_over
from flows.reproduce import (
    JOBS,
    Children,
    Outcome,
    StageFailed,
    changed_stages,
    has_gpu,
    reproduce_stage,
    stage_limits,
    warm_server,
)
from flows.say import say

SLOTS = threading.Semaphore(JOBS)
# A task that waits for another holds a thread, so threads are many and SLOTS bounds the stages that run.
THREADS = cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=256))  # invariant in its future
GPU = threading.Semaphore(1)  # one stage a GPU set
INTERRUPTED = threading.Event()
"""A signal stopped this process's run: whatever Prefect raises then (its server got the signal too) is no error."""


def worth_retrying(_task: Any, _run: Any, state: Any) -> bool:
    """A killed child or a full disk may pass; bad params, bad data and failed limits do not."""
    error = state.result(raise_on_failure=False)
    return not (isinstance(error, StageFailed) and error.hopeless)


def worker_died(_task: Any, _run: Any, state: Any) -> bool:
    """The other host is gone: its pool may have another. A stage that failed there was retried there."""
    return isinstance(state.result(raise_on_failure=False), WorkerDied)


@dataclass(eq=False)
class Run:
    """What the tasks of one flow run share; `dirty` grows with the stages that ran."""

    layout: Layout
    lineage: Lineage
    profile: str
    overrides: list[str]
    place: str
    env: dict[str, str]
    log: Path
    dirty: set[str]
    children: Children = field(default_factory=Children)

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
    with GPU if stage.gpu and has_gpu() else nullcontext(), SLOTS:
        log = run.log / f"{stage.name}.log"
        outcome = reproduce_stage(run.layout.root, stage.name, run.env, log, say.line, run.children)
    if outcome.how == "ran":
        run.dirty.add(stage.name)
    say.outcome(outcome)
    return outcome


@task(
    task_run_name="{verb} on the GPU pool",
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=worker_died,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def reproduce_elsewhere(verb: str, group: list[Stage], run: Run) -> None:
    """The stages of one verb, as the deployment `aut-stage/gpu`; those that nothing moved are left out."""
    moved = [s.name for s in group if not run.may_skip(s)]
    if moved:
        hand_over(moved, run.layout, run.lineage, run.profile, run.overrides)
        run.dirty.update(moved)
        say.line(f"+ {verb}  {len(moved)} stages on the GPU pool")


@flow(name="aut", task_runner=THREADS, persist_result=False)
def aut(
    profile: str = "demo",
    overrides: list[str] | None = None,
    first: str = "index",
    last: str = "register",
    version: str | None = None,
    place: Literal["here", "deployment"] = "here",
    copy_name: str | None = None,
) -> str:
    """Runs the graph; the parent MLflow run's id. StageFailed names the first stage that failed.

    `copy_name` names the working copy, by default the profile: overrides to be kept apart need one of their own.
    `version` (a number or an alias) brings that version's encoders in first: with first='embed' it is probed again.
    """
    overrides = overrides or []
    checkout = checkout_root()
    copy = copy_name or copy_of(profile, version)
    with (
        warm_server(checkout, stage_limits()) as warm,
        working_copy(checkout, copy, profile, overrides) as (layout, params),
    ):
        if version is not None:
            pull_inputs(version, layout)
        for source in params.sources if first == "index" else ():
            scan(params, layout, source)
        lineage = Lineage.begin(checkout, layout, params, flow_run.get_id(), version)
        stages = select(read_graph(layout.root), first, last)
        outcomes: list[Outcome] = []
        try:
            with lineage.shipping() as tied:
                dirty = changed_stages(layout.root)
                log = layout.work / "logs" / copy
                env = tied | stage_limits() | warm
                run = Run(layout, lineage, profile, overrides, place, env, log, dirty)
                outcomes = _run_all(stages, run)
                dvc(layout.root, "push", "--run-cache")
        except BaseException:
            lineage.end("FAILED")
            raise
        lineage.end("FINISHED", outcomes)
        return lineage.run_id


def copy_of(profile: str, version: str | None) -> str:
    """Name of the working copy of a run; a version probed again has its own."""
    return profile if version is None else f"{profile}-v{version}"


def _run_all(stages: list[Stage], run: Run) -> list[Outcome]:
    """Submits every stage behind what it needs; all that can finish does, then the first failure is raised."""
    futures: dict[str, PrefectFuture[Any]] = {}
    for group in _groups(stages, run.place == "deployment"):
        waits = [futures[n] for s in group for n in s.needs if n in futures]
        if len(group) == 1 and not (group[0].gpu and run.place == "deployment"):
            future: PrefectFuture[Any] = reproduce.submit(group[0], run, return_state=False, wait_for=waits)
        else:
            future = reproduce_elsewhere.submit(group[0].verb, group, run, return_state=False, wait_for=waits)
        futures |= {s.name: future for s in group}
    try:
        results = [_ended(f) for f in dict.fromkeys(futures.values())]
    except BaseException:  # Ctrl-C, SIGTERM: the threads would see their stages through to the end
        INTERRUPTED.set()
        say.line("stopping: finished stages are kept, the same command goes on from here")
        run.children.stop()
        raise
    for failure in sorted((r for r in results if isinstance(r, BaseException)), key=_ours_first):
        raise failure
    return [r for r in results if isinstance(r, Outcome)]


def _ended(future: PrefectFuture[Any]) -> Any:
    """A task's result or its exception; None where it never started because what it needs had failed."""
    future.wait()
    if future.state.is_pending():
        return None
    return future.state.result(raise_on_failure=False)


def _ours_first(error: BaseException) -> bool:
    return not isinstance(error, AutError)


def _groups(stages: list[Stage], elsewhere: bool) -> list[list[Stage]]:
    """Stages one by one; with `elsewhere`, those that want a GPU together by verb."""
    groups: list[list[Stage]] = []
    for stage in sorted(stages, key=lambda s: STAGES.index(s.verb)):
        if elsewhere and stage.gpu and groups and groups[-1][0].verb == stage.verb:
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return groups
