"""Jobs of a real Ray cluster: submitted, found again, followed, stopped, and gone on with."""

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import stack
from tests.integration.test_run_ended import wait_for_record
from tests.small import MN, SIZES, TWO_MODELS, VIT
from tests.tiny_search import ANTIPHON, sets
from workloads.runtime.event_log import read_event_log

pytestmark = pytest.mark.slow
# a minute of training: a stop takes some 15 s to arrive
PLAN = ("schedule.burn_in=1200", "schedule.period=60", "schedule.turns=2", "train.checkpoint_every=40")
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder with the cluster of `antiphon cluster up`, whose dashboard wants a token."""
    home = tmp_path_factory.mktemp("home")
    folder = home / ".antiphon" / "stack"
    try:
        stack.up(folder, cpus=4, mlflow=False)
        yield home
    finally:
        stack.down(folder)


def job_table(home: Path) -> str:
    """All that the cluster's dashboard tells of its jobs."""
    service = next(service for service, _ in stack.status(home / ".antiphon" / "stack") if service.name == "ray")
    token = Path(service.client_env["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(
        f"{stack.dashboard(service)}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request) as answer:
        return answer.read().decode()


@pytest.fixture
def antiphon(home: Path, tmp_path: Path) -> Command:
    def call(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        # the submitter's own credentials, which no job may see
        given = {**os.environ, "HOME": str(home), "AWS_SECRET_ACCESS_KEY": "not-for-jobs", **env}
        return subprocess.run([ANTIPHON, *arguments], cwd=tmp_path, env=given, capture_output=True, text=True)

    return call


def settings(tmp_path: Path) -> list[str]:
    return sets(*SIZES, *TWO_MODELS, *PLAN, f"data.cache={tmp_path}/clips")


def test_a_job_is_found_again_stopped_and_gone_on_with(antiphon, home, tmp_path):
    where = ["--storage", f"{tmp_path}/runs", "--tracking", "none"]
    submit = ["submit", "demo", "--id", "nightly", *settings(tmp_path), *where]
    first = antiphon(*submit, "--detach", "--json")
    assert first.returncode == 0, first.stderr
    said = json.loads(first.stdout)
    assert said == {"job": "nightly", "name": "nightly", "uri": f"{tmp_path}/runs/nightly", "exit_code": None}
    again = antiphon(*submit, "--detach", "--json")
    assert (json.loads(again.stdout), "already" in again.stderr) == (said, True)

    follower = subprocess.Popen(
        [ANTIPHON, "logs", "-f", "nightly"], env={**os.environ, "HOME": str(home)}, stdout=subprocess.PIPE, text=True
    )
    wait_for_record(tmp_path / "runs", follower, kind="checkpoint")
    stopped = antiphon("stop", "nightly")
    assert "job nightly is asked to save and stop" in stopped.stderr
    assert "terminated" not in stopped.stderr
    out, _ = follower.communicate()
    assert (follower.returncode, "preempted: saved at step" in out) == (75, True)

    second = antiphon(*submit)
    assert second.returncode == 0, second.stderr
    assert "job nightly-2 is submitted" in second.stderr
    assert "resumes from step" in second.stdout
    listed = json.loads(antiphon("jobs", "--json").stdout)["jobs"]
    assert [(job["job"], job["command"], job["exit_code"]) for job in listed] == [
        ("nightly-2", "run", 0),
        ("nightly", "run", 75),
    ]
    assert antiphon("logs", "nightly").stdout.splitlines()[-1] == second.stdout.splitlines()[-1]

    alone = ["run", "demo", "--local", "--json", *settings(tmp_path), "--storage", f"{tmp_path}/alone"]
    expected = json.loads(antiphon(*alone, "--tracking", "none").stdout)["models"]
    outcome = json.loads((tmp_path / "runs" / "nightly" / "outcome.json").read_text())["models"]
    assert {name: row["weights_sha256"] for name, row in outcome.items()} == {
        name: row["weights_sha256"] for name, row in expected.items()
    }
    table, log = job_table(home), antiphon("logs", "nightly").stdout
    assert '"submission_id": "nightly-2"' in table
    assert "not-for-jobs" not in table + log


TEACHERS = f"""
name = "short"
extends = "demo-teachers"
[data]
synthetic_clips = 100
clip_seconds = 1.0
[models]
cnn = {{ arch = {MN} }}
small = {{ arch = {VIT} }}
[schedule]
steps = 1000
[train]
threads = 1
shard_size = 8
log_every = 1
checkpoint_every = 100000
"""


def test_a_store_whose_teachers_train_is_stopped_after_they_have_saved(antiphon, tmp_path):
    """Ray's three seconds are not enough for that: the teachers' run is asked, in the storage where it is."""
    (tmp_path / "short.toml").write_text(TEACHERS)
    uris = [f"teachers.{name}.uri=run:{tmp_path}/short.toml/{name}" for name in ("cnn", "small")]
    values = sets("data.synthetic_clips=100", "data.clip_seconds=1.0", "teach.views=1", *uris)
    where = ["--out", f"{tmp_path}/store", "--storage", f"{tmp_path}/runs"]
    submit = ["submit", "teach", "teach-demo", "--id", "store", *where, *values]
    assert antiphon(*submit, "--detach").returncode == 0
    event_log = tmp_path / "runs" / "short" / "events.jsonl"
    deadline = time.monotonic() + 300
    while '"kind":"metrics"' not in (event_log.read_text() if event_log.exists() else "").replace(" ", ""):
        assert time.monotonic() < deadline, antiphon("logs", "store").stdout
        time.sleep(0.5)
    stopped = antiphon("stop", "store")
    assert stopped.returncode == 0, stopped.stderr
    assert "job store is asked to save and stop" in stopped.stderr
    assert "terminated" not in stopped.stderr
    first = [record for record in read_event_log(event_log) if record["kind"] in ("checkpoint", "end")]
    assert [record["kind"] for record in first] == ["checkpoint", "end"]
    assert (first[1]["status"], 0 < first[0]["step"] < 1000) == ("preempted", True)
    second = antiphon(*submit)
    assert second.returncode == 0, second.stdout[-3000:]
    steps = [record["step"] for record in read_event_log(event_log) if record["kind"] == "start"]
    assert steps == [0, first[0]["step"]]
    assert (tmp_path / "store" / "manifest.json").is_file()
    listed = json.loads(antiphon("jobs", "--json").stdout)["jobs"]
    assert [(job["job"], job["exit_code"]) for job in listed if job["name"] == "store"] == [
        ("store-2", 0),
        ("store", 75),
    ]


def test_the_end_of_a_job_is_the_commands_own(antiphon, tmp_path):
    where = ["--storage", f"{tmp_path}/runs", "--tracking", "none"]
    lacking = antiphon("submit", "demo", *where, "--id", "lacking", "--env", "NOT_SET_ANYWHERE")
    assert lacking.returncode == 2
    assert "NOT_SET_ANYWHERE: must be set on the nodes of the cluster" in lacking.stdout
    too_many = antiphon("submit", "demo", *where, "--id", "many", *sets("train.threads=8"))
    assert too_many.returncode == 2
    assert "the cluster at" in too_many.stdout


def test_a_cluster_that_wants_a_token_says_so(antiphon, home, tmp_path):
    service = next(service for service, _ in stack.status(home / ".antiphon" / "stack") if service.name == "ray")
    for env in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong"}):
        done = antiphon("jobs", "--address", stack.dashboard(service), HOME=str(tmp_path), **env)
        assert done.returncode == 2
        assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file" in done.stderr


STUDY = """
name = "side-by-side"
recipe = "demo"
folds = [1]
seeds = [0]
steps = 400
standard = ["mutual"]
"""


def test_a_study_of_a_job_is_stopped_and_gone_on_with(antiphon, tmp_path):
    """Its file stays here: the job gets the plan, and its runs are tasks of the cluster."""
    (tmp_path / "study.toml").write_text(STUDY)
    sizes = sets(
        *SIZES, *TWO_MODELS, f"data.cache={tmp_path}/clips", "train.eval_every=200", "train.checkpoint_every=20"
    )
    where = ["--storage", f"{tmp_path}/runs", "--tracking", "none"]
    submit = ["submit", "study", "study.toml", *sizes, *where, "--slots", "2"]
    begun = antiphon(*submit, "--detach", "--json")
    assert begun.returncode == 0, begun.stderr
    assert json.loads(begun.stdout)["uri"] == f"{tmp_path}/runs/side-by-side"
    runs = [tmp_path / "runs" / f"side-by-side-{method}-fold1-seed0" for method in ("plain", "mutual")]
    deadline = time.monotonic() + 300
    while not all(list(run.glob("checkpoints/*/COMMITTED.json")) for run in runs):
        assert time.monotonic() < deadline, antiphon("logs", "side-by-side").stdout
        time.sleep(0.5)
    stopped = antiphon("stop", "side-by-side")
    assert stopped.returncode == 0, stopped.stderr
    assert "terminated" not in stopped.stderr
    assert "stopped with 2 runs left; repeat the command to go on" in antiphon("logs", "side-by-side").stdout
    second = antiphon(*submit)
    assert second.returncode == 0, second.stdout[-3000:]
    assert "2 of 2 runs are done" in second.stdout
    for run in runs:
        steps = [record["step"] for record in read_event_log(run / "events.jsonl") if record["kind"] == "start"]
        assert steps[0] == 0 < steps[-1] < 400
