"""docker-compose.yml and Dockerfile as text: what must hold wherever they are used, with or without an engine."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
ONCE = {"init", "migrate", "deploy", "deploy-gpu", "backup"}
SECRET = re.compile(r"PASSWORD|SECRET|AUTH_STRING|_KEY")


@pytest.fixture(params=sorted(SERVICES))
def service(request):
    return request.param, SERVICES[request.param]


def test_ports_are_published_on_one_address_that_is_the_loopback(service):
    for port in service[1].get("ports", ()):
        assert port.startswith("${AUT_BIND:-127.0.0.1}:")


def test_only_what_people_open_is_published():
    assert {name for name, s in SERVICES.items() if s.get("ports")} == {"mlflow", "prefect", "serve"}


def test_secrets_come_from_files(service):
    for name in service[1].get("environment", {}):
        if SECRET.search(name):
            assert name.endswith("_FILE") or name == "PGPASSFILE", f"{service[0]}: {name}"


def test_every_variable_is_optional_and_ours():
    text = (ROOT / "docker-compose.yml").read_text()
    for name, default in re.findall(r"(?<!\$)\$\{([A-Z0-9_]+)(:-)?", text):
        assert default, f"{name} has no default"
        assert name.startswith("AUT_")


def test_every_service_is_limited_and_logs_are_rotated(service):
    name, s = service
    assert s["mem_limit"], name
    assert set(s["logging"]["options"]) == {"max-size", "max-file"}
    assert s["cap_drop"] == ["ALL"]
    assert s["security_opt"] == ["no-new-privileges:true"]
    assert s["read_only"] or name == "postgres"


def test_what_serves_starts_again_and_what_runs_once_does_not(service):
    name, s = service
    assert s["restart"] in (("no", "on-failure:3") if name in ONCE else ("unless-stopped",))


def test_a_worker_knows_where_every_service_is():
    """Else its `aut doctor` skips one in silence."""
    for name in ("worker-cpu", "worker-gpu"):
        told = SERVICES[name]["environment"]
        assert told["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
        assert told["PREFECT_API_URL"] == "http://prefect:4200/api"
        assert told["AUT_SERVE_URL"] == "http://serve:8080"


def test_services_wait_until_what_they_need_is_healthy_or_done(service):
    for needed, how in service[1].get("depends_on", {}).items():
        assert how["condition"] == ("service_completed_successfully" if needed in ONCE else "service_healthy")


def test_what_runs_once_is_waited_for():
    """Else `up --wait` takes its end for a failure."""
    awaited = {n for s in SERVICES.values() for n, how in s.get("depends_on", {}).items()}
    for name in ONCE - {"backup"}:
        assert name in awaited


def test_volumes_are_named_and_corpora_and_checkout_read_only(service):
    for volume in service[1].get("volumes", ()):
        if isinstance(volume, dict):
            assert volume["read_only"]
            continue
        source, target = re.sub(r"\$\{\w+:-([\w/]+)\}", r"\1", volume).split(":")[:2]
        assert source in COMPOSE["volumes"] or volume.endswith(":ro"), volume
        if target in ("/data", "/checkout"):
            assert volume.endswith(":ro")


def test_nothing_is_installed_at_a_start(service):
    words = " ".join([*service[1].get("command", ()), *service[1].get("entrypoint", ())])
    assert "install" not in words


def test_the_gpu_worker_asks_for_a_gpu_and_is_in_its_profile():
    gpu = SERVICES["worker-gpu"]
    assert gpu["profiles"] == SERVICES["deploy-gpu"]["profiles"] == ["gpu"]
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert gpu["shm_size"] == "16g"


def test_code_is_copied_after_packages():
    """A change of code must not install anything again."""
    for stage in re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.M):
        code = re.search(r"^COPY (\.|aut) ", stage, flags=re.M)
        assert not code or "pip install" not in stage[code.start() :]


def test_the_lock_of_the_servers_agrees_with_the_whole_lock():
    def pins(path):
        return dict(line.lower().split("==") for line in path.read_text().split())

    whole, servers = pins(ROOT / "requirements.lock"), pins(ROOT / "mlflow/requirements.lock")
    assert all(whole.get(name, version) == version for name, version in servers.items())


def test_no_password_is_written_anywhere():
    for path in ("docker-compose.yml", "Dockerfile", "mlflow/basic_auth.ini", "docker/postgres/databases.sh"):
        text = (ROOT / path).read_text()
        assert not re.search(r"(?i)password\s*[:=]\s*['\"]?[a-z0-9]{4,}", text.replace("/secrets", "")), path


def test_keys_of_a_bucket_are_a_file_that_need_not_be(service):
    """Never a variable: `docker inspect` shows those."""
    environment = service[1].get("environment", {})
    assert not [name for name in environment if name.startswith("AWS_") and name != "AWS_SHARED_CREDENTIALS_FILE"]
    if "AWS_SHARED_CREDENTIALS_FILE" in environment:
        mount = "${AUT_AWS_CREDENTIALS:-/dev/null}:" + environment["AWS_SHARED_CREDENTIALS_FILE"] + ":ro"
        assert mount in service[1]["volumes"]


def test_make_up_tells_the_images_their_commit(tmp_path):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if head.returncode or not shutil.which("make"):
        pytest.skip("needs make, in a clone")
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "$AUT_REVISION $*"\n')
    docker.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if k != "AUT_REVISION"} | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["make", "-s", "up"], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [head.stdout.strip(), "compose", "up", "-d", "--wait"]
    for service in SERVICES.values():
        if "build" in service:
            assert service["build"]["args"]["REVISION"] == "${AUT_REVISION:-unknown}"


def test_serve_without_a_version_tells_what_can_be_typed_on_this_host():
    """A host with Docker only has no `aut`."""
    assert SERVICES["serve"]["environment"]["AUT_SERVE_HINT"].startswith("docker compose exec worker-cpu ")


def test_compose_takes_the_file():
    if not _composes():
        pytest.skip("docker compose is not installed")
    done = subprocess.run(
        ["docker", "compose", "--profile", "gpu", "config", "-q"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def _composes() -> bool:
    """A client without the plug-in takes `compose` for no command, or for one of its own, by version and flags."""
    try:
        return subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
