"""A run's records arrive in a real MLflow, all of them and once, also where the server or the replayer is killed."""

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.storage.retry import Unavailable
from orchestrator.tracking.replayer import MLFLOW_ENVIRONMENT, Replayer, send_report, start_replayer
from orchestrator.tracking.uri import sqlite_uri, ui_command
from workloads.runtime.event_log import EventLog, read_event_log

CURVES = 4
ROOT = Path(__file__).parents[3]
RUN = {
    "kind": "run",
    "run_id": "demo-20261121-1530-a1b2",
    "experiment": "antiphon",
    "name": "demo",
    "params": {f"models.cnn.p{n}": str(n) for n in range(150)} | {"models.cnn.init": "", "about": "é" * 7000},
    "tags": {"git_commit": "0123abc", "schedule": "alternate"},
}
RESULT = {
    "kind": "result",
    "steps": 40,
    "models": {
        "cnn": {
            "params": 718378,
            "steps_taught": 30,
            "steps_learned": 10,
            "val": {"accuracy": 0.75},
            "test": {"accuracy": 0.8, "log_loss": 0.61},
            "checkpoint": "/no/such/run/models/cnn",
            "weights_sha256": "ab12",
            "per_tag": {"dog": 0.9},
        }
    },
}


@pytest.fixture(autouse=True)
def _replayer_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in MLFLOW_ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def _start(event_log: Path, uri: str, replayers: list[Replayer]) -> Replayer:
    replayer = start_replayer(event_log, uri, log=event_log.with_name("tracking.log"))
    assert isinstance(replayer, Replayer)
    replayers.append(replayer)
    return replayer


def _metrics(event_log: EventLog, steps: range) -> None:
    for step in steps:
        event_log.append({"kind": "metrics", "step": step, "values": {f"cnn/m{n}": step + n for n in range(CURVES)}})


def _replay_now(event_log: Path, uri: str) -> None:
    command = [sys.executable, "-m", "orchestrator.tracking", str(event_log)]
    subprocess.run(
        command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri}, timeout=120
    )


def _run(uri: str) -> tuple[Any, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("antiphon")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def _history(client: Any, run: Any) -> dict[str, list[tuple[int, float]]]:
    """Metric key -> its (step, value) in order of steps."""
    keys = run.data.metrics
    return {key: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)) for key in keys}


def _wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.01)


def test_importing_the_replayer_imports_no_mlflow() -> None:
    code = "import sys, orchestrator.tracking.replayer; print({'mlflow', 'ray', 'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "set()"


def test_no_tracking_has_the_same_interface(tmp_path: Path) -> None:
    null = start_replayer(tmp_path / "events.jsonl", "none", log=tmp_path / "log")
    assert (null.wait_started(), null.wait(timeout_s=0), null.explanation()) == ("", 0, "")
    assert ui_command("none") == ""
    assert list(tmp_path.iterdir()) == [tmp_path / "cwd"]


def test_ui_command_names_the_store(tmp_path: Path) -> None:
    folder = tmp_path / "my runs"
    assert ui_command(sqlite_uri(folder)).endswith(f"mlflow ui --backend-store-uri 'sqlite:///{folder}/mlflow.db'")
    assert ui_command("http://127.0.0.1:5000").endswith(
        "-m webbrowser 'http://127.0.0.1:5000/#/experiments?workflowType=machine_learning'"
    )


def test_a_server_that_does_not_answer_stops_the_run_at_its_start(tmp_path: Path, replayers: list[Replayer]) -> None:
    with EventLog(tmp_path / "events.jsonl") as event_log:
        event_log.append(RUN)
    replayer = _start(tmp_path / "events.jsonl", f"http://127.0.0.1:{_free_port()}", replayers)
    with pytest.raises(Unavailable, match=r"(?s)tracking could not start: .*Connection refused.*--tracking none"):
        replayer.wait_started()
    assert replayer.wait(timeout_s=0) == 75


class _Refusing(http.server.BaseHTTPRequestHandler):
    """A server that wants to know who asks."""

    def do_GET(self) -> None:
        self.send_error(401)

    do_POST = do_GET


def test_a_server_that_refuses_is_not_asked_again(tmp_path: Path, replayers: list[Replayer]) -> None:
    with EventLog(tmp_path / "events.jsonl") as event_log:
        event_log.append(RUN)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        replayer = _start(tmp_path / "events.jsonl", f"http://127.0.0.1:{server.server_port}", replayers)
        with pytest.raises(RuntimeError, match=r"tracking could not start: .*401"):
            replayer.wait_started()
        server.shutdown()
    assert replayer.wait(timeout_s=0) == 1


