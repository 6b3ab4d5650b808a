"""Pools, deployments and automations on the Prefect server that PREFECT_API_URL names. Safe to run again at any time.

Out   pools `cpu` and `h200` (one run a GPU set), the deployments of prefect.yaml, three automations
Why   without a GPU pool `aut-stage/gpu` points at `cpu`.
      A worker that dies says nothing: runs that miss their heartbeats are marked Crashed here, and started again.
      Price: a run is dead for up to two minutes before anybody knows.
Run   aut deploy [--gpu] [--gpu-sets N]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.workers.process import ProcessWorker

from aut.errors import AutError
from aut.workcopy import checkout_root, tool_env

SILENT = timedelta(minutes=2)
"""Four heartbeats of 30 s (job_variables in prefect.yaml; with Prefect's own 180 s every long run would be dead).
A server restarted within it is no death."""
STARTS = timedelta(minutes=5)
AGAIN = 2  # times that a run which crashed after it had started is started again
ONCE = timedelta(days=1)
"""A run is started again once in that time for each count of its starts, 0 among them: Prefect counts a start when the
run is Running, so that one which its worker loses before would be started again for ever."""

RUN: dict[str, str | list[str]] = {"prefect.resource.id": "prefect.flow-run.*"}
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Crashed", "Cancelled")}


def deploy(gpu: bool, gpu_sets: int = 1) -> None:
    """Makes pools, deployments and automations; AutError with Prefect's own words where it refuses."""
    try:
        pool("cpu")
        if gpu:
            pool("h200", gpu_sets)
        deployments(checkout_root(), gpu)
        for automation in automations():
            keep(automation)
    except AutError:
        raise
    except Exception as error:  # Prefect's client raises errors of several libraries
        told = " ".join(str(error).split())[:300]
        raise AutError(f"the Prefect server refuses: {told}", "is PREFECT_API_URL right? see `aut doctor`") from error


def pool(name: str, limit: int | None = None) -> None:
    """A pool of workers that run flows as processes, made or brought to today's template."""
    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template), overwrite=True)
        if limit:
            client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit))


def deployments(root: Path, gpu: bool) -> None:
    """The deployments of prefect.yaml: as they are with a GPU pool, else all of them on `cpu`."""
    settings = yaml.safe_load((root / "prefect.yaml").read_text())
    if not gpu:
        for deployment in settings["deployments"]:
            deployment["work_pool"]["name"] = "cpu"
    with tempfile.TemporaryDirectory() as folder:  # the checkout may be read-only
        path = Path(folder) / "prefect.yaml"
        path.write_text(yaml.safe_dump(settings))
        _prefect(root, "--no-prompt", "deploy", "--all", "--prefect-file", str(path))


def automations() -> list[AutomationCore]:
    """What Prefect does by itself about runs that died. A stage's run (`gpu`) is its parent's to start again."""
    run = ResourceSpecification(RUN)
    died = change(StateType.CRASHED, "Crashed", "no heartbeat: its worker is gone")
    stuck = change(StateType.CRASHED, "Crashed", "never started: its worker is gone")
    again = change(StateType.SCHEDULED, "Scheduled", "started again after a crash")
    counted = ResourceSpecification(RUN | {"prefect.run-count": [str(n) for n in range(AGAIN + 1)]})
    ours = ResourceSpecification(
        {"prefect.resource.role": "deployment", "prefect.resource.name": ["finetune", "probe"]}
    )
    one: dict[str, Any] = {"for_each": {"prefect.resource.id"}, "threshold": 1}
    silent = {"posture": Posture.Proactive, "match": run, **one}
    beat, started = "prefect.flow-run.heartbeat", "prefect.flow-run.Running"
    crashed = {"prefect.flow-run.Crashed"}
    each_start: dict[str, Any] = {"for_each": {"prefect.resource.id", "prefect.run-count"}, "threshold": 1}
    return [
        AutomationCore(
            name="aut: no heartbeat is a crash",
            trigger=EventTrigger(after={beat}, expect={beat, *ENDS}, within=SILENT, **silent),
            actions=[died],
        ),
        AutomationCore(
            name="aut: no start is a crash",
            trigger=EventTrigger(
                after={"prefect.flow-run.Pending"}, expect={started, beat, *ENDS}, within=STARTS, **silent
            ),
            actions=[stuck],
        ),
        AutomationCore(
            name=f"aut: a crashed run starts again, {AGAIN} times",
            trigger=EventTrigger(
                expect=crashed, match=counted, match_related=ours, posture=Posture.Reactive, within=ONCE, **each_start
            ),
            actions=[again],
        ),
    ]


def change(state: StateType, name: str, message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=state, name=name, message=message, force=False)


def keep(automation: AutomationCore) -> None:
    """Makes the automation, or brings the one of its name to this definition.

    One that is as it should be stays untouched: an update forgets the heartbeats it waits for, and a run that died in
    that moment would stay Running for ever.
    """
    with get_client(sync_client=True) as client:
        found = client.read_automations_by_name(automation.name)
        if not found:
            client.create_automation(automation)
        elif found[0].model_dump(mode="json", exclude={"id"}) != automation.model_dump(mode="json"):
            client.update_automation(found[0].id, automation)


def _prefect(root: Path, *args: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *args], cwd=root, env=tool_env(), capture_output=True, text=True
    )
    if done.returncode:
        told = " ".join((done.stdout + done.stderr).split())[-400:]
        raise AutError(f"`prefect {' '.join(args)}` failed: {told}", "is PREFECT_API_URL right? see `aut doctor`")
