"""The metrics of a real run on Ray: a real Prometheus finds the nodes, reads them back, and answers the dashboard."""

import json
import math
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from cluster import stack
from cluster.process_registry import free_ports
from cluster.processes import Service
from tests.grafana import dashboard, legend_labels
from tests.small import SIZES, TWO_MODELS
from tests.tiny_search import ANTIPHON, sets
from workloads.runtime.event_log import read_event_log

pytestmark = pytest.mark.slow
STEPS, SHARD_SIZE = 480, 8  # half a minute
RANKS = (("0",), ("1",))
PLAN = ("schedule.burn_in=240", "schedule.period=60", "schedule.turns=4", "train.checkpoint_every=100")
TWO_SHARDS = ("train.shards=2", "train.loaders=1", f"train.shard_size={SHARD_SIZE}")
Answer = dict[tuple[str, ...], float]
Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def query(self, expression: str, *labels: str, at: float | None = None) -> Answer:
        """The values of an expression, now or at a time, by these labels, whose combinations must be distinct."""
        when = {} if at is None else {"time": str(at)}
        series = self._get("query", {"query": expression, **when})
        found = [(tuple(one["metric"].get(label, "") for label in labels), float(one["value"][1])) for one in series]
        assert len(dict(found)) == len(found), f"{expression}: {series}"
        return dict(found)

    def samples(self, name: str, label: str) -> dict[str, set[float]]:
        """All values that a metric had within the last ten minutes, by a label."""
        found: dict[str, set[float]] = {}
        for one in self._get("query", {"query": f"{name}[10m]"}):
            found.setdefault(one["metric"][label], set()).update(float(value) for _, value in one["values"])
        return found

    def _get(self, what: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}") as answer:
            return list(json.load(answer)["data"]["result"])


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The Ray head of `antiphon cluster up`; its workers report metrics every three seconds instead of every ten."""
    folder = tmp_path_factory.mktemp("stack")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_metrics_report_interval_ms", "3000")
            (service,) = stack.up(folder, cpus=4, mlflow=False).services
        yield service
    finally:
        stack.down(folder)


@pytest.fixture(scope="module")
def prometheus(ray_head: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus with the configuration of docs/cluster.md, but for how often it looks."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus in PATH; on Debian: apt-get install prometheus")
    folder, (port,) = tmp_path_factory.mktemp("prometheus"), free_ports(1)
    discovery = {
        "url": f"{stack.dashboard(ray_head)}/api/prometheus/sd",
        "refresh_interval": "2s",
        # the type is the default, but Prometheus 2.42 leaves it out where it is not said
        "authorization": {"type": "Bearer", "credentials_file": ray_head.client_env["RAY_AUTH_TOKEN_PATH"]},
    }
    config = {"scrape_configs": [{"job_name": "ray", "scrape_interval": "1s", "http_sd_configs": [discovery]}]}
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    words = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*words, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    server = Prometheus(f"http://127.0.0.1:{port}")
    node = f'up{{job="ray", instance=~".*:{ray_head.ports[3]}"}} == 1'
    try:
        wait_for(lambda: process.poll() is not None or server.query(node), "Prometheus has not read the node")
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        yield server
    finally:
        process.terminate()
        process.wait()


def wait_for(condition: Callable[[], Any], complaint: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except OSError:  # it does not listen yet
            pass
        time.sleep(0.2)
    raise AssertionError(f"{complaint} within two minutes")


@pytest.fixture(scope="module")
def records(ray_head: Service, prometheus: Prometheus, tmp_path_factory: pytest.TempPathFactory) -> Records:
    """The records of a finished run of two workers, whose metrics Prometheus has read all the while."""
    folder = tmp_path_factory.mktemp("runs")
    words = [ANTIPHON, "run", "demo", "--json", "--run-id", "a", "--workers", "2", "--storage", str(folder)]
    settings = sets(*SIZES, *TWO_MODELS, *PLAN, *TWO_SHARDS, f"data.cache={folder}/clips")
    words += ["--tracking", "none", "--address", ray_head.address, *settings]
    done = subprocess.run(words, env={**os.environ, **ray_head.client_env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return read_event_log(folder / "a" / "events.jsonl")


def test_prometheus_has_every_step_of_both_workers(records, prometheus):
    for name in ("steps_total", "step_duration_seconds_count"):
        assert prometheus.query(f'ray_antiphon_{name}{{run_id="a"}}', "rank") == dict.fromkeys(RANKS, STEPS)
    clips = prometheus.query('ray_antiphon_clips_total{run_id="a"}', "rank")
    assert clips == dict.fromkeys(RANKS, STEPS * SHARD_SIZE)
    assert prometheus.query("max_over_time(ray_antiphon_step[10m])", "rank") == dict.fromkeys(RANKS, STEPS)


def test_prometheus_has_the_seconds_that_the_event_log_has(records, prometheus):
    timings = [record["values"] for record in records if record["kind"] == "timings"]
    assert len(timings) == STEPS  # each is of one step, and of rank 0
    for part in ("step", "data_wait", "teacher"):
        total = sum(values[f"timing/{part}_seconds"] for values in timings)
        measured = prometheus.query(f"ray_antiphon_{part}_seconds_total", "rank")
        assert measured["0",] == pytest.approx(total)
        assert measured["1",] > 0
    saved = [record["seconds"] for record in records if record["kind"] == "checkpoint"]
    assert prometheus.query("ray_antiphon_checkpoints_total", "rank") == {("0",): len(saved)}
    assert prometheus.query("ray_antiphon_checkpoint_seconds_total", "rank") == {("0",): pytest.approx(sum(saved))}


def test_prometheus_has_losses_exchanges_and_memory(records, prometheus):
    recorded = [record["values"] for record in records if record["kind"] == "metrics"]
    read = prometheus.samples("ray_antiphon_loss", "model")
    assert set(read) == {"cnn", "vit"}
    for model, losses in read.items():
        assert len(losses) > 1
        assert losses <= {values[f"{model}/loss"] for values in recorded if f"{model}/loss" in values}
    exchanged = prometheus.query("max_over_time(ray_antiphon_exchange_seconds[10m])", "model", "rank")
    assert set(exchanged) == {(model, *rank) for model in ("cnn", "vit") for rank in RANKS}
    assert min(exchanged.values()) > 0
    memory = prometheus.query("max_over_time(ray_antiphon_memory_bytes[10m])", "rank")
    assert set(memory) == set(RANKS)
    assert all(50e6 < held < psutil.virtual_memory().total for held in memory.values())


def test_prometheus_answers_every_query_of_the_dashboard(records, prometheus):
    late = next(r["t"] for r in records if r["kind"] == "timings" and r["step"] == STEPS * 3 // 4) / 1000
    answered = set()
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "1m").replace("$run_id", "a")
            values = prometheus.query(expression, *legend_labels(target), at=late)
            assert all(math.isfinite(value) and value >= 0 for value in values.values()), expression
            answered |= {panel["title"]} if values else set()
    without_gpu = {panel["title"] for panel in dashboard()["panels"]} - {"GPU memory"}
    assert answered >= without_gpu
