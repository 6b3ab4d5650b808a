"""Platform: how long `docker compose up` takes, what the stack holds when idle, what an edit costs.

In    a Docker engine; the images are built first where they are not there (not counted)
Out   healthy_s (`up -d --wait` from empty volumes to all healthy), idle_gb (memory of all containers, a minute later;
      10 s quick), rebuild_s (`docker compose build` of all images after an edit of aut/__init__.py), image_*_gb (as the
      engine counts them, uncompressed, the base image included)
Why   an operator waits for the first and pays for the second; a researcher waits for the third
Run   python -m benchmarks.platform [--quick]          where no engine answers it says so and measures nothing
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path

from benchmarks._common import arguments, finish, machine, say

ROOT = Path(__file__).parents[1]
PROJECT = "aut-bench"
IMAGES = {"image_platform_gb": "aut-platform", "image_worker_gb": "aut-worker", "image_serving_gb": "aut-serving"}
UNITS = {"B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}


def main() -> None:
    options = arguments("Start the platform from nothing, and look at what it holds.").parse_args()
    if not answers():
        say("no Docker engine answers: nothing was measured")
        finish("platform", {}, False, {})
        return
    try:
        compose("build")
        compose("down", "--volumes", "--remove-orphans")
        say("up")
        figures = {"healthy_s": timed("up", "-d", "--wait")}
        time.sleep(10 if options.quick else 60)
        figures["idle_gb"] = memory_gb()
    finally:
        compose("down", "--volumes", "--remove-orphans")
    say("an edit")
    figures |= {"rebuild_s": rebuild_s()} | {name: size_gb(image) for name, image in IMAGES.items()}
    versions = {"engine": told("docker", "version", "--format", "{{.Server.Version}}")}
    versions["compose"] = told("docker", "compose", "version", "--short")
    finish("platform", figures, options.keep, {"machine": machine("mlflow", "prefect") | versions})


def answers() -> bool:
    return bool(shutil.which("docker")) and not subprocess.run(["docker", "info"], capture_output=True).returncode


def told(*args: str) -> str:
    return subprocess.run(args, capture_output=True, text=True, check=True).stdout.strip()


def environment() -> dict[str, str]:
    """Ports of its own, nothing of the platform that may run beside it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AUT_") or k == "AUT_TORCH_INDEX"}
    return (
        clean
        | {"AUT_VERSION": PROJECT}
        | {f"AUT_{name}_PORT": str(free_port()) for name in ("MLFLOW", "PREFECT", "SERVE")}
    )


def free_port() -> int:
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def compose(*args: str, root: Path = ROOT) -> str:
    done = subprocess.run(
        ["docker", "compose", "-p", PROJECT, *args], cwd=root, env=environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"docker compose {' '.join(args)}: {done.stderr[-2000:]}")
    return done.stdout


def timed(*args: str, root: Path = ROOT) -> float:
    start = time.monotonic()
    compose(*args, root=root)
    return time.monotonic() - start


def memory_gb() -> float:
    """Of all containers of the project, as `docker stats` counts it (page cache that can be dropped left out)."""
    rows = told("docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}").splitlines()
    used = [row.split()[1] for row in rows if row.startswith(f"{PROJECT}-")]
    return sum(_bytes(text) for text in used) / 1e9


def _bytes(text: str) -> float:
    unit = text.lstrip("0123456789.")
    return float(text.removesuffix(unit)) * UNITS[unit]


def rebuild_s() -> float:
    """All images, after one line of code was added to a copy of the tree."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "checkout"
        for name in told("git", "-C", str(ROOT), "ls-files", "-z").split("\0"):
            if name and (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        compose("build", root=root)
        with (root / "aut/__init__.py").open("a") as f:
            f.write(f"\n# {time.time()}\n")
        return timed("build", root=root)


def size_gb(image: str) -> float:
    return float(json.loads(told("docker", "image", "inspect", f"{image}:{PROJECT}"))[0]["Size"]) / 1e9


if __name__ == "__main__":
    main()
