"""What must survive. Each scenario is a fault of the table in docs/operations.md, on one platform, in this order."""

from __future__ import annotations

import json
import re
import subprocess
import time

import pytest

from aut.training.loop import LOG_EVERY
from tests.platform.conftest import SERVICES, SHORT, Stack, ask, make_stack, until

READY_S = 90
DEAD_S = 180


def fine_tune(stack: Stack, seed: int, steps: int, place: str = "deployment") -> str:
    """A run up to `finetune` with a seed of its own, so that nothing of it is cached; its id, once it trains."""
    overrides = [*SHORT, f"finetune.seeds=[{seed}]", f"finetune.schedule.steps={steps}"]
    run = stack.start(*overrides, last="finetune", place=place)
    until(lambda: points(stack, run), 300, lambda: f"{stack.state(run)}\n{log(stack)}")
    return run


def trainer(stack: Stack, run: str) -> list[str]:
    """Ids of the MLflow runs of the flow run's fine-tune, over all its starts, newest first."""
    parents = [r["info"]["run_id"] for r in stack.runs(**{"aut.stage": "run", "aut.flow_run": run})]
    found = [stack.runs(**{"aut.stage": "finetune", "mlflow.parentRunId": parent}) for parent in parents]
    return [r["info"]["run_id"] for rows in found for r in rows]


def points(stack: Stack, run: str) -> list[int]:
    """Steps whose loss MLflow has, over all starts of the flow run's fine-tune."""
    return [int(p["step"]) for r in trainer(stack, run) for p in stack.metric(r, "loss")]


def log(stack: Stack) -> str:
    return stack.compose("logs", "--tail", "40", "worker-cpu")


def all_points(stack: Stack, run: str, steps: int) -> None:
    """Every loss that a fine-tune reports is there."""
    expected = {*range(LOG_EVERY, steps + 1, LOG_EVERY), steps}
    until(
        lambda: set(points(stack, run)) >= expected, 120, lambda: str(sorted(expected - set(points(stack, run)))[:20])
    )


def test_up_from_nothing(stack, told):
    took = stack.up()
    told["healthy_s"] = round(took, 1)
    assert all(stack.healthy(service) for service in SERVICES)
    names = {d["name"] for d in stack.prefect("/deployments/filter", {})}
    assert names == {"finetune", "probe", "gpu"}
    status, body = ask(f"{stack.logins['AUT_SERVE_URL']}/health/ready")
    assert status == 503
    assert b"docker compose exec worker-cpu prefect deployment run aut/finetune" in body
    assert took < READY_S


def test_a_deployment_makes_a_version(stack, told):
    """By `docker compose exec`, as the README says, on a platform without a GPU."""
    start = time.monotonic()
    words = ["prefect", "deployment", "run", "aut/finetune", "-p", "profile=tiny", "--watch", "--watch-timeout", "900"]
    output = stack.inside("worker-cpu", *words, timeout=1000)
    told["run_s"] = round(time.monotonic() - start, 1)
    assert "Completed" in output, output + log(stack)
    assert stack.versions() == ["1"]
    report = stack.inside("worker-cpu", "aut", "doctor", check=False)
    assert "WRONG" not in report, report


def test_down_and_up_keeps_everything(stack, told):
    before = facts(stack)
    stack.down()
    told["healthy_s"] = round(stack.up(), 1)
    assert facts(stack) == before
    assert told["healthy_s"] < READY_S


def facts(stack: Stack) -> dict[str, object]:
    """What must outlive containers, and volumes with a backup: runs, versions with their aliases, deployments."""
    models = stack.mlflow("registered-models/search?max_results=100").get("registered_models", [])
    return {
        "runs": sorted((r["info"]["run_id"], r["info"]["status"]) for r in stack.runs()),
        "versions": stack.versions(),
        "aliases": [sorted((a["alias"], a["version"]) for a in m.get("aliases", ())) for m in models],
        "deployments": sorted((d["id"], d["name"]) for d in stack.prefect("/deployments/filter", {})),
        "flow runs": sorted(r["id"] for r in stack.prefect("/flow_runs/filter", {})),
    }


