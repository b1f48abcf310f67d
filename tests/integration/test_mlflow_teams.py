"""An MLflow server as teams run it, and its outages: all records of a run arrive once, and training never waits."""

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
from tests.s3_user import leaks
from tests.servers import MlflowServer
from workloads.evaluate.predict import load_tagger
from workloads.runtime.event_log import EventLog, read_event_log

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))
ROOT = Path(__file__).parents[2]
SHORT = ["schedule.burn_in=3", "schedule.period=3", "schedule.turns=2"]
LONG = ["schedule.burn_in=100000", "schedule.period=2", "schedule.turns=2", "train.checkpoint_every=100000"]
RUN = {"kind": "run", "experiment": "antiphon", "name": "hand", "params": {"a": "1"}}
NOT_DELIVERED = "not delivered, trying again"
PASSWORD = "0p3n-sesame"

Curves = dict[str, list[tuple[int, float]]]  # metric key -> its (step, value) in order of steps


@pytest.fixture(autouse=True)
def _replayer_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in MLFLOW_ENVIRONMENT.items():
        monkeypatch.setenv(key, value)


def _with_password(uri: str) -> str:
    """The server's URI as a team has it whose server asks for a password; this one ignores it."""
    return uri.replace("://", f"://team:{PASSWORD}@")


def _command(run_id: str, tracking: str, home: Path, *settings: str) -> list[str]:
    values = [*small.SIZES, *small.TWO_MODELS, f"data.cache={home}/clips", *settings]
    words = [word for value in values for word in ("--set", value)]
    where = ["--storage", f"{home}/runs", "--run-id", run_id, "--tracking", tracking]
    return [ANTIPHON, "run", "demo", "--local", "--json", *where, *words]


