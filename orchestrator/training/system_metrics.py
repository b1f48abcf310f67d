"""System metrics of the driver's machine during a run, as records for the event log, named as MLflow names its own.

Workers on other machines are not sampled: Ray's dashboard shows those.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from workloads.runtime.background import in_background
from workloads.runtime.event_log import EventLog

PRIME_S = 0.1  # CPU utilisation is measured over an interval; this is the first sample's
MB = 1e6

Sampler = Callable[[], dict[str, float]]


@contextmanager
def sampling(event_log: EventLog, *, every_s: float = 10.0) -> Iterator[None]:
    """Append a `machine` record every `every_s` seconds while the context lasts, from a thread; the first one at once.

    A record's `step` is the time in units of `every_s` since the epoch: it keeps growing when a run is resumed, on any
    machine. Leave the context before the `end` record is written: an event log ends with that.
    """
    with in_background(partial(_sample, event_log, every_s), name="machine"):
        yield


def _sample(event_log: EventLog, every_s: float, ended: threading.Event) -> None:
    samplers = [_processor(), _disk(event_log.path.parent), _network(), *_gpus()]
    ended.wait(PRIME_S)
    while True:
        values = {f"system/{name}": round(value, 1) for sampler in samplers for name, value in sampler().items()}
        with suppress(OSError):  # a full disk: the run itself reports that
            event_log.append({"kind": "machine", "step": int(time.time() // every_s), "values": values})
        if ended.wait(every_s):
            return


def _processor() -> Sampler:
    psutil.cpu_percent()  # the next call, by the same thread, covers the time since this one

    def sample() -> dict[str, float]:
        memory = psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MB,
            "system_memory_usage_percentage": memory.used / memory.total * 100,
        }

    return sample


def _disk(folder: Path) -> Sampler:
    """The disk that the run's own files are on: the one that can fill up."""

    def sample() -> dict[str, float]:
        disk = psutil.disk_usage(os.fspath(folder))
        return {
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / MB,
            "disk_available_megabytes": disk.free / MB,
        }

    return sample


def _network() -> Sampler:
    first = psutil.net_io_counters()

    def sample() -> dict[str, float]:
        now = psutil.net_io_counters()
        return {
            "network_receive_megabytes": (now.bytes_recv - first.bytes_recv) / MB,
            "network_transmit_megabytes": (now.bytes_sent - first.bytes_sent) / MB,
        }

    return sample


def _gpus() -> list[Sampler]:
    """One sampler a GPU; none without NVIDIA's driver or `nvidia-ml-py`, which MLflow's own metrics need as well."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        return [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _gpu(nvml: Any, index: int) -> Sampler:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def memory() -> dict[str, float]:
        found = nvml.nvmlDeviceGetMemoryInfo(handle)
        return {"memory_usage_percentage": found.used / found.total * 100, "memory_usage_megabytes": found.used / MB}

    def utilization() -> dict[str, float]:
        return {"utilization_percentage": nvml.nvmlDeviceGetUtilizationRates(handle).gpu}

    def power() -> dict[str, float]:
        watts = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
        limit = nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
        return {"power_usage_watts": watts, "power_usage_percentage": watts / limit * 100}

    def sample() -> dict[str, float]:
        values: dict[str, float] = {}
        for some in (memory, utilization, power):
            try:
                values |= some()
            except nvml.NVMLError:  # not every card reports everything
                continue
        return {f"gpu_{index}_{name}": value for name, value in values.items()}

    return sample
