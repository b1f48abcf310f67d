"""Runs on Ray whose driver or worker is killed and that continue, perhaps with another number of workers."""

import json
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from orchestrator.training.ray_trainer import RETRIES
from tests import small
from tests.faults import recovery
from tests.integration.test_run import ANTIPHON, outcome_of, settings
from tests.integration.test_run_ended import wait_for_record
from workloads.runtime.event_log import read_event_log

pytestmark = pytest.mark.faults
PLAN = ["schedule.burn_in=120", "schedule.period=60", "schedule.turns=2", "train.checkpoint_every=40"]
TOTAL = 240


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    cache = f"data.cache={tmp_path_factory.mktemp('clips')}"
    steady = ["train.shards=2", "models.cnn.arch.dropout=0.0"]
    return [
        *("run", "demo", "--json", "--tracking", "none"),
        *settings([*small.SIZES, *small.TWO_MODELS, *PLAN, *steady, cache]),
    ]


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory) -> dict:
    return outcome_of(antiphon([*command, "--local", "--storage", str(tmp_path_factory.mktemp("whole"))]))


def antiphon(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ANTIPHON, *arguments], capture_output=True, text=True)


@contextmanager
def started(arguments: list[str]):
    """A run in its own process group, and a function that lists its child processes; at the end those are killed."""
    process = subprocess.Popen(
        [ANTIPHON, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    children: list[psutil.Process] = []
    try:
        yield process, lambda: children.extend(psutil.Process(process.pid).children(recursive=True)) or children
    finally:
        for child in children:
            if child.is_running():  # the same process, not a later one with its pid
                child.kill()
        process.kill()
        process.communicate()


def hashes(ended: dict) -> dict[str, str]:
    return {name: row["weights_sha256"] for name, row in ended["models"].items()}


@pytest.mark.parametrize("victims", ["driver", "everything"])
def test_a_killed_driver_is_resumed(command, uninterrupted, tmp_path, victims, fault_table):
    where = ["--storage", str(tmp_path / "runs")]
    with started([*command, *where, "--run-id", "a"]) as (process, children):
        wait_for_record(tmp_path / "runs", process, kind="checkpoint")
        processes = children()
        assert any("RayTrainWorker" in " ".join(child.cmdline()) for child in processes)
        process.kill()
        for child in processes if victims == "everything" else []:
            child.kill()
        process.wait()
        ended = outcome_of(antiphon([*command, *where, "--resume", "a"]))
    assert ended["resumed_from_step"] >= 40
    assert ended["resumed_from_step"] + ended["steps_run"] == TOTAL
    assert hashes(ended) == hashes(uninterrupted)
    what = {"driver": "the driver killed", "everything": "the driver and all of Ray killed"}[victims]
    seen = "nothing; `--resume ID` takes over at once"
    fault_table(fault=f"Ray: {what}", seen=seen, **recovery(tmp_path / "runs" / "a" / "events.jsonl"), equal=True)


def test_a_worker_is_killed(command, uninterrupted, tmp_path, fault_table):
    with started([*command, "--storage", str(tmp_path / "runs"), "--run-id", "a"]) as (process, children):
        wait_for_record(tmp_path / "runs", process, kind="checkpoint")
        (worker,) = [child for child in children() if "RayTrainWorker" in " ".join(child.cmdline())]
        worker.kill()
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-2000:]
    assert hashes(json.loads(out)) == hashes(uninterrupted)
    seen = "nothing; Ray starts the workers again"
    times = recovery(tmp_path / "runs" / "a" / "events.jsonl")
    fault_table(fault="Ray: a worker killed", seen=seen, **times, equal=True)


def test_a_run_continues_with_another_number_of_workers(command, uninterrupted, tmp_path):
    """Started in one process with two shards a step, killed, resumed on Ray by two workers with one shard each."""
    where = ["--storage", str(tmp_path / "runs")]
    with started([*command, *where, "--local", "--run-id", "a"]) as (process, _):
        wait_for_record(tmp_path / "runs", process, kind="checkpoint")
        process.send_signal(signal.SIGKILL)
    ended = outcome_of(antiphon([*command, *where, "--resume", "a", "--workers", "2"]))
    assert ended["resumed_from_step"] >= 40
    assert ended["resumed_from_step"] + ended["steps_run"] == TOTAL
    for name, row in uninterrupted["models"].items():
        assert ended["models"][name]["steps_learned"] == row["steps_learned"]
        one, other = (weights(run["models"][name]["checkpoint"]) for run in (uninterrupted, ended))
        assert max((one[key].float() - other[key].float()).abs().max().item() for key in one) < 1e-3


def weights(tagger: str) -> dict:
    from workloads.runtime import checkpoint
    from workloads.runtime.opener import LocalFiles

    return checkpoint.read_weights(LocalFiles(), tagger)[0]


@pytest.mark.parametrize("advances", [True, False])
def test_workers_are_killed_more_often_than_ray_starts_them_again(command, tmp_path, advances, fault_table):
    """A run goes on as long as a checkpoint is stored between two losses; one that does not advance ends."""
    every = 20 if advances else 100_000
    words = [*command, *settings(["schedule.burn_in=300", f"train.checkpoint_every={every}"])]
    event_log = tmp_path / "runs" / "a" / "events.jsonl"
    kills = RETRIES + (2 if advances else 1)
    with started([*words, "--storage", str(tmp_path / "runs"), "--run-id", "a"]) as (process, _):
        for number in range(1, kills + 1):
            wait_for_attempt(event_log, process, number, kind="checkpoint" if advances else "start")
            worker_of(process).kill()
        out, err = process.communicate(timeout=600)
    starts = [record["step"] for record in read_event_log(event_log) if record["kind"] == "start"]
    if not advances:
        assert process.returncode == 1, err[-2000:]
        assert starts == [0] * kills
        return
    assert process.returncode == 0, err[-2000:]
    assert starts == sorted({*starts})
    assert len(starts) == kills + 1
    alone = outcome_of(antiphon([*words, "--local", "--storage", str(tmp_path / "whole")]))
    assert hashes(json.loads(out)) == hashes(alone)
    fault = f"Ray: a worker killed {kills} times, each time after a checkpoint"
    fault_table(fault=fault, seen="nothing; Ray starts the workers again", **recovery(event_log), equal=True)


def wait_for_attempt(event_log: Path, process: subprocess.Popen[str], number: int, *, kind: str) -> None:
    """Return once the workers have started so many times, and recorded this since."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        kinds = [record["kind"] for record in read_event_log(event_log)] if event_log.exists() else []
        starts = [place for place, each in enumerate(kinds) if each == "start"]
        if len(starts) == number and kind in kinds[starts[-1] :]:
            return
        time.sleep(0.05)
    raise AssertionError("no such record within five minutes")


def worker_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The only worker of a run that is training."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    (worker,) = found
    return worker
