"""A team's MLflow, with everything that can happen to it: what a run says arrives there once, whole, and in time."""

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from orchestrator.runs.backfill import replay_run
from orchestrator.tracking.replayer import MLFLOW_ENVIRONMENT, Replayer, start_replayer
from tests import small
from tests.servers import MlflowServer
from workloads.evaluate.predict import load_tagger
from workloads.runtime.event_log import EventLog, read_event_log

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))
ROOT = Path(__file__).parents[2]
SHORT = ["schedule.burn_in=3", "schedule.period=3", "schedule.turns=2"]
LONG = ["schedule.burn_in=100000", "schedule.period=2", "schedule.turns=2", "train.checkpoint_every=100000"]
SAMPLE = "system/"  # the machine's curves; how many of them there are depends on how long the run took
RUN = {"kind": "run", "experiment": "antiphon", "name": "hand", "params": {"a": "1"}}
AWAY = "not delivered, trying again"

Curves = dict[str, list[tuple[int, float]]]  # key -> its (step, value) in order of steps


@pytest.fixture(autouse=True)
def _as_in_the_replayer(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in MLFLOW_ENVIRONMENT.items():
        monkeypatch.setenv(key, value)


def _command(run_id: str, mlflow_server: MlflowServer, home: Path, *settings: str) -> list[str]:
    values = [*small.SIZES, *small.TWO_MODELS, f"data.cache={home}/clips", *settings]
    words = [word for value in values for word in ("--set", value)]
    place = ["--storage", f"{home}/runs", "--run-id", run_id, "--tracking", mlflow_server.uri]
    return [ANTIPHON, "run", "demo", "--local", "--json", *place, *words]


def _replay(run: Path, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [ANTIPHON, "track", "replay", str(run), "--json", *options], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _in_mlflow(uri: str, run_id: str) -> tuple[Any, Curves]:
    """The one MLflow run of a run of ours, and all points of its curves."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("antiphon")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`antiphon.run_id` = '{run_id}'")
    histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return run, {key: sorted((point.step, point.value) for point in points) for key, points in histories.items()}


def _said(event_log: Path) -> Curves:
    """The metrics and samples of a spool, of a step that was done twice the first."""
    first: dict[str, dict[int, float]] = {}
    for record in read_event_log(event_log):
        if record["kind"] in ("metrics", "machine"):
            for key, value in record["values"].items():
                first.setdefault(key, {}).setdefault(record["step"], value)
    return {key: sorted(points.items()) for key, points in first.items()}


def _check_all_there(uri: str, event_log: Path, run_id: str) -> Any:
    run, curves = _in_mlflow(uri, run_id)
    said = _said(event_log)
    assert said, "a test of nothing"
    for key, points in said.items():
        assert curves[key] == [(step, pytest.approx(value, nan_ok=True)) for step, value in points], key
    return run


def _until(happened: Callable[[], Any], what: str, *, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teams")


@pytest.fixture(scope="module")
def finished(mlflow_server: MlflowServer, home: Path) -> Path:
    """The folder of a small real run that was tracked by the team's server while it went on."""
    run_id = f"finished-{mlflow_server.name}"
    done = subprocess.run(_command(run_id, mlflow_server, home, *SHORT), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return home / "runs" / run_id


def test_a_run_arrives_whole_and_once(mlflow_server: MlflowServer, finished: Path) -> None:
    run = _check_all_there(mlflow_server.uri, finished / "events.jsonl", finished.name)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["cnn/steps_learned"] == 6
    assert run.data.tags["cnn.checkpoint"] == str(finished / "models" / "cnn")
    before = _in_mlflow(mlflow_server.uri, finished.name)[1]
    again = replay_run(str(finished))
    points = sum(map(len, before.values()))
    assert (again["points_sent"], again["points_held"]) == (0, points)
    assert (again["run"], again["mlflow_run_id"]) == (finished.name, run.info.run_id)
    assert _in_mlflow(mlflow_server.uri, finished.name)[1] == before


def test_checkpoints_are_referred_to_and_not_stored_twice(mlflow_server: MlflowServer, finished: Path) -> None:
    stored = mlflow_server.artifacts()
    assert any(path.endswith("models/cnn/MLmodel") for path in stored), stored
    assert any(path.endswith("models/vit/code/workloads/tagger.py") for path in stored), stored
    assert not [path for path in stored if not path.endswith((".py", ".json", ".yaml", ".txt", "MLmodel"))]


# In a process of its own: whatever belongs to no package that the model names, or to what those need, cannot be
# imported; nor can the copy of `workloads` in this repository. So the model is whole without Antiphon.
CLOSED = """
import importlib.metadata, json, re, sys

def closure(names):
    found, queue = set(), [re.split(r"[=<>~!;\\[ ]", name)[0] for name in names]
    while queue:
        name = re.sub(r"[-_.]+", "-", queue.pop()).lower()
        try:
            needs = importlib.metadata.requires(name) if name not in found else []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system
        found.add(name)
        queue += [re.split(r"[=<>~!;\\[( ]", need)[0] for need in needs or [] if "extra ==" not in need]
    return found

uri, name, repository = sys.argv[1:4]
given = closure(open(sys.argv[4]).read().split())
owners = importlib.metadata.packages_distributions()

class Closed:
    # finds what the model names and nothing else, as where only that is installed
    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, module, path=None, target=None):
        top = module.partition(".")[0]
        owned = [re.sub(r"[-_.]+", "-", owner).lower() for owner in owners.get(top, [])]
        ours = top in ("orchestrator", "cluster", "ray", "typer")
        if top != "workloads" and (ours or owned and not given.intersection(owned)):
            return None
        specs = (finder.find_spec(module, path, target) for finder in self.finders)
        return next((spec for spec in specs if spec is not None), None)

    def find_distributions(self, *context):
        for finder in self.finders:
            yield from getattr(finder, "find_distributions", lambda *_: ())(*context)

sys.meta_path = [Closed(list(sys.meta_path))]
sys.path = [entry for entry in sys.path if not entry.startswith(repository) or "site-packages" in entry]
try:
    import orchestrator
    raise SystemExit("the door is open")
except ModuleNotFoundError:
    pass
import mlflow, numpy
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model(f"models:/{name}@best")
x = numpy.load(sys.argv[5])
table = model.predict(x)
import workloads
print(json.dumps({
    "workloads": workloads.__file__,
    "tags": list(table.columns),
    "probabilities": table.values.tolist(),
    "example": model.input_example.shape,
    "example_tags": len(model.predict(model.input_example).columns),
    "signature": [str(model.metadata.signature.inputs), len(model.metadata.signature.outputs.inputs)],
    "strangers": sorted({name.partition(".")[0] for name in sys.modules} & {"ray", "orchestrator", "cluster", "moto"}),
}))
"""


def test_the_best_model_tags_where_only_its_packages_are(
    mlflow_server: MlflowServer, finished: Path, tmp_path: Path
) -> None:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    client = MlflowClient(tracking_uri=mlflow_server.uri)
    version = client.get_model_version_by_alias("demo-cnn", "best")
    assert version.tags["antiphon.run_id"] == finished.name
    needs = download_artifacts(f"{version.source}/requirements.txt", tracking_uri=mlflow_server.uri)
    x_BT = torch.randn(3, 16_000, generator=torch.Generator().manual_seed(0)) / 10
    np.save(tmp_path / "x.npy", x_BT.numpy())
    (tmp_path / "cwd").mkdir()
    command = [sys.executable, "-I", "-c", CLOSED, mlflow_server.uri, "demo-cnn", str(ROOT), needs]
    done = subprocess.run(
        [*command, str(tmp_path / "x.npy")], cwd=tmp_path / "cwd", capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    tagger, state = load_tagger(finished / "models" / "cnn")
    with torch.no_grad():
        expected = tagger.tag(x_BT).sigmoid()
    assert answer["tags"] == state["tags"]
    torch.testing.assert_close(torch.tensor(answer["probabilities"]), expected)
    assert not answer["workloads"].startswith(str(ROOT))
    assert answer["strangers"] == []
    assert (answer["example"], answer["example_tags"]) == ([1, 16_000], 10)
    assert answer["signature"] == ["[Tensor('float32', (-1, 16000))]", 10]


def _by_hand(folder: Path, run_id: str, steps: range, *, scale: float, uri: str, end: bool = True) -> Path:
    with EventLog(folder / "events.jsonl") as event_log:
        event_log.append(RUN | {"run_id": run_id, "tags": {"tracking": uri}})
        _metrics(event_log, steps, scale=scale)
        if end:
            event_log.append({"kind": "end", "status": "done", "error": "", "mistake": False})
    return folder


def _metrics(event_log: EventLog, steps: range, *, scale: float = 1.0) -> float:
    """Append metrics of these steps; the seconds that the slowest took."""
    slowest = 0.0
    for step in steps:
        started = time.monotonic()
        event_log.append(
            {"kind": "metrics", "step": step, "values": {"cnn/loss": scale * step, "vit/loss": -scale * step}}
        )
        slowest = max(slowest, time.monotonic() - started)
    return slowest


def test_one_point_per_step_where_the_spool_was_lost_too(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    """The second attempt goes on from a checkpoint before the last delivered step, with a new spool."""
    run_id = f"lost-{mlflow_server.name}"
    replay_run(str(_by_hand(tmp_path / "a", run_id, range(100), scale=1.0, uri=mlflow_server.uri, end=False)))
    done = replay_run(str(_by_hand(tmp_path / "b", run_id, range(60, 150), scale=2.0, uri=mlflow_server.uri)))
    assert (done["points_sent"], done["points_held"]) == (100, 80)
    _, curves = _in_mlflow(mlflow_server.uri, run_id)
    expected = [(step, float(step)) for step in range(100)] + [(step, 2.0 * step) for step in range(100, 150)]
    assert curves == {"cnn/loss": expected, "vit/loss": [(step, -value) for step, value in expected]}


def test_a_hung_server_blocks_nobody_and_gets_everything_once(
    mlflow_server: MlflowServer, tmp_path: Path, replayers: list[Replayer]
) -> None:
    run_id = f"stopped-{mlflow_server.name}"
    folder = _by_hand(tmp_path, run_id, range(0), scale=1.0, uri=mlflow_server.uri, end=False)
    replayer = start_replayer(folder / "events.jsonl", mlflow_server.uri, log=folder / "tracking.log")
    assert isinstance(replayer, Replayer)
    replayers.append(replayer)
    replayer.wait_started()
    with EventLog(folder / "events.jsonl") as event_log:
        _metrics(event_log, range(200))
        _until((folder / "events.jsonl.offset").exists, "the first acknowledgement")
        mlflow_server.signal(signal.SIGSTOP)
        try:
            slowest = _metrics(event_log, range(200, 600))
            _until(lambda: AWAY in replayer.log.read_text(), "the replayer's notice")
        finally:
            mlflow_server.signal(signal.SIGCONT)
        event_log.append({"kind": "end", "status": "done", "error": "", "mistake": False})
    assert replayer.wait(timeout_s=60) == 0, replayer.explanation()
    assert slowest < 5.0  # the client gives a request ten seconds
    run = _check_all_there(mlflow_server.uri, folder / "events.jsonl", run_id)
    assert run.info.status == "FINISHED"


def test_a_run_that_was_never_delivered_is_delivered_later(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    run_id = f"later-{mlflow_server.name}"
    folder = _by_hand(tmp_path, run_id, range(50), scale=0.5, uri=mlflow_server.uri)
    first, second = _replay(folder), replay_run(str(folder))
    assert (first["points_sent"], first["points_held"]) == (100, 0)
    assert (second["points_sent"], second["points_held"]) == (0, 100)
    run = _check_all_there(mlflow_server.uri, folder / "events.jsonl", run_id)
    assert (run.info.status, run.info.start_time) == ("FINISHED", read_event_log(folder / "events.jsonl")[0]["t"])


class Started:
    """A run that goes on in a process of its own while the test looks on."""

    def __init__(self, run_id: str, mlflow_server: MlflowServer, home: Path, *settings: str) -> None:
        self.folder = home / "runs" / run_id
        self.event_log, self.log = self.folder / "events.jsonl", self.folder / "tracking.log"
        self._output = home / f"{run_id}.txt"
        with self._output.open("wb") as out:
            self.process = subprocess.Popen(_command(run_id, mlflow_server, home, *settings), stdout=out, stderr=out)

    def said(self) -> str:
        return self._output.read_text()

    def until(self, happened: Callable[[], Any], what: str) -> None:
        """Wait for something that happens while the run goes on."""

        def seen() -> bool:
            assert self.process.poll() is None, f"it ended before {what}: {self.said()[-3000:]}"
            return bool(happened())

        _until(seen, what)

    def metrics(self) -> list[dict[str, Any]]:
        records = read_event_log(self.event_log) if self.event_log.exists() else []
        return [record for record in records if record["kind"] == "metrics"]

    def gaps_ms(self, start_ms: float, end_ms: float) -> list[float]:
        """The times between neighbouring metrics within a stretch of time."""
        within = [record["t"] for record in self.metrics() if start_ms < record["t"] < end_ms]
        return [later - earlier for earlier, later in itertools.pairwise(within)]

    def ended(self) -> int:
        """Its exit code."""
        return self.process.wait(timeout=300)

    def kill(self) -> None:
        """End it and its replayer, which would live on, as a reboot does."""
        self.process.kill()
        self.process.wait()
        for process in psutil.process_iter(["cmdline"]):
            if str(self.event_log) in (process.info["cmdline"] or []):
                process.kill()


@pytest.mark.faults
@pytest.mark.parametrize("outage", ["killed", "hung"])
def test_a_minute_without_server_in_mid_run(mlflow_server: MlflowServer, home: Path, outage: str) -> None:
    """The run goes on as if nothing were; it is told to stop once the server is back, and saves itself."""
    run_id = f"{outage}-{mlflow_server.name}"
    run = Started(run_id, mlflow_server, home, *LONG)
    try:
        run.until(lambda: len(run.metrics()) > 50, "fifty metrics")
        run.until((run.folder / "events.jsonl.offset").exists, "the first acknowledgement")
        away_ms = time.time() * 1000
        mlflow_server.signal(signal.SIGKILL if outage == "killed" else signal.SIGSTOP)
        run.until(lambda: AWAY in run.log.read_text(), "the replayer's notice")
        run.until(lambda: time.time() * 1000 > away_ms + 60_000, "a minute")
        back_ms = time.time() * 1000
        if outage == "killed":
            mlflow_server.start()
        else:
            mlflow_server.signal(signal.SIGCONT)
        run.process.send_signal(signal.SIGTERM)
        assert run.ended() == 75, run.said()[-3000:]
        _until(lambda: _in_mlflow(mlflow_server.uri, run_id)[0].info.status == "KILLED", "the delivery of its end")
    finally:
        run.kill()
        mlflow_server.signal(signal.SIGCONT)
        mlflow_server.start()
    _check_all_there(mlflow_server.uri, run.event_log, run_id)
    before, gaps = sorted(run.gaps_ms(0, away_ms)), sorted(run.gaps_ms(away_ms, back_ms))
    print(f"{outage}: {len(gaps)} steps in the minute; ms: median {gaps[len(gaps) // 2]:.0f}, longest {gaps[-1]:.0f}")
    assert gaps[-1] < 8_000  # the client gives a request ten seconds
    assert gaps[len(gaps) // 2] < 3 * before[len(before) // 2]


@pytest.mark.faults
def test_a_server_that_never_comes_back(mlflow_server: MlflowServer, home: Path) -> None:
    """The run ends as it should; its replayer is lost, as in a reboot; `track replay` delivers everything."""
    run_id = f"never-{mlflow_server.name}"
    run = Started(run_id, mlflow_server, home, *SHORT)
    try:
        run.until(run.metrics, "the first step")
        mlflow_server.signal(signal.SIGKILL)
        assert run.ended() == 0, run.said()[-3000:]
    finally:
        run.kill()
        mlflow_server.start()
    assert "nothing is lost" in run.said()
    first, second = _replay(run.folder), _replay(run.folder)
    assert first["points_sent"] > 0
    assert (second["points_sent"], second["points_held"]) == (0, first["points_sent"] + first["points_held"])
    assert _check_all_there(mlflow_server.uri, run.event_log, run_id).info.status == "FINISHED"