def test_wrong_password_no_password_another_host(stack, told):
    mlflow, prefect = stack.logins["MLFLOW_TRACKING_URI"], stack.logins["PREFECT_API_URL"]
    search = {"max_results": 1}
    for login in (None, "admin:password1234", "admin:"):
        assert ask(f"{mlflow}/api/2.0/mlflow/experiments/search", login, search)[0] == 401
        assert ask(f"{mlflow}/api/2.0/mlflow-artifacts/artifacts", login)[0] == 401
        assert ask(f"{prefect}/deployments/filter", login, {})[0] == 401
    good = f"admin:{stack.logins['MLFLOW_TRACKING_PASSWORD']}"
    status, body = ask(f"{mlflow}/api/2.0/mlflow/experiments/search", good, search, {"Host": "evil.example.org"})
    assert status == 403
    assert b"experiments" not in body
    # Prefect takes any name, and nobody without its login, which a page elsewhere does not have.
    elsewhere = {"Host": "evil.example.org", "Origin": "http://evil.example.org"}
    assert ask(f"{prefect}/deployments/filter", None, {}, elsewhere)[0] == 401
    assert ask(f"{prefect}/deployments/filter", stack.logins["PREFECT_API_AUTH_STRING"], {}, elsewhere)[0] == 200
    serve = stack.logins["AUT_SERVE_URL"]
    assert ask(f"{serve}/v1/models")[0] == 401
    told["statuses"] = [401, 403]


def test_the_servers_account_can_only_read(stack, told):
    password = stack.inside("serve", "cat", "/secrets/serve/mlflow_password")
    uri = stack.logins["MLFLOW_TRACKING_URI"]
    assert ask(f"{uri}/api/2.0/mlflow/experiments/search", f"serve:{password}", {"max_results": 1})[0] == 200
    found = stack.mlflow("experiments/get-by-name?experiment_name=aut")["experiment"]["experiment_id"]
    body = {"experiment_id": found, "new_name": "taken"}
    assert ask(f"{uri}/api/2.0/mlflow/experiments/update", f"serve:{password}", body)[0] == 403


def test_no_secret_is_in_an_image_a_log_or_a_tag(stack, told):
    secrets = {v for k, v in stack.logins.items() if k.endswith(("PASSWORD", "KEY", "AUTH_STRING"))}
    secrets |= {stack.inside("worker-cpu", "cat", "/secrets/worker/mlflow_reader_password")}
    for service in SERVICES:
        told_by = subprocess.run(["docker", "inspect", stack.container(service)], capture_output=True, text=True).stdout
        image = stack.inspect(service, "{{.Image}}")
        history = subprocess.run(["docker", "history", "--no-trunc", image], capture_output=True, text=True).stdout
        places = {"inspect": told_by, "history": history, "log": stack.compose("logs", service)}
        for place, text in places.items():
            assert not [s for s in secrets if s in text], f"a secret is in the {place} of {service}"
    tags = json.dumps(stack.runs())
    assert not [s for s in secrets if s in tags]


def test_the_ports_are_on_the_loopback_address_only(stack, told):
    for service in SERVICES:
        ports = json.loads(stack.inspect(service, "{{json .HostConfig.PortBindings}}")) or {}
        assert {b["HostIp"] for bound in ports.values() for b in bound} <= {"127.0.0.1"}


def test_a_worker_is_killed_in_the_fine_tune(stack, told):
    steps, every = 200, 10
    run = fine_tune(stack, seed=11, steps=steps)
    until(lambda: max(points(stack, run), default=0) >= 3 * every, 120)
    stack.kill("worker-cpu")
    start = time.monotonic()
    died = max(points(stack, run))
    until(lambda: crashed(stack, run), DEAD_S + 30, lambda: stack.state(run))
    told["crashed_after_s"] = round(time.monotonic() - start, 1)
    until(lambda: stack.prefect(f"/flow_runs/{run}")["run_count"] == 2, 120, lambda: stack.state(run))
    told["started_again_after_s"] = round(time.monotonic() - start, 1)
    assert stack.ended(run) == "Completed", log(stack)
    resumed = resumed_at(stack, "adapted-11")
    told |= {"reported_step_at_death": died, "resumed_from_step": resumed, "lost_steps": max(0, died - resumed)}
    assert resumed > 0, "it began anew"
    assert died - resumed <= every
    all_points(stack, run, steps)
    assert told["crashed_after_s"] < DEAD_S
    states = [r["info"]["status"] for r in stack.runs(**{"aut.stage": "run", "aut.flow_run": run})]
    assert states == ["FINISHED", "KILLED"]


