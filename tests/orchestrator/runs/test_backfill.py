"""`antiphon track replay`: where it reads records, where it sends them, and its messages where it cannot."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.runs import backfill
from orchestrator.storage import object_store
from orchestrator.tracking.replayer import MLFLOW_ENVIRONMENT
from orchestrator.tracking.uri import sqlite_uri
from workloads.runtime.event_log import EventLog, timestamped

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))


@pytest.fixture(autouse=True)
def _replayer_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in MLFLOW_ENVIRONMENT.items():
        monkeypatch.setenv(key, value)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests, since creating one takes seconds; each test uses another run id."""
    return sqlite_uri(tmp_path_factory.mktemp("mlflow"))


def _records(run_id: str, tracked: str, *, ended: bool = True, seconds_ago: float = 0.0) -> list[dict[str, Any]]:
    run = {"run_id": run_id, "experiment": "antiphon", "name": "demo", "params": {}, "tags": {"tracking": tracked}}
    records = [timestamped("run", **run), timestamped("metrics", step=1, values={"cnn/loss": 0.5, "vit/loss": 0.25})]
    records += [timestamped("end", status="done", error="", mistake=False)] if ended else []
    return [record | {"t": record["t"] - round(seconds_ago * 1000)} for record in records]


def _run(folder: Path, records: list[dict[str, Any]]) -> str:
    with EventLog(folder / "events.jsonl") as event_log:
        for record in records:
            event_log.append(record)
    return str(folder)


def _status(uri: str, run_id: str) -> str:
    from mlflow import MlflowClient

    return str(MlflowClient(tracking_uri=uri).get_run(run_id).info.status)


def _antiphon(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ANTIPHON, "track", "replay", *arguments], capture_output=True, text=True, timeout=120)


def test_a_run_is_sent_once_to_where_it_was_tracked(tmp_path: Path, uri: str) -> None:
    run = _run(tmp_path / "run", _records("once", uri))
    done = _antiphon(run, "--json")
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)
    assert (first["run"], first["tracking"], first["points_sent"], first["points_held"]) == ("once", uri, 2, 0)
    again = CliRunner().invoke(app, ["track", "replay", run])
    assert again.stdout == f"once: 0 points sent to {uri}, 2 had been sent before\n"
    assert _status(uri, first["mlflow_run_id"]) == "FINISHED"


def test_the_outcome_names_the_destination_and_the_user_overrides_it(tmp_path: Path, uri: str) -> None:
    run = _run(tmp_path / "run", _records("overruled", "http://127.0.0.1:1"))
    (tmp_path / "run" / "outcome.json").write_text(json.dumps({"tracking": uri}))
    assert backfill.replay_run(run)["tracking"] == uri
    (tmp_path / "run" / "outcome.json").write_text(json.dumps({"tracking": "none"}))
    with pytest.raises(ValueError, match=r"was not tracked anywhere; .*--tracking URI"):
        backfill.replay_run(run)
    assert backfill.replay_run(run, uri)["points_held"] == 2


def test_a_run_in_an_object_store_is_fetched(uri: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    s3_server.client().create_bucket(Bucket="team")
    lines = [json.dumps(record) + "\n" for record in _records("remote", uri)]
    object_store.put_text("s3://team/remote/events.jsonl", "".join(lines))
    assert backfill.replay_run("s3://team/remote")["points_sent"] == 2
    assert backfill.replay_run("s3://team/remote/")["points_held"] == 2


def test_an_unavailable_server_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound, not listening: refused
        done = _antiphon(_run(tmp_path, _records("unavailable", f"http://127.0.0.1:{probe.getsockname()[1]}")))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("MLflow is unavailable, try again later: ")
    assert "Connection refused" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_without_records_is_the_users_mistake(tmp_path: Path) -> None:
    done = _antiphon(str(tmp_path))
    assert done.returncode == 2
    assert "no events.jsonl there" in done.stderr


def test_a_run_whose_replayer_still_sends_records_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill, "LOCK_S", 0)
    run = _run(tmp_path, _records("busy", "sqlite:///nowhere.db"))
    with (
        FileLock(tmp_path / "events.jsonl.lock"),
        pytest.raises(ValueError, match="its replayer process is still sending records"),
    ):
        backfill.replay_run(run)


@pytest.mark.parametrize(("seconds_ago", "status"), [(5.0, "RUNNING"), (600.0, "KILLED")])
def test_a_run_without_an_end_is_killed_only_after_some_time_without_records(
    tmp_path: Path, uri: str, seconds_ago: float, status: str
) -> None:
    records = _records(f"no-end-{status}", uri, ended=False, seconds_ago=seconds_ago)
    started = time.time()
    done = backfill.replay_run(_run(tmp_path, records))
    assert time.time() - started < 60, "the machine is too slow for this test"
    assert _status(uri, done["mlflow_run_id"]) == status
