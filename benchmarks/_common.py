"""What every benchmark shares: the command line, the machine's description, the last line."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PEERS = Path(__file__).parent / "peers"


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with --quick (under a minute on two cores) and --keep (write a dated file under results/)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/<date>-<name>.json")
    return parser


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def peer(script: str, *words: object) -> dict[str, float] | None:
    """The last line of a script of peers/, run by the peers' own interpreter; None, and said, where it cannot run."""
    python = Path(os.environ.get("AUT_PEERS") or PEERS / ".venv") / "bin/python"
    if not python.exists():
        say(f"peer missing: {script} (see benchmarks/peers/README.md)")
        return None
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, PEERS / script, *map(str, words)], capture_output=True, text=True, check=False, env=own
    )
    if done.returncode:
        say(f"peer missing: {script}: {done.stderr.strip().splitlines()[-1:]}")
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def machine(*packages: str) -> dict[str, str]:
    """Processor, cores, Python and the versions of the packages that matter."""
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    versions = {p: _version(p) for p in packages}
    return {"cpu": cpu, "cores": str(os.cpu_count()), "python": platform.python_version(), **versions}


def finish(bench: str, figures: Mapping[str, float], keep: bool, facts: Mapping[str, object]) -> None:
    """Prints the last line; with `keep`, also writes the dated result with hardware, versions, command and peer."""
    line = {"bench": bench, "figures": {k: float(f"{v:.6g}") for k, v in figures.items()}}
    if keep:
        words = ("FOLDER" if Path(word).is_absolute() else word for word in sys.argv[1:])
        command = f"python -m benchmarks.{bench} {' '.join(words)}".strip()
        RESULTS.mkdir(exist_ok=True)
        result = {"date": date.today().isoformat(), "command": command, **facts, **line}
        (RESULTS / f"{date.today().isoformat()}-{bench}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(line))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
