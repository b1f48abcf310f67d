"""Runs on Ray whose driver is killed, alone or with everything it started, and goes on: perhaps with other workers."""

import json
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests import small
from tests.faults import recovery
from tests.integration.test_run import ANTIPHON, outcome_of, settings, wait_for_spool

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
def whole(command, tmp_path_factory) -> dict:
    return outcome_of(antiphon([*command, "--local", "--storage", str(tmp_path_factory.mktemp("whole"))]))


def antiphon(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ANTIPHON, *arguments], capture_output=True, text=True)


@contextmanager
def started(arguments: list[str]):
    """A run in a process group of its own; whatever of it is left at the end is killed, by pid."""
    process = subprocess.Popen(
        [ANTIPHON, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    family: list[psutil.Process] = []
    try:
        yield process, lambda: family.extend(psutil.Process(process.pid).children(recursive=True)) or family
    finally:
        for member in family:
            if member.is_running():  # the very same process, not its pid's next owner
                member.kill()
        process.kill()
        process.communicate()


def hashes(ended: dict) -> dict[str, str]:
    return {name: row["weights_sha256"] for name, row in ended["models"].items()}


@pytest.mark.parametrize("victims", ["driver", "everything"])
def test_a_killed_driver_is_resumed(command, whole, tmp_path, victims, fault_table):
    where = ["--storage", str(tmp_path / "runs")]
    with started([*command, *where, "--run-id", "a"]) as (process, family):
        wait_for_spool(tmp_path / "runs", process, kind="checkpoint")
        states = family()
        assert any("RayTrainWorker" in " ".join(member.cmdline()) for member in states)
        process.kill()
        for member in states if victims == "everything" else []:
            member.kill()
        process.wait()
        ended = outcome_of(antiphon([*command, *where, "--resume", "a"]))
    assert ended["resumed_from_step"] >= 40
    assert ended["resumed_from_step"] + ended["steps_run"] == TOTAL
    assert hashes(ended) == hashes(whole)
    what = {"driver": "the driver killed", "everything": "the driver and all of Ray killed"}[victims]
    seen = "nothing; `--resume ID` takes over at once"
    fault_table(fault=f"Ray: {what}", seen=seen, **recovery(tmp_path / "runs" / "a" / "events.jsonl"), equal=True)


def test_a_worker_is_killed(command, whole, tmp_path, fault_table):
    with started([*command, "--storage", str(tmp_path / "runs"), "--run-id", "a"]) as (process, family):
        wait_for_spool(tmp_path / "runs", process, kind="checkpoint")
        (worker,) = [member for member in family() if "RayTrainWorker" in " ".join(member.cmdline())]
        worker.kill()
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-2000:]
    assert hashes(json.loads(out)) == hashes(whole)
    seen = "nothing; Ray starts the workers again"
    times = recovery(tmp_path / "runs" / "a" / "events.jsonl")
    fault_table(fault="Ray: a worker killed", seen=seen, **times, equal=True)


def test_a_run_goes_on_with_another_number_of_workers(command, whole, tmp_path):
    """Begun in one process with two shards a step, killed, resumed on Ray by two workers with one each."""
    where = ["--storage", str(tmp_path / "runs")]
    with started([*command, *where, "--local", "--run-id", "a"]) as (process, _):
        wait_for_spool(tmp_path / "runs", process, kind="checkpoint")
        process.send_signal(signal.SIGKILL)
    ended = outcome_of(antiphon([*command, *where, "--resume", "a", "--workers", "2"]))
    assert ended["resumed_from_step"] >= 40
    assert ended["resumed_from_step"] + ended["steps_run"] == TOTAL
    for name, row in whole["models"].items():
        assert ended["models"][name]["steps_learned"] == row["steps_learned"]
        one, other = (weights(Path(run["models"][name]["checkpoint"])) for run in (whole, ended))
        assert max((one[key].float() - other[key].float()).abs().max().item() for key in one) < 1e-3


def weights(folder: Path) -> dict:
    from workloads.runtime import checkpoint

    return checkpoint.read_tensors(folder, "weights")