def _replay(run: Path, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [ANTIPHON, "track", "replay", str(run), "--json", *options], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def _in_mlflow(uri: str, run_id: str) -> tuple[Any, Curves]:
    """The one MLflow run of one of our runs, and all points of its metrics."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("antiphon")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`antiphon.run_id` = '{run_id}'")
    histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return run, {key: sorted((point.step, point.value) for point in points) for key, points in histories.items()}


def _recorded(event_log: Path) -> Curves:
    """The metrics, step times and machine samples of an event log; of a repeated step, the first value."""
    first: dict[str, dict[int, float]] = {}
    for record in read_event_log(event_log):
        if record["kind"] in ("metrics", "timings", "machine"):
            for key, value in record["values"].items():
                first.setdefault(key, {}).setdefault(record["step"], value)
    return {key: sorted(points.items()) for key, points in first.items()}


def _check_all_delivered(uri: str, event_log: Path, run_id: str) -> Any:
    run, curves = _in_mlflow(uri, run_id)
    recorded = _recorded(event_log)
    assert recorded, "the event log holds no metrics"
    for key, points in recorded.items():
        assert curves[key] == [(step, pytest.approx(value, nan_ok=True)) for step, value in points], key
    return run


def _wait_until(condition: Callable[[], Any], what: str, *, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teams")


@pytest.fixture(scope="module")
def finished(mlflow_server: MlflowServer, home: Path) -> Path:
    """The folder of a small real run that was tracked by the server while it ran; beside it what the run printed."""
    run_id, tracking = f"finished-{mlflow_server.name}", _with_password(mlflow_server.uri)
    done = subprocess.run(_command(run_id, tracking, home, *SHORT), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (home / "printed").write_text(done.stdout + done.stderr)
    return home / "runs" / run_id


def test_all_records_of_a_run_arrive_once(mlflow_server: MlflowServer, finished: Path) -> None:
    run = _check_all_delivered(mlflow_server.uri, finished / "events.jsonl", finished.name)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["cnn/steps_learned"] == 6
    assert run.data.tags["cnn.checkpoint"] == str(finished / "models" / "cnn")
    before = _in_mlflow(mlflow_server.uri, finished.name)[1]
    again = _replay(finished, "--tracking", _with_password(mlflow_server.uri))
    points = sum(map(len, before.values()))
    assert (again["points_sent"], again["points_held"]) == (0, points)
    assert (again["run"], again["mlflow_run_id"]) == (finished.name, run.info.run_id)
    assert _in_mlflow(mlflow_server.uri, finished.name)[1] == before


def test_the_password_in_the_tracking_uri_is_used_and_left_nowhere(
    mlflow_server: MlflowServer, finished: Path, home: Path, tmp_path: Path
) -> None:
    mlflow_server.copy_contents(tmp_path / "server")
    shown = mlflow_server.uri.replace("://", "://***@")
    assert leaks(PASSWORD, home, tmp_path) == []
    for place in (finished / "events.jsonl", finished / "outcome.json", finished / "report.html", home / "printed"):
        assert shown in place.read_text(), f"{place} does not say where the run is tracked"
    assert (finished / "tracking.log").is_file()
    # the same search finds what is there: the command in the database, code among the artifacts
    assert leaks(shown, tmp_path / "server")
    assert leaks("class ServedTagger", tmp_path / "server" / "artifacts")


def test_a_password_that_is_stored_nowhere_must_be_given_again(
    mlflow_server: MlflowServer, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = subprocess.run([ANTIPHON, "track", "replay", str(finished)], capture_output=True, text=True, timeout=120)
    assert asked.returncode == 2
    assert "the secret in this URI is not stored; give the URI again" in asked.stderr
    monkeypatch.setenv("MLFLOW_TRACKING_URI", _with_password(mlflow_server.uri))
    given = _replay(finished)
    assert (given["tracking"], given["points_sent"]) == (mlflow_server.uri.replace("://", "://***@"), 0)


def test_checkpoints_are_referred_to_and_not_stored_twice(mlflow_server: MlflowServer, finished: Path) -> None:
    stored = mlflow_server.artifacts()
    assert any(path.endswith("models/cnn/MLmodel") for path in stored), stored
    assert any(path.endswith("models/vit/code/workloads/models/tagger.py") for path in stored), stored
    assert not [
        path for path in stored if not path.endswith((".py", ".json", ".yaml", ".txt", "MLmodel", "report.html"))
    ]


# Runs in a new process, in which only the packages that the model requires, and those that these depend on, can be
# imported, and not this repository's `workloads`. It shows that the registered model works without Antiphon.
ISOLATED = """
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

class RequiredOnly:
    # finds only what the model requires, as if nothing else were installed
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

sys.meta_path = [RequiredOnly(list(sys.meta_path))]
sys.path = [entry for entry in sys.path if not entry.startswith(repository) or "site-packages" in entry]
try:
    import orchestrator
    raise SystemExit("orchestrator can be imported")
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
    "unexpected": sorted({name.partition(".")[0] for name in sys.modules} & {"ray", "orchestrator", "cluster", "moto"}),
}))
"""


def test_the_best_model_runs_where_only_its_requirements_are_installed(
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
    command = [sys.executable, "-I", "-c", ISOLATED, mlflow_server.uri, "demo-cnn", str(ROOT), needs]
    done = subprocess.run(
        [*command, str(tmp_path / "x.npy")], cwd=tmp_path / "cwd", capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = json.loads(done.stdout.splitlines()[-1])
    tagger, state = load_tagger(finished / "models" / "cnn")
    with torch.no_grad():
        expected = tagger.tag(x_BT).sigmoid()
    assert printed["tags"] == state["tags"]
    torch.testing.assert_close(torch.tensor(printed["probabilities"]), expected)
    assert not printed["workloads"].startswith(str(ROOT))
    assert printed["unexpected"] == []
    assert (printed["example"], printed["example_tags"]) == ([1, 16_000], 10)
    assert printed["signature"] == ["[Tensor('float32', (-1, 16000))]", 10]


def _write_log(folder: Path, run_id: str, steps: range, *, scale: float, uri: str, end: bool = True) -> Path:
    with EventLog(folder / "events.jsonl") as event_log:
        event_log.append(RUN | {"run_id": run_id, "tags": {"tracking": uri}})
        _metrics(event_log, steps, scale=scale)
        if end:
            event_log.append({"kind": "end", "status": "done", "error": "", "mistake": False})
    return folder


def _metrics(event_log: EventLog, steps: range, *, scale: float = 1.0) -> float:
    """Append metrics of these steps; returns the seconds that the slowest append took."""
    slowest = 0.0
    for step in steps:
        started = time.monotonic()
        event_log.append(
            {"kind": "metrics", "step": step, "values": {"cnn/loss": scale * step, "vit/loss": -scale * step}}
        )
        slowest = max(slowest, time.monotonic() - started)
    return slowest


def test_one_point_per_step_where_the_event_log_was_lost_too(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    """The second attempt resumes from a checkpoint before the last delivered step, with a new event log."""
    run_id = f"lost-{mlflow_server.name}"
    replay_run(str(_write_log(tmp_path / "a", run_id, range(100), scale=1.0, uri=mlflow_server.uri, end=False)))
    done = replay_run(str(_write_log(tmp_path / "b", run_id, range(60, 150), scale=2.0, uri=mlflow_server.uri)))
    assert (done["points_sent"], done["points_held"]) == (100, 80)
    _, curves = _in_mlflow(mlflow_server.uri, run_id)
    expected = [(step, float(step)) for step in range(100)] + [(step, 2.0 * step) for step in range(100, 150)]
    assert curves == {"cnn/loss": expected, "vit/loss": [(step, -value) for step, value in expected]}


def test_a_suspended_server_blocks_no_append_and_gets_every_record_once(
    mlflow_server: MlflowServer, tmp_path: Path, replayers: list[Replayer]
) -> None:
    run_id = f"stopped-{mlflow_server.name}"
    folder = _write_log(tmp_path, run_id, range(0), scale=1.0, uri=mlflow_server.uri, end=False)
    replayer = start_replayer(folder / "events.jsonl", mlflow_server.uri, log=folder / "tracking.log")
    assert isinstance(replayer, Replayer)
    replayers.append(replayer)
    assert mlflow_server.uri not in str(replayer.process.args)  # every user of a machine can read command lines
    replayer.wait_started()
    with EventLog(folder / "events.jsonl") as event_log:
        _metrics(event_log, range(200))
        _wait_until((folder / "events.jsonl.offset").exists, "the first acknowledgement")
        mlflow_server.signal(signal.SIGSTOP)
        try:
            slowest = _metrics(event_log, range(200, 600))
            _wait_until(lambda: NOT_DELIVERED in replayer.log.read_text(), "the replayer's notice")
        finally:
            mlflow_server.signal(signal.SIGCONT)
        event_log.append({"kind": "end", "status": "done", "error": "", "mistake": False})
    assert replayer.wait(timeout_s=60) == 0, replayer.explanation()
    assert slowest < 5.0  # the client gives a request ten seconds
    run = _check_all_delivered(mlflow_server.uri, folder / "events.jsonl", run_id)
    assert run.info.status == "FINISHED"


def test_a_run_that_was_never_sent_is_sent_later(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    run_id = f"later-{mlflow_server.name}"
    folder = _write_log(tmp_path, run_id, range(50), scale=0.5, uri=mlflow_server.uri)
    first, second = _replay(folder), replay_run(str(folder))
    assert (first["points_sent"], first["points_held"]) == (100, 0)
    assert (second["points_sent"], second["points_held"]) == (0, 100)
    run = _check_all_delivered(mlflow_server.uri, folder / "events.jsonl", run_id)
    assert (run.info.status, run.info.start_time) == ("FINISHED", read_event_log(folder / "events.jsonl")[0]["t"])


class RunProcess:
    """A run in a separate process, watched by the test."""

    def __init__(self, run_id: str, mlflow_server: MlflowServer, home: Path, *settings: str) -> None:
        self.folder = home / "runs" / run_id
        self.event_log, self.log = self.folder / "events.jsonl", self.folder / "tracking.log"
        self._output = home / f"{run_id}.txt"
        with self._output.open("wb") as out:
            self.process = subprocess.Popen(
                _command(run_id, mlflow_server.uri, home, *settings), stdout=out, stderr=out
            )

    def output(self) -> str:
        return self._output.read_text()

    def wait_until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for a condition that becomes true while the run is running."""

        def holds() -> bool:
            assert self.process.poll() is None, f"it ended before {what}: {self.output()[-3000:]}"
            return bool(condition())

        _wait_until(holds, what)

    def metrics(self) -> list[dict[str, Any]]:
        records = read_event_log(self.event_log) if self.event_log.exists() else []
        return [record for record in records if record["kind"] == "metrics"]

    def gaps_ms(self, start_ms: float, end_ms: float) -> list[float]:
        """Milliseconds between successive metrics records within an interval."""
        within = [record["t"] for record in self.metrics() if start_ms < record["t"] < end_ms]
        return [later - earlier for earlier, later in itertools.pairwise(within)]

    def wait(self) -> int:
        """Wait for the end of the process; its exit code."""
        return self.process.wait(timeout=300)

    def kill(self) -> None:
        """Kill the run and its replayer, which would outlive it, as a reboot does."""
        self.process.kill()
        self.process.wait()
        for process in psutil.process_iter(["cmdline"]):
            if str(self.event_log) in (process.info["cmdline"] or []):
                process.kill()