def resumed_at(stack: Stack, item: str) -> int:
    """The step from which the stage's last start went on, as it says itself; 0 where it began anew."""
    command = f"cat /var/lib/aut/logs/*/finetune@{item}.log"
    said = re.findall(r"resumes at step (\d+)", stack.inside("worker-cpu", "sh", "-c", command))
    return int(said[-1]) if said else 0


def crashed(stack: Stack, run: str) -> bool:
    names = {s["name"] for s in stack.prefect(f"/flow_run_states/?flow_run_id={run}")}
    return "Crashed" in names


def test_a_crash_is_started_again_twice_and_no_more(stack, told):
    """Three crashes of a run that no worker holds, so that nothing but the automation moves it on."""
    stack.compose("stop", "worker-cpu")
    try:
        run = stack.start(last="index")
        for _ in range(3):
            until(lambda: kind(stack, run) == "SCHEDULED", 60, lambda: stack.state(run))
            for state in ("PENDING", "RUNNING", "CRASHED"):
                body = {"state": {"type": state, "name": state.title()}, "force": True}
                stack.prefect(f"/flow_runs/{run}/set_state", body)
        time.sleep(20)  # a third start would have come within two
        found = stack.prefect(f"/flow_runs/{run}")
        told["starts"] = found["run_count"]
        assert (found["run_count"], found["state"]["type"]) == (3, "CRASHED")
    finally:
        stack.compose("up", "-d", "--wait", "worker-cpu")


def kind(stack: Stack, run: str) -> str:
    """The type of the run's state: a scheduled one that is late has another name."""
    return str(stack.prefect(f"/flow_runs/{run}")["state"]["type"])


def test_mlflow_is_away_for_a_minute(stack, told):
    steps = 200
    run = fine_tune(stack, seed=12, steps=steps, place="here")
    stack.compose("stop", "mlflow")
    time.sleep(60)
    stack.compose("up", "-d", "--wait", "mlflow")
    assert stack.ended(run, 600) == "Completed", log(stack)
    all_points(stack, run, steps)
    told["points"] = len(set(points(stack, run)))


def test_postgres_is_restarted_in_a_run(stack, told):
    steps = 150
    run = fine_tune(stack, seed=13, steps=steps, place="here")
    stack.compose("restart", "postgres")
    until(lambda: stack.healthy("postgres"), 60)
    told["ended"] = stack.ended(run, 600)
    if told["ended"] != "Completed":  # failed cleanly: the same run again resumes
        run = stack.start(*SHORT, "finetune.seeds=[13]", f"finetune.schedule.steps={steps}", last="finetune")
        assert stack.ended(run, 600) == "Completed", log(stack)
    all_points(stack, run, steps)
    assert not [r for r in stack.runs(**{"aut.flow_run": run}) if r["info"]["status"] == "RUNNING"]


def test_the_prefect_server_is_restarted_in_a_run(stack, told):
    steps = 150
    run = fine_tune(stack, seed=14, steps=steps)
    start = time.monotonic()
    stack.compose("restart", "prefect")
    until(lambda: stack.healthy("prefect"), 120)
    told["away_s"] = round(time.monotonic() - start, 1)
    assert stack.ended(run, 600) == "Completed", log(stack)
    assert stack.prefect(f"/flow_runs/{run}")["run_count"] == 1
    all_points(stack, run, steps)


