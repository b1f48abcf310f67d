"""Samples of the machine: MLflow's metric names; one sample at once, one after each interval, none after the end."""

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.tracking.record_mapping import update_for
from orchestrator.training.system_metrics import sampling
from workloads.runtime.event_log import EventLog, read_event_log


def test_one_sample_at_once_and_a_prompt_end(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as event_log:
        with sampling(event_log, every_s=10.0):
            pass
        assert "machine" not in {thread.name for thread in threading.enumerate()}
        event_log.append({"kind": "end", "status": "done", "error": ""})
    sample, end = read_event_log(event_log.path)
    assert (sample["kind"], end["kind"]) == ("machine", "end")
    assert sample["t"] // 10_000 - sample["step"] in (0, 1)
    assert 0 < sample["values"]["system/system_memory_usage_percentage"] < 100
    assert 0 <= sample["values"]["system/cpu_utilization_percentage"] <= 100
    assert [point.key for point in update_for([sample]).points] == list(sample["values"])


def test_samples_continue_with_increasing_steps(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as event_log, sampling(event_log, every_s=0.02):
        deadline = time.monotonic() + 30
        while len(read_event_log(event_log.path)) < 4:
            assert time.monotonic() < deadline
    steps = [record["step"] for record in read_event_log(event_log.path)]
    assert steps == sorted(set(steps))


def test_the_names_are_those_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    gpu = _gpu()
    monkeypatch.setitem(sys.modules, "pynvml", gpu)
    monkeypatch.setattr("mlflow.system_metrics.metrics.gpu_monitor.pynvml", gpu, raising=False)
    expected = set()
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor(), GPUMonitor()):
        monitor.collect_metrics()
        expected |= {f"system/{name}" for name in monitor.aggregate_metrics()}
    with EventLog(tmp_path / "events.jsonl") as event_log, sampling(event_log):
        pass
    values = read_event_log(event_log.path)[0]["values"]
    assert set(values) == expected
    assert values["system/gpu_0_memory_usage_percentage"] == 25.0
    assert values["system/gpu_1_power_usage_watts"] == 300.0


def test_what_a_gpu_does_not_report_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = _gpu()

    def refuse(_: int) -> None:
        raise gpu.NVMLError

    gpu.nvmlDeviceGetPowerUsage = refuse
    monkeypatch.setitem(sys.modules, "pynvml", gpu)
    with EventLog(tmp_path / "events.jsonl") as event_log, sampling(event_log):
        pass
    names = [name for name in read_event_log(event_log.path)[0]["values"] if "gpu_0" in name]
    assert names == [f"system/gpu_0_{what}" for what in _REPORTED]


_REPORTED = ("memory_usage_percentage", "memory_usage_megabytes", "utilization_percentage")


def _gpu() -> SimpleNamespace:
    """Two GPUs behind the interface of NVIDIA's library."""
    return SimpleNamespace(
        NVMLError=type("NVMLError", (Exception,), {}),
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=1e9, total=4e9),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=50),
        nvmlDeviceGetPowerUsage=lambda handle: 300_000,
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 600_000,
    )