@pytest.mark.faults
@pytest.mark.parametrize("outage", ["killed", "hung"])
def test_a_minute_without_server_during_a_run(mlflow_server: MlflowServer, home: Path, outage: str) -> None:
    """The run continues at its usual pace; it gets SIGTERM once the server is back, and saves itself."""
    run_id = f"{outage}-{mlflow_server.name}"
    run = RunProcess(run_id, mlflow_server, home, *LONG)
    try:
        run.wait_until(lambda: len(run.metrics()) > 50, "fifty metrics")
        run.wait_until((run.folder / "events.jsonl.offset").exists, "the first acknowledgement")
        down_ms = time.time() * 1000
        mlflow_server.signal(signal.SIGKILL if outage == "killed" else signal.SIGSTOP)
        run.wait_until(lambda: NOT_DELIVERED in run.log.read_text(), "the replayer's notice")
        run.wait_until(lambda: time.time() * 1000 > down_ms + 60_000, "a minute")
        back_ms = time.time() * 1000
        if outage == "killed":
            mlflow_server.start()
        else:
            mlflow_server.signal(signal.SIGCONT)
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 75, run.output()[-3000:]
        _wait_until(
            lambda: _in_mlflow(mlflow_server.uri, run_id)[0].info.status == "KILLED", "the arrival of its status"
        )
    finally:
        run.kill()
        mlflow_server.signal(signal.SIGCONT)
        mlflow_server.start()
    _check_all_delivered(mlflow_server.uri, run.event_log, run_id)
    before, gaps = sorted(run.gaps_ms(0, down_ms)), sorted(run.gaps_ms(down_ms, back_ms))
    print(f"{outage}: {len(gaps)} steps in the minute; ms: median {gaps[len(gaps) // 2]:.0f}, longest {gaps[-1]:.0f}")
    assert gaps[-1] < 8_000  # the client gives a request ten seconds
    assert gaps[len(gaps) // 2] < 3 * before[len(before) // 2]


@pytest.mark.faults
def test_a_server_that_never_comes_back(mlflow_server: MlflowServer, home: Path) -> None:
    """The run finishes; its replayer is killed, as by a reboot; `track replay` sends everything."""
    run_id = f"never-{mlflow_server.name}"
    run = RunProcess(run_id, mlflow_server, home, *SHORT)
    try:
        run.wait_until(run.metrics, "the first step")
        mlflow_server.signal(signal.SIGKILL)
        assert run.wait() == 0, run.output()[-3000:]
    finally:
        run.kill()
        mlflow_server.start()
    assert "nothing is lost" in run.output()
    first, second = _replay(run.folder), _replay(run.folder)
    assert first["points_sent"] > 0
    assert (second["points_sent"], second["points_held"]) == (0, first["points_sent"] + first["points_held"])
    assert _check_all_delivered(mlflow_server.uri, run.event_log, run_id).info.status == "FINISHED"
