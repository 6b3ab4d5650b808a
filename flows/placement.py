"""Stages that want a GPU, run on another host: the deployment `aut-stage/gpu` and how results travel.

    parent                                            worker of the pool `h200`
    dvc push (outputs, run-cache)  ->  DVC remote  ->  dvc repro --pull
    dvc.lock                       ->  MLflow run  ->  dvc.lock
    merge, dvc pull                <-  MLflow run  <-  its dvc.lock, after dvc push

Out   the group's entries in the parent's dvc.lock, its outputs in the parent's working copy
Why   a pull needs dvc.lock; a group (all of `base`, all of `embed`) goes over at once, because starting a flow run
      and a working copy costs ten seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import yaml
from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.runtime import flow_run

from aut.datasets import is_generated, prepare
from aut.edges import tracking
from aut.errors import AutError, ConfigError
from aut.files import write_bytes
from aut.layout import Layout
from aut.workcopy import checkout_root, command, revision, working_copy
from flows.graph import read_graph
from flows.lineage import Lineage
from flows.reproduce import reproduce_stage, warm_server
from flows.say import say

HANDOVER = "handover"
GPU_DEPLOYMENT = "aut-stage/gpu"


class WorkerDied(AutError):
    """The run of some stages on another host was marked Crashed."""


def hand_over(stages: Sequence[str], layout: Layout, lineage: Lineage, profile: str, overrides: Sequence[str]) -> None:
    """Runs a group of stages as the deployment `aut-stage/gpu` and takes its results in."""
    dvc(layout.root, "push", "--run-cache")
    folder = f"{HANDOVER}/{stages[0].partition('@')[0]}"
    with locked_repo(layout.root):  # a stage beside us may be writing it
        lineage.keep_lock(f"{folder}/start")
    started = run_deployment(
        GPU_DEPLOYMENT,
        parameters={
            "stages": list(stages),
            "profile": profile,
            "overrides": list(overrides),
            "commit": revision(checkout_root()),
            "parent_run": lineage.run_id,
            "folder": folder,
        },
    )
    done = cast(FlowRun, started)  # a coroutine only inside an event loop, which a task's thread has not
    if done.state is None or not done.state.is_completed():
        state = done.state.name if done.state else "lost"
        failure = WorkerDied if done.state and done.state.is_crashed() else AutError
        raise failure(f"stages {', '.join(stages)} ended {state} on the GPU worker", f"see flow run {done.id}")
    merge_lock(layout.root, lineage.fetch_lock(f"{folder}/end"), stages)
    dvc(layout.root, "pull", *stages)


@flow(name="aut-stage", persist_result=False)
def aut_stage(stages: list[str], profile: str, overrides: list[str], commit: str, parent_run: str, folder: str) -> None:
    """The worker's side: a working copy at the parent's state, the stages, everything pushed, the lock handed back."""
    checkout = checkout_root()
    if (here := revision(checkout)) != commit:
        raise ConfigError(f"this worker's checkout is at {here}, the run is at {commit}", "bring it to that commit")
    with working_copy(checkout, f"{profile}-stages", profile, overrides) as (layout, params):
        uri = tracking.resolve_uri(tracking.embedded_uri(layout))
        lineage = Lineage(uri, parent_run, layout, flow_run.get_id() or "")
        write_bytes(layout.root / "dvc.lock", lineage.fetch_lock(f"{folder}/start"))
        needs = {n for s in read_graph(layout.root) if s.name in stages for n in s.needs} - set(stages)
        # By name: `repro --pull` cannot fetch a dependency that is a folder above outputs, like data/index/speech.
        dvc(layout.root, "pull", *sorted(needs))
        for source in params.sources.values():  # a generated corpus is not in the remote: it is made where it is heard
            if is_generated(source.dataset):
                prepare(source.dataset, layout.corpus_root(source.dataset, source.path), source.options)
        log = layout.work / "logs" / f"{profile}-stages"
        with lineage.shipping(part=lineage.flow_run) as tied, warm_server(checkout, {}) as warm:
            for stage in stages:  # one after the other: each may take the whole GPU set
                say.outcome(reproduce_stage(layout.root, stage, tied | warm, log / f"{stage}.log", say.line))
        dvc(layout.root, "push", "--run-cache", *stages)
        lineage.keep_lock(f"{folder}/end")


def merge_lock(root: Path, theirs: bytes, stages: Sequence[str]) -> None:
    """Takes the entries of `stages` from another dvc.lock, holding DVC's own lock meanwhile."""
    with locked_repo(root):
        path = root / "dvc.lock"
        ours = yaml.safe_load(path.read_text())
        other = yaml.safe_load(theirs)["stages"]
        ours["stages"] |= {name: other[name] for name in stages}
        write_bytes(path, yaml.safe_dump(ours, sort_keys=False).encode())


@contextmanager
def locked_repo(root: Path) -> Iterator[None]:
    """DVC's own lock of a working copy: it rewrites dvc.lock in place, so a reader could see half of it."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo, repo.lock:
        yield


def dvc(root: Path, *args: str) -> str:
    """A DVC command in a working copy, waiting for stages that hold its lock."""
    return command([sys.executable, "-m", "dvc", "--wait-for-lock", *args], root)