def test_a_killed_replayer_is_resumed_and_a_second_replay_adds_nothing(
    tmp_path: Path, replayers: list[Replayer]
) -> None:
    uri = sqlite_uri(tmp_path)
    offset = tmp_path / "events.jsonl.offset"
    with EventLog(tmp_path / "events.jsonl") as event_log:
        event_log.append(RUN)
        _metrics(event_log, range(1200))
        first = _start(event_log.path, uri, replayers)
        run_id = first.wait_started()
        _wait_until(offset.exists, "the first acknowledgement")
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        assert f'"end": {event_log.path.stat().st_size},' not in offset.read_text(), (
            "everything was sent before the kill, so the test shows nothing"
        )
        # the run was preempted too and resumes from an earlier checkpoint: steps 1100 to 1199 come twice
        event_log.append({"kind": "end", "status": "preempted", "error": ""})
        event_log.append(RUN | {"params": {"models.cnn.p1": "changed"}})
        event_log.append({"kind": "start", "attempt": 2, "step": 1100, "damaged": []})
        second = _start(event_log.path, uri, replayers)
        assert second.wait_started() == run_id
        _metrics(event_log, range(1100, 1300))
        event_log.append({"kind": "end", "status": "done", "error": ""})
        assert second.wait(timeout_s=60) == 0
    client, run = _run(uri)
    history = _history(client, run)
    assert history == {f"cnn/m{n}": [(step, float(step + n)) for step in range(1300)] for n in range(CURVES)}
    offset.unlink()
    _replay_now(event_log.path, uri)
    client, run = _run(uri)
    assert _history(client, run) == history
    assert run.info.status == "FINISHED"
    assert run.data.params["models.cnn.p1"] == "1"
    assert run.data.tags["resumed.models.cnn.p1"] == "changed"
    assert (run.data.tags["antiphon.attempt"], run.data.tags["antiphon.resumed_from"]) == ("2", "1100")


