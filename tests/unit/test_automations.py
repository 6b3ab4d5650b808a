"""What a real Prefect server does with the automations: which crashed runs start again, and that none does for ever."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.mlflow_server import environment
from tests.waiting import answers, wait_for

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, sys, time
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from flows.deploy import automations, keep

for automation in automations():
    keep(automation)

def types(client, run):
    return [s.type.value for s in client.read_flow_run_states(run)]

def crash(client, run, *before):
    for kind in (*before, "CRASHED"):
        client.set_flow_run_state(run, State(type=StateType(kind), name=kind.title()), force=True)

def scheduled_again(client, run, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if client.read_flow_run(run).state.type == StateType.SCHEDULED:
            return True
        time.sleep(0.2)
    return False

QUIET_S = 6.0  # a start comes within two seconds, on a busy machine later: those that must come are waited for
MUST = {"never": 1, "started": 2, "lost": 1}
starts = {}

def patience(name):
    return 60 if starts[name] < MUST[name] else QUIET_S

with get_client(sync_client=True) as client:
    time.sleep(3)  # the server reads its automations anew
    flow = client.create_flow_from_name("aut")
    for name, before in {"never": ["PENDING"], "started": ["PENDING", "RUNNING"]}.items():
        deployment = client.create_deployment(flow, "finetune")
        run = client.create_flow_run_from_deployment(deployment).id
        starts[name] = 0
        crash(client, run, *before)
        while starts[name] < 6 and scheduled_again(client, run, patience(name)):
            starts[name] += 1
            crash(client, run, *before)
    # started once, crashed, and lost again and again before it could start
    run = client.create_flow_run_from_deployment(deployment).id
    starts["lost"] = 0
    crash(client, run, "PENDING", "RUNNING")
    while starts["lost"] < 6 and scheduled_again(client, run, patience("lost")):
        starts["lost"] += 1
        crash(client, run, "PENDING")
print(json.dumps(starts))
"""


@pytest.mark.slow
def test_a_crashed_run_starts_again_and_not_for_ever(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    env = environment(PREFECT_HOME=str(tmp_path), PREFECT_API_URL=api, PREFECT_SERVER_ANALYTICS_ENABLED="false")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: answers(f"{api}/health"), 90)
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240
        )
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert done.stdout.strip().splitlines()[-1:] == ['{"never": 1, "started": 2, "lost": 1}'], done.stdout + done.stderr
