"""`antiphon run` on Ray where something ends it or stands in its way: signals, kills, mistakes, a cluster too small."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.integration.test_run import ANTIPHON, SMALL, TURNS, antiphon, outcome_of, settings
from tests.processes import killed_at_the_end
from workloads.runtime.background import in_background
from workloads.runtime.event_log import read_event_log


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.mark.slow
def test_a_killed_worker_is_restarted_from_the_newest_checkpoint(home, tmp_path):
    values = settings(
        [*SMALL, f"data.cache={home}/clips", "schedule.burn_in=120", "schedule.period=60", "schedule.turns=2"]
    )
    command = ["run", "demo", "--json", "--tracking", "none", *values]
    uninterrupted = outcome_of(antiphon(*command, "--local", "--storage", f"{tmp_path}/whole"))
    process = subprocess.Popen(
        [ANTIPHON, *command, "--storage", f"{tmp_path}/cut"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_record(tmp_path / "cut", process, kind="checkpoint")
        (worker,) = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "RayTrainWorker" in " ".join(child.cmdline())
        ]
        worker.kill()
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, err[-2000:]
    outcome = json.loads(out)
    assert outcome["resumed_from_step"] >= 60
    assert outcome["resumed_from_step"] + outcome["steps_run"] == 240
    for name, row in uninterrupted["models"].items():
        assert outcome["models"][name]["weights_sha256"] == row["weights_sha256"]


def test_a_mistake_that_only_a_worker_can_detect_ends_the_run_at_once(home, tmp_path):
    """The initial weights do not fit the model: reported as the user's mistake, not retried, and with a report."""
    from safetensors.torch import save_file
    from torch import ones

    save_file({"stranger": ones(2)}, tmp_path / "w.safetensors")
    values = settings([*SMALL, *TURNS, f"data.cache={home}/clips", "models.vit.init=w.safetensors"])
    where = [
        "--tracking",
        "none",
        "--storage",
        "runs",
    ]  # Ray's workers have another working directory; relative paths still work
    done = antiphon("run", "demo", "--json", *where, *values, cwd=tmp_path)
    assert done.returncode == 2, done.stderr[-2000:]
    outcome = json.loads(done.stdout)
    assert outcome["status"] == "failed"
    assert "stranger" in outcome["error"]
    assert "stranger" in done.stderr.splitlines()[-1]
    assert Path(outcome["report"]).is_file()


@pytest.mark.slow
def test_a_run_joins_the_stack_that_cluster_up_started(home, tmp_path):
    env = {"HOME": str(tmp_path)}  # the stack's default folder is in the home folder
    up = antiphon("cluster", "up", "--no-mlflow", "--s3", "moto", "--cpus", "2", "--json", env=env)
    try:
        assert up.returncode == 0, up.stderr[-2000:]
        env |= json.loads(up.stdout)["environment"]  # what `eval "$(antiphon cluster up)"` sets
        make = "import boto3; boto3.client('s3').create_bucket(Bucket='joined')"
        subprocess.run([sys.executable, "-c", make], check=True, env={**os.environ, **env})
        values = settings([*SMALL, *TURNS, f"data.cache={home}/clips"])
        where = ["--address", "auto", "--storage", "s3://joined/runs", "--tracking", "none"]
        assert outcome_of(antiphon("run", "demo", "--json", *where, *values, env=env))["status"] == "done"
        workers = ["--workers", "4", "--set", "train.shards=4"]
        refused = antiphon("run", "demo", *where, *values, *workers, env=env)
        assert refused.returncode == 2
        assert "holds 2 of 1 CPU each at once; ask for fewer" in refused.stderr
    finally:
        down = antiphon("cluster", "down", env=env)
    assert down.returncode == 0, down.stderr


