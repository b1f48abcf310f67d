"""The metrics of a run as Ray metrics: what each worker reports to its node's agent, where Prometheus reads it.

Owns their names, units and labels (`METRICS`). The training loop does not know of them: it hands its times to the
session, and its records, of which the losses and the checkpoints are read here. Ray is imported only by `RunMetrics`.

Prometheus sees each name with `ray_` before it, and Ray's own labels (node, worker) beside those given here.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import psutil
import torch

from workloads.runtime.background import in_background
from workloads.runtime.session import StepTimes

# An agent forgets a gauge that was not set for two of its report intervals (`RAY_metrics_report_interval_ms`: 10 s, at
# least 1 s), so gauges are set again and again for as long as they hold.
REFRESH_S = 1.0
STEP_BOUNDARIES_S = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]
WORKER = ("run_id", "rank")
MODEL = ("run_id", "rank", "model")


class RunMetric(NamedTuple):
    """What a metric is; of a counter or gauge one series for each combination of labels."""

    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    about: str


# Seconds are those of `StepTimes`. Means are quotients of two counters: Ray exports no exact sums of histograms, since
# its agents rebuild them from the middles of the buckets.
METRICS = {
    "antiphon_step": RunMetric("gauge", WORKER, "Steps of the run that are done, those before a resume included"),
    "antiphon_steps_total": RunMetric("counter", WORKER, "Training steps of this worker"),
    "antiphon_clips_total": RunMetric("counter", WORKER, "Clips that this worker has trained on"),
    "antiphon_step_seconds_total": RunMetric("counter", WORKER, "Seconds in training steps"),
    "antiphon_step_duration_seconds": RunMetric("histogram", WORKER, "Seconds of a training step; its sum is rough"),
    "antiphon_data_wait_seconds_total": RunMetric("counter", WORKER, "Seconds of steps in which clips were waited for"),
    "antiphon_teacher_seconds_total": RunMetric("counter", WORKER, "Seconds of steps in which teachers were asked"),
    "antiphon_exchange_seconds": RunMetric(
        "gauge", MODEL, "Seconds that averaging the model's gradients took, of the step that was measured last"
    ),
    "antiphon_loss": RunMetric("gauge", MODEL, "Training loss of the model, a mean over all workers; from rank 0"),
    "antiphon_checkpoints_total": RunMetric("counter", WORKER, "Checkpoints written; from rank 0"),
    "antiphon_checkpoint_seconds_total": RunMetric(
        "counter", WORKER, "Seconds in which training stood still for checkpoints, without uploads; from rank 0"
    ),
    "antiphon_memory_bytes": RunMetric("gauge", WORKER, "Resident memory of the worker's process, without loaders"),
    "antiphon_gpu_memory_bytes": RunMetric("gauge", WORKER, "GPU memory that torch holds for the worker"),
}


class RunMetrics:
    """The metrics of one worker of a run; made in its process, with Ray connected.

    `on_step` and `on_records` are called by the training thread, `on_step` after every step (11 us). Within `refreshed`
    a thread samples the memory and sets the gauges again. A kill loses what was not yet reported to the agent: the last
    seconds.
    """

    def __init__(self, run_id: str, rank: int, device: torch.device) -> None:
        from ray.util import metrics

        kinds: dict[str, Any] = {"counter": metrics.Counter, "gauge": metrics.Gauge}
        self._metrics: dict[str, Any] = {}
        for name, metric in METRICS.items():
            if metric.kind == "histogram":
                made = metrics.Histogram(name, metric.about, boundaries=STEP_BOUNDARIES_S, tag_keys=metric.labels)
            else:
                made = kinds[metric.kind](name, metric.about, tag_keys=metric.labels)
            self._metrics[name] = made.set_default_tags({"run_id": run_id, "rank": str(rank)})
        self._device, self._process = device, psutil.Process()
        self._step = 0
        self._losses: dict[str, float] = {}  # replaced as a whole: the other thread reads it
        self._exchange: dict[str, float] = {}

    def on_step(self, step: int, times: StepTimes) -> None:
        """Add one training step of this worker, after which `step` steps of the run are done."""
        self._step = step
        self._metrics["antiphon_step_duration_seconds"].observe(times.step)
        self._add("antiphon_steps_total", 1)
        self._add("antiphon_clips_total", times.clips)
        self._add("antiphon_step_seconds_total", times.step)
        self._add("antiphon_data_wait_seconds_total", times.data_wait)
        self._add("antiphon_teacher_seconds_total", times.teacher)
        if times.exchange:
            self._exchange = times.exchange

    def on_records(self, records: list[dict[str, Any]]) -> None:
        """Take the losses and checkpoints from new records of the run, which rank 0 has."""
        for record in records:
            if record["kind"] == "metrics":
                keys = {key: key.partition("/") for key in record["values"]}
                losses = {name: record["values"][key] for key, (name, _, what) in keys.items() if what == "loss"}
                self._losses = losses or self._losses  # a validation's record has none
            elif record["kind"] == "checkpoint":
                self._add("antiphon_checkpoints_total", 1)
                self._add("antiphon_checkpoint_seconds_total", record["seconds"])

    @contextmanager
    def refreshed(self) -> Iterator[None]:
        """Keep the gauges set while the context lasts; at its end they get their last values."""
        with in_background(self._refresh, name="metrics"):
            yield

    def _refresh(self, ended: threading.Event) -> None:
        while not ended.wait(REFRESH_S):
            self.set_gauges()
        self.set_gauges()

    def set_gauges(self) -> None:
        """Set every gauge to what holds now."""
        if self._step:
            self._metrics["antiphon_step"].set(self._step)
        self._metrics["antiphon_memory_bytes"].set(self._process.memory_info().rss)
        if self._device.type == "cuda":
            self._metrics["antiphon_gpu_memory_bytes"].set(torch.cuda.memory_reserved(self._device))
        for name, values in (("antiphon_loss", self._losses), ("antiphon_exchange_seconds", self._exchange)):
            for model, value in values.items():
                self._metrics[name].set(value, {"model": model})

    def _add(self, name: str, value: float) -> None:
        if value > 0:  # Ray refuses to add nothing
            self._metrics[name].inc(value)