def test_every_kind_of_record_is_mapped(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as event_log:
        event_log.append(RUN)
        event_log.append({"kind": "start", "attempt": 1, "step": 0, "damaged": []})
        clips = {"train": 80, "val": 20, "test": 25}
        broken = [{"clip_id": "7", "path": "7.wav", "reason": "empty"}]
        data = {"fingerprint": "f00d", "tags": ["dog", "rain"], "labels": "single", "clips": clips}
        event_log.append({"kind": "data", **data, "quarantined": broken})
        event_log.append({"kind": "replaced", "step": 4, "clip_id": "3", "reason": "damaged", "by": "8"})
        event_log.append({"kind": "phase", "step": 0, "index": 0, "of": 2, "steps": 40, "trains": ["cnn"], "edges": []})
        event_log.append(
            {"kind": "metrics", "step": 10, "values": {"cnn/loss": float("nan"), "cnn-to-vit/kd_loss": 0.25}}
        )
        event_log.append(
            {"kind": "bad", "step": 12, "models": ["cnn", "vit"], "policy": "skip", "clip_ids": ["3", "8"]}
        )
        event_log.append({"kind": "machine", "step": 178, "values": {"system/cpu_utilization_percentage": 97.5}})
        event_log.append({"kind": "checkpoint", "step": 20, "name": "step-20", "seconds": 0.5})
        event_log.append(RESULT)
        event_log.append({"kind": "closed", "status": "failed", "error": "disk full", "mistake": False})
        event_log.append({"kind": "end", "status": "failed", "error": "disk full"})
    _replay_now(event_log.path, sqlite_uri(tmp_path))
    client, run = _run(sqlite_uri(tmp_path))
    record = {r["kind"]: r for r in read_event_log(event_log.path)}
    (kd_loss,) = client.get_metric_history(run.info.run_id, "cnn-to-vit/kd_loss")
    assert (kd_loss.value, kd_loss.step, kd_loss.timestamp) == (0.25, 10, record["metrics"]["t"])
    assert run.data.metrics.pop("cnn/loss") != 0.0  # nan is stored, and as nan
    assert run.data.metrics == {
        "phase": 0.0,
        "cnn-to-vit/kd_loss": 0.25,
        "system/cpu_utilization_percentage": 97.5,
        "checkpoint_seconds": 0.5,
        "cnn/test/accuracy": 0.8,
        "cnn/test/log_loss": 0.61,
        "cnn/params": 718378.0,
        "cnn/steps_taught": 30.0,
        "cnn/steps_learned": 10.0,
    }
    assert len(run.data.params) == 152
    assert run.data.params["models.cnn.init"] == ""
    assert run.data.params["about"].endswith("[cut: 7000 characters, all of them in the resolved recipe]")
    expected = {"git_commit": "0123abc", "data.fingerprint": "f00d", "data.quarantined": "1", "data.clips.val": "20"}
    expected |= {"data.replaced": "step 4: 3 by 8: damaged"}
    expected |= {
        "antiphon.error": "disk full",
        "antiphon.status": "failed",
        "cnn.checkpoint": "/no/such/run/models/cnn",
    }
    expected |= {"antiphon.checkpoint": "step-20", "antiphon.bad_numbers": "step 12: cnn, vit", "antiphon.attempt": "1"}
    assert expected.items() <= run.data.tags.items()
    assert "antiphon.resumed_from" not in run.data.tags
    assert (run.info.run_name, run.info.status) == ("demo", "FAILED")
    assert (run.info.start_time, run.info.end_time) == (record["run"]["t"], record["end"]["t"])
    assert run.info.artifact_uri.startswith((tmp_path / "artifacts").as_uri())
    assert list((tmp_path / "cwd").iterdir()) == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[int], subprocess.Popen[bytes]]]:
    """Starts an MLflow server on a port, always on the same database; the servers are killed after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", sqlite_uri(tmp_path / "server")]
        command += ["--artifacts-destination", str(tmp_path / "server" / "artifacts"), "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (tmp_path / "server.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        started.append(process)
        _wait_until(lambda: _healthy(port), "the server's start", seconds=90)
        return process

    (tmp_path / "server").mkdir()
    yield start
    for process in started:
        _kill_group(process)


@pytest.mark.faults
def test_no_point_is_lost_or_doubled_when_the_server_is_killed_and_restarted(
    tmp_path: Path, server: Callable[[int], subprocess.Popen[bytes]], replayers: list[Replayer]
) -> None:
    port = _free_port()
    uri = f"http://127.0.0.1:{port}"
    process = server(port)
    with EventLog(tmp_path / "events.jsonl") as event_log:
        event_log.append(RUN)
        replayer = _start(event_log.path, uri, replayers)
        replayer.wait_started()
        _metrics(event_log, range(300))
        _wait_until((tmp_path / "events.jsonl.offset").exists, "the first acknowledgement")
        _kill_group(process)
        _metrics(event_log, range(300, 600))
        _wait_until(lambda: "not delivered, trying again" in replayer.log.read_text(), "the replayer's notice")
        server(port)
        event_log.append(RESULT)
        event_log.append({"kind": "end", "status": "done", "error": ""})
        assert replayer.wait(timeout_s=60) == 0, replayer.explanation()
    client, run = _run(uri)
    history = _history(client, run)
    for n in range(CURVES):
        assert history[f"cnn/m{n}"] == [(step, float(step + n)) for step in range(600)]
    assert history["cnn/test/accuracy"] == [(40, 0.8)]
    assert run.info.status == "FINISHED"


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the server and the workers it forked: they share the process group that it was started in."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_finished_trial_stays_finished_when_the_driver_is_killed(tmp_path: Path) -> None:
    uri, event_log = sqlite_uri(tmp_path), tmp_path / "events.jsonl"
    with EventLog(event_log) as out:
        out.append(RUN)
        for child in ("0000", "0001"):
            out.append(RUN | {"run_id": f"search/{child}", "name": child, "child": child})
            out.append({"kind": "metrics", "step": 1, "values": {"objective": 0.5}, "child": child})
        out.append({"kind": "closed", "status": "done", "error": "", "child": "0000"})
    _replay_now(event_log, uri)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (experiment,) = (found for found in client.search_experiments() if found.name == "antiphon")
    status = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert status == {"demo": "KILLED", "0000": "FINISHED", "0001": "KILLED"}


def test_pages_of_mlflow_say_what_a_run_is(tmp_path: Path) -> None:
    """Kind of experiment, description with links, source, data set, files; once, and a person's words stay."""
    uri = sqlite_uri(tmp_path)
    resolved = {"name": "demo", "data": {"format": "esc50", "root": "/data/ESC-50-master"}}
    run = RUN | {
        "about": "Two models",
        "resolved": resolved,
        "tags": RUN["tags"] | {"command": "/opt/bin/antiphon run demo --storage /runs"},
    }
    clips = {"train": 3, "val": 1, "test": 1}
    data = {"kind": "data", "fingerprint": "5eed" * 16, "labels": "single", "tags": ["a"], "quarantined": []}
    with EventLog(tmp_path / "events.jsonl") as event_log:
        for record in (run, data | {"clips": clips}, {"kind": "end", "status": "done", "error": "", "mistake": False}):
            event_log.append(record)
    _replay_now(event_log.path, uri)
    client, found = _run(uri)
    assert client.get_experiment(found.info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"
    page = f"#/experiments/{found.info.experiment_id}/runs/{found.info.run_id}/artifacts"
    note = found.data.tags["mlflow.note.content"]
    assert note.startswith("Two models\n")
    assert f"[Report]({page}/report.html?workflowType=machine_learning)" in note
    assert found.data.tags["mlflow.source.name"] == "antiphon run demo"
    assert found.data.tags["mlflow.source.git.commit"] == "0123abc"
    (given,) = found.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("esc50 ESC-50-master", ("5eed" * 16)[:36])
    assert json.loads(given.dataset.profile)["clips"] == clips
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["recipe.json"]

    client.set_tag(found.info.run_id, "mlflow.note.content", "the best so far")
    client.set_experiment_tag(found.info.experiment_id, "mlflow.experimentKind", "genai_development")
    (tmp_path / "report.html").write_text("<!doctype html><title>demo</title>")
    send_report(event_log.path, uri, tmp_path / "report.html")
    _replay_now(event_log.path, uri)
    client, found = _run(uri)
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["recipe.json", "report.html"]
    assert found.data.tags["mlflow.note.content"] == "the best so far"
    assert client.get_experiment(found.info.experiment_id).tags["mlflow.experimentKind"] == "genai_development"
    assert len(found.inputs.dataset_inputs) == 1
