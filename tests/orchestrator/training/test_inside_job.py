"""Commands within a Ray job: what would be lost with the job is refused, and the job's cluster is the default."""

import json
import os
import subprocess

import pytest

from cluster.process_registry import free_ports
from orchestrator.training.inside_job import JOB_CONFIG, submission_id
from tests.tiny_search import ANTIPHON

HTTP = "http://mlflow:5000"


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB_CONFIG, json.dumps({"metadata": {"job_submission_id": "nightly-1"}, "runtime_env": {}}))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["run", "demo", "--tracking", HTTP],
            "--storage 'runs': within Ray job nightly-1 this is a folder that is rem",
        ),
        (
            ["run", "demo", "--storage", "/shared"],
            "--tracking sqlite (the default): within Ray job nightly-1 the datab",
        ),
        (
            ["run", "demo", "--storage", "/shared", "--tracking", "sqlite:////a.db"],
            "--tracking sqlite:////a.db: within",
        ),
        (["search", "search-demo", "--tracking", HTTP], "--storage 'runs': within Ray job nightly-1"),
        (["search", "search-demo", "--storage", "s3://b/p"], "--tracking sqlite (the default): within Ray job"),
        (["teach", "teach-bytes", "--out", "store"], "--out 'store': within Ray job nightly-1"),
        (["data", "pack", "demo", "--out", "packed", "--as", "flac"], "--out 'packed': within Ray job nightly-1"),
    ],
)
@pytest.mark.usefixtures("job")
def test_what_would_be_lost_with_the_job_is_refused(antiphon, tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    done = antiphon(*command)
    assert done.code == 2
    assert message in done.err
    assert list(tmp_path.iterdir()) == []


def test_outside_of_jobs_there_is_no_id(monkeypatch):
    monkeypatch.delenv(JOB_CONFIG, raising=False)
    assert submission_id() == ""


@pytest.mark.parametrize("given", ["option", "environment"])
def test_a_cluster_that_does_not_answer_is_named_at_once_and_may_be_tried_again(tmp_path, given):
    """In a process of its own: Ray reads when it is imported whether there are tokens."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    env = {**os.environ, "RAY_ADDRESS": address if given == "environment" else "127.0.0.1:1"}
    option = ["--address", address] if given == "option" else []
    words = [ANTIPHON, "run", "demo", "--storage", str(tmp_path), "--tracking", "none", "--json", *option]
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 75
    outcome = json.loads(done.stdout)
    assert outcome["status"] == "preempted"
    assert outcome["error"].startswith(f"--address '{address}': no Ray cluster can be used there (")
    assert "Connection refused" in outcome["error"]


def test_the_environments_cluster_does_not_keep_a_command_from_running_without_ray(antiphon, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = antiphon("run", "demo", "--local", "--workers", 2, "--storage", tmp_path)
    assert "--workers 2: --local runs in this process alone" in done.err  # and no word of --address
