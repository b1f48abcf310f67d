"""What is sent to a cluster for a job, and what is refused before anything is."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.jobs.client import DASHBOARD, IdTaken, JobState
from orchestrator.jobs.control import exit_code, submit
from orchestrator.jobs.submission import Submission, check_environment, entrypoint, metadata, pack_folder, runtime_env
from orchestrator.recipes.loader import load_recipe, load_teach_recipe, resolve
from orchestrator.teaching.teacher_runs import run_uris
from tests.tiny_search import ANTIPHON


def submission(**changes) -> Submission:
    typed = Submission("run", resolve(load_recipe("demo")), ["--workers", "2"], "nightly", "s3://bucket/runs")
    return replace(typed, **changes)


def test_the_command_goes_on_with_the_run_of_the_jobs_name():
    assert entrypoint(submission()) == (
        "exec python -m orchestrator.cli.app run recipe.json --run-id nightly --resume auto --workers 2"
    )
    assert metadata(submission())["uri"] == "s3://bucket/runs/nightly"
    store = submission(kind="teach", storage="s3://bucket/store", arguments=["--out", "s3://bucket/store"])
    assert entrypoint(store) == "exec python -m orchestrator.cli.app teach recipe.json --out s3://bucket/store"
    assert metadata(store)["uri"] == "s3://bucket/store"
    assert "teacher_runs" not in metadata(store)
    study = submission(kind="study", name="side-by-side", arguments=["--slots", "4"])
    assert entrypoint(study) == (
        "exec python -m orchestrator.cli.app study recipe.json --study-id side-by-side --slots 4"
    )
    assert metadata(study)["uri"] == "s3://bucket/runs/side-by-side"


def test_a_job_that_trains_teachers_tells_where_their_runs_are():
    """For `antiphon stop`, which asks those."""
    uris = run_uris(load_teach_recipe("teach-demo"), "s3://bucket/runs")
    assert uris == ["s3://bucket/runs/demo-teachers"]
    store = submission(kind="teach", storage="s3://bucket/store", teacher_runs=uris)
    assert json.loads(metadata(store)["teacher_runs"]) == uris


def test_a_variable_that_the_node_lacks_ends_the_job_before_it_begins(monkeypatch):
    command = entrypoint(submission(env=["NEEDED", "GIVEN=1"], python="echo"))
    monkeypatch.delenv("NEEDED", raising=False)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode != 0
    assert "NEEDED: must be set on the nodes of the cluster" in done.stderr
    monkeypatch.setenv("NEEDED", "x")
    assert subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout.startswith("-m orchestrator")
    assert runtime_env(submission(env=["NEEDED", "GIVEN=1"]), Path("f"))["env_vars"]["GIVEN"] == "1"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("AWS_SECRET_ACCESS_KEY=abc", "--env AWS_SECRET_ACCESS_KEY: a secret must not travel with a job"),
        ("MLFLOW_TRACKING_URI=https://u:p@h", "--env MLFLOW_TRACKING_URI: a secret must not travel"),
        ("A-B", "--env 'A-B': must be NAME or NAME=VALUE"),
    ],
)
def test_no_secret_and_no_strange_name_travels(given, message):
    with pytest.raises(ValueError, match=message):
        check_environment([given])


def test_the_code_that_is_sent_runs_where_nothing_else_is(tmp_path):
    size = pack_folder(submission(), tmp_path)
    assert 500_000 < size < 5_000_000
    assert not list(tmp_path.rglob("__pycache__"))
    done = subprocess.run(
        [Path(ANTIPHON).with_name("python"), "-m", "orchestrator.cli.app", "run", "recipe.json", "--dry-run", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout) == resolve(load_recipe("demo")), done.stderr
    imported = [Path(ANTIPHON).with_name("python"), "-c", "import orchestrator; print(orchestrator.__file__)"]
    assert subprocess.run(imported, cwd=tmp_path, capture_output=True, text=True).stdout.startswith(str(tmp_path))


def test_a_job_tells_what_it_works_on_so_that_other_work_of_its_name_is_refused():
    same, other = metadata(submission()), metadata(submission(recipe=resolve(load_recipe("demo", ["train.seed=1"]))))
    assert metadata(submission()) == same
    assert {key for key in same if same[key] != other[key]} == {"recipe"}
    running = JobState("nightly", "RUNNING", "", same, {}, None, 1, 0)
    cluster = FakeJobs([running])
    assert submit(cluster, submission(), say=lambda text: None) == "nightly"
    with pytest.raises(ValueError, match="--id 'nightly': job nightly, which runs, has another recipe"):
        submit(cluster, submission(recipe=resolve(load_recipe("demo", ["train.seed=1"]))), say=lambda text: None)
    with pytest.raises(ValueError, match="has another place"):
        submit(cluster, submission(storage="s3://bucket/other"), say=lambda text: None)


def test_ids_that_are_taken_are_not_tried_again():
    """Ray takes an id once, also of jobs that have ended, and that others have submitted."""
    ended = JobState("nightly", "FAILED", "", metadata(submission()), {}, 75, 1, 2)
    foreign = JobState("nightly-2", "SUCCEEDED", "", {}, {}, 0, 1, 2)
    cluster = FakeJobs([ended, foreign], taken_meanwhile="nightly-3")
    assert submit(cluster, submission(installed=True), say=lambda text: None) == "nightly-4"


@pytest.mark.parametrize(
    ("status", "code", "expected"), [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 75), ("STOPPED", None, 75)]
)
def test_a_job_whose_driver_left_no_exit_code_may_be_gone_on_with(status, code, expected):
    assert exit_code(JobState("n", status, "", {}, {}, code, 1, 2)) == expected


def test_where_the_nodes_have_antiphon_only_the_recipe_is_sent(tmp_path):
    pack_folder(submission(installed=True), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


class FakeJobs:
    """Stands for a cluster where only the choice of an id is of interest; real ones: tests/integration/test_jobs.py."""

    address = "http://nowhere"

    def __init__(self, known: list[JobState], *, taken_meanwhile: str = "") -> None:
        self._known, self._taken = known, taken_meanwhile

    def all(self) -> list[JobState]:
        return list(self._known)

    def submit(self, job_id: str, entrypoint: str, **described) -> None:
        if job_id == self._taken:
            self._known.append(JobState(job_id, "FAILED", "", {}, {}, 1, 1, 2))
            raise IdTaken(job_id)


WHERE = ("--storage", "s3://b/p", "--tracking", "http://mlflow")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("demo",), "--storage 'runs': within Ray job n this is a folder that is removed with the job"),
        (("demo", "--storage", "s3://b/p"), "--tracking sqlite (the default): within Ray job n the database"),
        (("demo", *WHERE, "--run-id", "a"), "--run-id: the job's run has the job's name; give --id to submit"),
        (("search", "search-demo", *WHERE, "--resume", "a"), "--resume: a job goes on with the run or search of its"),
        (("demo", *WHERE, "--local"), "--local: a job on a cluster runs on Ray"),
        (("demo", *WHERE, "--wait", "-5"), "--wait -5: must be 0 seconds or more"),
        (("demo", *WHERE, "--seeds", "0"), "--seeds 0: must be 1 to"),
        (("demo", *WHERE, "--no-compare", "--seeds", "2"), "--seeds 2: repeats a comparison with untaught controls"),
        (("search", "demo", *WHERE), "has no [search.space]"),
        (("search", "search-demo", *WHERE, "--workers", "3"), "train.shards = 1 must be a multiple of it"),
        (("search", "search-demo", *WHERE, "--slots", "-1"), "--slots -1: must be 1 or more"),
        (("search", "search-demo", *WHERE, "--set", "resources.labels={a='b'}"), "resources.labels: trials of one"),
        (("study", "study-demo", *WHERE, "--slots", "-1"), "--slots -1: must be 0 or more"),
        (("demo", *WHERE, "--workers", "3"), "--workers 3: train.shards = 1 must divide among them"),
        (("demo", *WHERE, "--set", "data.cache=clips"), "data.cache = 'clips': is a folder of this machine"),
        (("demo", *WHERE, "--set", "train.steeps=1"), "train.steeps: unknown key"),
        (("demo", "--storage", "s3://b/p", "--tracking", "http://u:p@h"), "a secret must not travel with a job"),
        (
            ("study", "study-demo", *WHERE, "--study-id", "a"),
            "--study-id: the job's study has the job's name; give --id",
        ),
        (("study", "study-demo", *WHERE, "--local"), "--local: a job on a cluster runs on Ray"),
        (("study", "study-esc10", *WHERE, "--set", "data.root=D"), "data.root = 'D': is a folder of this machine"),
        (("study", "study-demo", *WHERE, "--slots", "2"), "no cluster is named"),
        (("teach", "teach-bytes", "--out", "store"), "--out 'store': within Ray job n"),
        (("teach", "teach-demo", "--out", "s3://b/store"), "--storage 'runs': within Ray job n"),
        (("demo", *WHERE), "no cluster is named; give --address with the URL of a Ray dashboard"),
        (("demo", *WHERE, "--set", "data.cache=/scratch/clips/"), "no cluster is named"),
        (("demo", "--storage", "s3://b/p", "--env", "MLFLOW_TRACKING_URI=http://m"), "no cluster is named"),
        (("demo", "--storage", "s3://KEY:u:p@b/x", "--tracking", "none"), "--storage"),
        (("teach", "teach-bytes", "--out", "s3://KEY:u:p@b/x"), "--out"),
        (("demo", *WHERE, "--address", "h:8265"), "--address 'h:8265': must be the URL of a Ray dashboard"),
        (("demo", *WHERE, "--env", "MY_TOKEN=1"), "--env MY_TOKEN: a secret must not travel with a job"),
    ],
)
def test_mistakes_are_found_before_a_cluster_is_asked(antiphon, tmp_path, monkeypatch, words, message):
    monkeypatch.setenv("HOME", str(tmp_path))  # no cluster of `antiphon cluster up` there
    for name in (DASHBOARD, "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    done = antiphon("submit", "--id", "n", *words)
    assert done.code == 2
    assert message in done.err
    assert "u:p" not in done.err


def test_an_option_that_the_command_has_not_is_named(antiphon):
    done = antiphon("submit", "demo", *WHERE, "--wurkers", "2")
    assert done.code == 2
    assert "No such option: --wurkers" in done.err


@pytest.mark.parametrize("command", [["submit", "demo", *WHERE], ["stop", "n"]])
def test_a_dashboard_that_does_not_answer_may_do_so_later(tmp_path, command):
    """In a process of its own: Ray's client remembers that there was no token, also for a Ray that is started later."""
    words = [ANTIPHON, *command, "--address", "http://127.0.0.1:9"]
    done = subprocess.run(words, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 75
    assert "--address 'http://127.0.0.1:9': no Ray dashboard answers there" in done.stderr