def test_three_gigabytes_go_through_the_proxy(stack, told):
    """Up and down again, byte for byte, with a server that is limited to half of that."""
    script = """
import hashlib, json, os, tempfile, time
from pathlib import Path
from aut.edges import artifacts, store, tracking
uri = tracking.resolve_uri()
client = store.client(uri)
run = client.create_run(store.experiment_id(uri, None), run_name="three-gigabytes").info.run_id
with tempfile.TemporaryDirectory() as folder:
    big = Path(folder) / "model.safetensors"
    block = os.urandom(1 << 20)
    with big.open("wb") as f:
        for _ in range(3 * 1024):
            f.write(block)
    digest = lambda p: hashlib.file_digest(p.open("rb"), "blake2b").hexdigest()
    whole, start = digest(big), time.monotonic()
    artifacts.log_artifact(uri, run, big, "big")
    up, start = time.monotonic() - start, time.monotonic()
    big.unlink()
    back = artifacts.download(uri, run, "big", Path(folder)) / "model.safetensors"
    down = time.monotonic() - start
    print(json.dumps({"same": digest(back) == whole, "bytes": back.stat().st_size, "up_s": up, "down_s": down}))
client.delete_run(run)
"""
    seen = json.loads(stack.inside("worker-cpu", "python", "-c", script, timeout=1200).splitlines()[-1])
    # Of each process the most it ever held: the cgroup's own peak counts the page cache too.
    peaks = stack.inside("mlflow", "sh", "-c", "grep -h VmHWM /proc/[0-9]*/status", check=False).splitlines()
    told |= {k: round(v, 1) for k, v in seen.items() if k.endswith("_s")}
    told["server_memory_peak_gb"] = round(sum(int(p.split()[1]) for p in peaks) * 1024 / 1e9, 2)
    told["server_memory_limit_gb"] = round(int(stack.inspect("mlflow", "{{.HostConfig.Memory}}")) / 1e9, 2)
    assert seen["same"]
    assert seen["bytes"] == 3 << 30
    assert stack.inspect("mlflow", "{{.RestartCount}} {{.State.OOMKilled}}") == "0 false"
    stack.inside("mlflow", "find", "/artifacts", "-name", "model.safetensors", "-size", "+2G", "-delete")


def test_backup_wipe_restore(stack, told, tmp_path):
    before = facts(stack)
    start = time.monotonic()
    env = stack.env | {"COMPOSE_PROJECT_NAME": stack.project}
    subprocess.run(["sh", "scripts/backup.sh", tmp_path / "backup"], env=env, check=True, capture_output=True)
    told["backup_s"] = round(time.monotonic() - start, 1)
    stack.down("--volumes")
    start = time.monotonic()
    done = subprocess.run(["sh", "scripts/restore.sh", tmp_path / "backup"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told["restore_s"] = round(time.monotonic() - start, 1)
    stack.learn()
    assert facts(stack) == before
    uri = "models:/whisper-aut@candidate"
    script = f"import aut; print(aut.load_encoder('{uri}').width)"
    assert stack.inside("worker-cpu", "python", "-c", script).strip().isdigit()


def test_a_full_artifact_volume(told, tmp_path):
    """On a platform of its own, whose artifacts lie in a small file system."""
    small = make_stack("aut-test-full")
    override = tmp_path / "small.yml"
    options = "{type: tmpfs, device: tmpfs, o: 'size=64m,uid=10001,gid=10001'}"
    override.write_text(f"volumes:\n  artifacts: {{driver: local, driver_opts: {options}}}\n")
    small.files.append(str(override))
    small.down("--volumes")
    try:
        small.up("mlflow", "prefect", "worker-cpu")
        small.inside("mlflow", "sh", "-c", "cat /dev/zero > /artifacts/filler", check=False)
        run = small.start(last="index")
        assert small.ended(run) == "Failed"
        message = str(small.prefect(f"/flow_runs/{run}")["state"]["message"])
        told["message"] = message[:300]
        assert "artifact" in message.lower() or "space" in message.lower(), message
        assert small.healthy("mlflow")
        small.inside("mlflow", "rm", "/artifacts/filler")
        run = small.start(last="index")
        assert small.ended(run) == "Completed", log(small)
    finally:
        small.down("--volumes")


@pytest.mark.parametrize("target", ["platform", "worker", "serving"])
def test_an_image_is_labelled_runs_as_nobody_and_holds_no_compiler(stack, told, target):
    image = f"aut-{target}:local"
    found = json.loads(subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=True).stdout)[0]
    assert found["Config"]["User"] == "aut"
    assert found["Config"]["Labels"]["org.opencontainers.image.revision"]
    assert found["Config"]["Healthcheck"]
    told["gb"] = round(found["Size"] / 1e9, 2)
    look = "for t in gcc g++ cc make ld; do command -v $t && exit 1; done; exit 0"
    subprocess.run(["docker", "run", "--rm", "--entrypoint", "sh", image, "-c", look], check=True)
