"""System metrics: MLflow's names, from the kernel and from nvidia-smi's table."""

import time

from aut.edges import system


class Heard:
    def __init__(self):
        self.rows = []

    def metrics(self, values, step=None):
        self.rows.append((step, values))


def test_samples_have_mlflows_names(monkeypatch):
    monkeypatch.setattr(system, "EVERY_S", 0.02)
    track, end = Heard(), time.monotonic() + 10.0
    with system.watched(track):
        while len(track.rows) < 2 and time.monotonic() < end:
            time.sleep(0.01)
    steps, values = zip(*track.rows[:2], strict=True)
    assert steps == (0, 1)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"} <= set(values[0])
    assert all(key.startswith("system/") for key in values[0])


def test_nvidias_table_is_read_and_gaps_are_left_out():
    table = "0, 97, 120000, 143771, 612.5\n1, [N/A], 10, 143771, [N/A]\nno GPU here\n"
    values = system.gpu_metrics(table)
    assert values["gpu_0_utilization_percentage"] == 97.0
    assert round(values["gpu_0_memory_usage_megabytes"]) == 125829
    assert round(values["gpu_0_memory_usage_percentage"], 1) == 83.5
    assert values["gpu_0_power_usage_watts"] == 612.5
    assert "gpu_1_utilization_percentage" not in values
    assert "gpu_1_memory_usage_megabytes" in values
    assert system.gpu_metrics("") == {}