@pytest.mark.parametrize(
    ("mode", "which"),
    [
        (["--local"], signal.SIGTERM),
        (["--local"], signal.SIGINT),
        ([], signal.SIGTERM),
        pytest.param([], signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_sigterm_and_ctrl_c_save_a_checkpoint_and_say_how_to_resume(home, tmp_path, mode, which):
    long = ["schedule.burn_in=100000", f"data.cache={home}/clips", "train.checkpoint_every=100000"]
    long += ["train.loaders=1"] if mode else []  # on Ray it would be a second CPU
    command = [ANTIPHON, "run", "demo", *mode, "--json", "--tracking", "none", "--storage", f"{tmp_path}/cut"]
    process = subprocess.Popen(
        [*command, *settings([*SMALL, *long])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        event_log = wait_for_record(tmp_path / "cut", process)
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(which)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 75, err[-2000:]
    if mode:
        assert started, "a loader, and what starts it"
        assert psutil.wait_procs(started, timeout=60)[1] == [], "none is left behind"
    outcome = json.loads(out)
    assert outcome["status"] == "preempted"
    step, run_id = outcome["steps_run"], outcome["run_id"]
    assert "stopping: a checkpoint is saved first" in err
    assert f"preempted: saved at step {step}; repeat the command with --resume {run_id} to continue" in err
    saved = [record for record in read_event_log(event_log) if record["kind"] == "checkpoint"]
    assert saved[-1]["step"] == outcome["steps_run"] > 0
    assert (event_log.parent / "checkpoints" / saved[-1]["name"] / "COMMITTED.json").is_file()


SHELL = """
exec <"$0" >"$0" 2>&1              # the first terminal that a session's leader opens becomes the session's
trap 'trap : HUP; kill -HUP 0' HUP  # what an interactive shell does: all that a command has started hears of it
"$@" &
wait $!
wait $!
echo $? >code
"""


@pytest.mark.usefixtures("not_under_nohup")
@pytest.mark.parametrize("mode", [["--local"], pytest.param([], marks=pytest.mark.slow)])
def test_a_closed_terminal_saves_a_checkpoint(home, tmp_path, mode):
    """And what is printed afterwards, a table and how to resume, goes nowhere."""
    long = ["schedule.burn_in=100000", f"data.cache={home}/clips", "train.checkpoint_every=100000", "train.threads=1"]
    long += ["train.loaders=1"] if mode else []
    command = [ANTIPHON, "run", "demo", *mode, "--tracking", "none", "--storage", f"{tmp_path}/cut"]
    command += settings([*SMALL, *long])
    terminal, of_the_shell = os.openpty()
    words = ["sh", "-c", SHELL, os.ttyname(of_the_shell), *command]
    shell = subprocess.Popen(words, start_new_session=True, cwd=tmp_path)
    with killed_at_the_end(shell):
        with in_background(partial(read_until, terminal), name="terminal"):
            event_log = wait_for_record(tmp_path / "cut", shell)
        started = psutil.Process(shell.pid).children(recursive=True)
        os.close(of_the_shell)
        os.close(terminal)
        assert shell.wait(timeout=120) == 0
        assert psutil.wait_procs(started, timeout=60)[1] == [], "none is left behind"
    assert (tmp_path / "code").read_text() == "75\n"
    outcome = json.loads((event_log.parent / "outcome.json").read_text())
    assert (outcome["status"], outcome["error"]) == ("preempted", "")
    saved = [record for record in read_event_log(event_log) if record["kind"] == "checkpoint"]
    assert [record["step"] for record in saved] == [outcome["steps_run"]]
    assert outcome["steps_run"] > 0


def test_sigterm_ends_a_run_that_waits_for_a_tracking_server_that_does_not_answer(home, tmp_path):
    """A server that takes connections and is silent: nothing has begun, and the outcome says so."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracking = f"http://127.0.0.1:{silent.getsockname()[1]}"
        where = ["--tracking", tracking, "--storage", f"{tmp_path}/cut", "--run-id", "a"]
        words = [ANTIPHON, "run", "demo", "--local", "--json", *where]
        process = subprocess.Popen(
            [*words, *settings([*SMALL, f"data.cache={home}/clips"])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            connection, _ = silent.accept()  # from the replayer; closed, it would be an answer
            with connection:
                process.send_signal(signal.SIGTERM)
                out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 75, err[-2000:]
    outcome = json.loads(out)
    assert (outcome["status"], outcome["steps_run"]) == ("preempted", 0)
    assert outcome["error"] == "stopped before tracking had answered"
    assert json.loads((tmp_path / "cut" / "a" / "outcome.json").read_text()) == outcome


def read_until(terminal: int, ended: threading.Event) -> None:
    while not ended.is_set():
        if select.select([terminal], [], [], 0.1)[0]:
            os.read(terminal, 65536)


def wait_for_record(folder: Path, process, *, kind: str = "metrics") -> Path:
    """The run's event log, once it holds a record of this kind."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        for event_log in folder.glob("*/events.jsonl"):
            if any(record["kind"] == kind for record in read_event_log(event_log)):
                return event_log
        time.sleep(0.1)
    raise AssertionError("no such record within five minutes")
