"""System: what the machine does while a stage runs, as MLflow's own system metrics are named and shown.

In    the kernel's counters (psutil), nvidia-smi where there is a GPU
Out   `system/...` metrics in the stage's spool, every EVERY_S
Why   MLflow's monitor needs mlflow in the stage's process and a server that answers; the spool loses no point.
      nvidia-smi comes with the driver, so that no package is asked for. Price: a thread; short stages have no sample.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

EVERY_S = 10.0
QUERY = ("index", "utilization.gpu", "memory.used", "memory.total", "power.draw")
MIB_MB = 1.048576  # nvidia-smi counts in MiB, MLflow in MB


class Metrics(Protocol):
    def metrics(self, values: dict[str, float], step: int | None = None) -> None: ...


@contextmanager
def watched(track: Metrics) -> Iterator[None]:
    """Samples the machine for as long as the block lasts."""
    stop = threading.Event()
    thread = threading.Thread(target=_sample, args=(track, stop), name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()


def _sample(track: Metrics, stop: threading.Event) -> None:
    number, sample = 0, None
    while not stop.wait(EVERY_S):
        sample = sample or sampler()
        try:
            track.metrics({f"system/{name}": value for name, value in sample().items()}, number)
        except (OSError, ValueError):  # the stage ended while we looked
            return
        number += 1


def sampler() -> Callable[[], dict[str, float]]:
    """A function that reads the counters; network counts from now on."""
    import psutil

    start = psutil.net_io_counters()
    psutil.cpu_percent()  # what is asked first has nothing to compare with
    gpus = shutil.which("nvidia-smi")

    def sample() -> dict[str, float]:
        memory, disk, net = psutil.virtual_memory(), psutil.disk_usage("/"), psutil.net_io_counters()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.used / memory.total * 100.0,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / 1e6,
            "disk_available_megabytes": disk.free / 1e6,
            "network_receive_megabytes": (net.bytes_recv - start.bytes_recv) / 1e6,
            "network_transmit_megabytes": (net.bytes_sent - start.bytes_sent) / 1e6,
        }
        return values | (gpu_metrics(_ask(gpus)) if gpus else {})

    return sample


def gpu_metrics(table: str) -> dict[str, float]:
    """Rows of `nvidia-smi --query-gpu=... --format=csv,noheader,nounits`; what is no number is left out."""
    values: dict[str, float] = {}
    for line in table.splitlines():
        cells: list[Any] = [_number(cell) for cell in line.split(",")]
        if len(cells) != len(QUERY) or cells[0] is None:
            continue
        index, busy, used, total, power = cells
        gpu = {
            "utilization_percentage": busy,
            "memory_usage_megabytes": None if used is None else used * MIB_MB,
            "memory_usage_percentage": used / total * 100.0 if used is not None and total else None,
            "power_usage_watts": power,
        }
        values |= {f"gpu_{index:.0f}_{name}": value for name, value in gpu.items() if value is not None}
    return values


def _ask(program: str) -> str:
    command = [program, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=EVERY_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:  # [N/A]
        return None
