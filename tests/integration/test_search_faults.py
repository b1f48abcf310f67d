"""Searches whose driver, node or store is lost: what was committed stays, nothing is run twice, nothing is missing."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from cluster import stack
from orchestrator.reports.search.snapshot import read_search
from tests.servers import start_server
from tests.tiny_search import ANTIPHON, expected_settings, results, run, sets
from workloads.runtime.checkpoint_store import MARKER

pytestmark = pytest.mark.slow

NEW = ("--search-id", "s", "--no-finals", "--tracking", "none")
RESUMED = ("--resume", "s", "--no-finals", "--tracking", "none")
LONG = ("schedule.burn_in=0", "schedule.turns=12")  # 24 steps, three rungs of whole cycles
WAIT_S = 240.0
ROOT = os.geteuid() == 0


def until(condition: Callable[[], Any], search: subprocess.Popen[bytes] | None = None) -> Any:
    """Wait for a condition, return its value. Fails if it takes too long, or if the search ends before."""
    deadline = time.monotonic() + WAIT_S
    while not (value := condition()):
        assert time.monotonic() < deadline
        assert search is None or search.poll() is None
        time.sleep(0.1)
    return value


Begin = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Starts a command in its own process group; processes that are still running are killed at the end of the test."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(words: list[str], log: Path, **options: Any) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            started.append(subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True, **options))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            kill(process)


def marked(mark: str) -> list[str]:
    """The processes that were started with this mark in their environment, by this test or by such a process."""
    names = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("ANTIPHON_TEST") == mark:
                names.append(process.name())
    return names


def kill(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to the process group of a process, and wait for the process."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_a_killed_search_resumes_with_the_same_trials(
    searching: Any, begin: Begin, tmp_path: Path, searcher: str
) -> None:
    """Killed once a trial is done; every trial ends once, with its own settings."""
    folder, more = tmp_path / "runs" / "s", sets(f"search.searcher={searcher}")
    search = begin(searching(*NEW, "--slots", "1", *more), tmp_path / "log")
    until(lambda: results(folder), search)
    kill(search)
    before = {path: path.read_bytes() for path in folder.glob("trials/*/result.json")}
    assert 1 <= len(before) < 4, "killed in the middle"
    outcome = run(searching(*RESUMED, "--slots", "1", *more))
    assert outcome["trials"] == len(results(folder)) == 4
    assert {path: path.read_bytes() for path in before} == before, "what was committed stays"
    if searcher == "random":
        settings = {name: result["settings"] for name, result in results(folder).items()}
        assert settings == expected_settings(searching, tmp_path)


@pytest.mark.parametrize("reached", [1, 4])
def test_a_killed_population_resumes_from_its_checkpoints(
    searching: Any, begin: Begin, tmp_path: Path, reached: int
) -> None:
    """Killed once `reached` trials are at their first rung: all of them finish, with each rung once."""
    folder, more = tmp_path / "runs" / "s", sets("search.searcher=pbt", "search.scheduler=none", *LONG)
    search = begin(searching(*NEW, *more), tmp_path / "log")
    first = f"trials/*/checkpoints/step-00000008-*/{MARKER}"
    until(lambda: len(list(folder.glob(first))) >= reached, search)
    kill(search)
    assert not results(folder), "killed before any finished"
    committed = {path: path.stat().st_mtime_ns for path in folder.glob(first)}
    outcome = run(searching(*RESUMED, *more))
    trials = results(folder)
    assert outcome["trials"] == outcome["completed"] == len(trials) == 4
    assert all([rung["step"] for rung in result["history"]] == [8, 16, 24] for result in trials.values())
    if reached == 4:
        assert {path: path.stat().st_mtime_ns for path in committed} == committed, (
            "the rung that all had is not run again"
        )


def test_a_trial_of_several_workers_resumes_after_its_first_slice(searching: Any, begin: Begin, tmp_path: Path) -> None:
    """Killed while it trains on its second slice; the first one is judged as before, and not trained again."""
    more = sets("search.rungs=1", "search.scheduler=none", "search.trials=1", "search.slices=2", "train.shards=2")
    words = ("--workers", "2", "--no-finals", "--tracking", "none", *more)
    folder = tmp_path / "runs" / "s"
    search = begin(searching("--search-id", "s", *words), tmp_path / "log")
    until(lambda: (folder / "trials" / "0000" / "slice-1" / "attempts" / "1").exists(), search)
    kill(search)
    assert not results(folder)
    outcome = run(searching("--resume", "s", *words))
    assert outcome["completed"] == 1
    uninterrupted = run(searching("--search-id", "whole", *words))
    assert outcome["best"]["objective"] == pytest.approx(uninterrupted["best"]["objective"], abs=1e-4)


@pytest.mark.parametrize(("searcher", "slots"), [("random", ("--slots", "1")), ("pbt", ())])
def test_a_trial_whose_process_dies_as_it_is_handed_to_it_is_run_again(
    searching: Any, tmp_path: Path, searcher: str, slots: tuple[str, ...]
) -> None:
    """There are more trials than slots, so that their processes are handed others, which Tune would not start again."""
    more = sets(f"search.searcher={searcher}", "search.scheduler=none", *LONG)
    command = searching(*NEW, *slots, *more)
    program = f"from tests.integration.test_search_faults import kill_at_hand_over; kill_at_hand_over({command[1:]!r})"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "its process was lost; it is started again" in done.stderr
    trials = results(tmp_path / "runs" / "s")
    assert [result["status"] for result in trials.values()] == ["done"] * 4
    assert all([rung["step"] for rung in result["history"]] == [8, 16, 24] for result in trials.values())
    if searcher == "random":
        settings = {name: result["settings"] for name, result in trials.items()}
        assert settings == expected_settings(searching, tmp_path)


def kill_at_hand_over(command: list[str]) -> None:
    """The command line, in which the first process that is handed another trial has just been killed."""
    from orchestrator.cli.app import app
    from orchestrator.training.ray_cluster import prepare_environment

    prepare_environment("")  # before Ray is imported
    from ray.tune.execution.tune_controller import TuneController

    hand_over, killed = TuneController._schedule_trial_reset, []

    def hand_over_to_the_dead(controller: Any, trial: Any, *rest: Any) -> None:
        if not killed:
            killed.extend(kill_trials())
        hand_over(controller, trial, *rest)

    TuneController._schedule_trial_reset = hand_over_to_the_dead  # type: ignore[method-assign]
    app(command)


def kill_trials() -> list[int]:
    """Kill the processes of trials that this one's Ray has started; returns their ids."""
    own = psutil.Process().children(recursive=True)
    trials = [process for process in own if process.name().startswith("ray::ImplicitFunc")]
    for process in trials:
        process.kill()
    psutil.wait_procs(trials)
    return [process.pid for process in trials]


def test_a_member_that_fails_last_does_not_block_the_population(tmp_path: Path) -> None:
    """One CPU, so that the others have waited at their first rung when it fails; Tune itself would wait for ever."""
    program = f"from tests.integration.test_search_faults import fail_last; fail_last({str(tmp_path)!r})"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=WAIT_S)
    assert done.stdout.split() == ["3", "3", "3"], done.stderr[-3000:]


def fail_last(folder: str) -> None:
    """Print the last rungs of those members of a population that do not fail."""
    import ray
    from ray import tune

    from orchestrator.search.schedulers import PopulationBasedTrainingWithoutDeadlock

    def train(config: dict[str, Any]) -> None:
        checkpoint = tune.get_checkpoint()
        rung = int(Path(checkpoint.to_directory(), "rung").read_text()) if checkpoint else 0
        if config["number"] == 3:
            raise RuntimeError("it always fails")
        while rung < 3:
            rung += 1
            saved = Path(tempfile.mkdtemp(dir=folder))
            (saved / "rung").write_text(str(rung))
            metrics = {"rung_number": rung, "objective": config["number"] + config["lr"]}
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(saved))

    os.environ.setdefault("RAY_worker_niceness", "0")  # both as in a search
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    population = PopulationBasedTrainingWithoutDeadlock(
        time_attr="rung_number",
        metric="objective",
        mode="min",
        perturbation_interval=1,
        burn_in_period=1,
        synch=True,
        hyperparam_mutations={"lr": tune.uniform(0.0, 0.1)},
    )
    results = tune.Tuner(
        train,
        param_space={"number": tune.grid_search([0, 1, 2, 3]), "lr": 0.05},
        tune_config=tune.TuneConfig(scheduler=population),
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    ).fit()
    ray.shutdown()
    print(*(result.metrics["rung_number"] for result in results if result.error is None))


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_search_keeps_what_is_committed_and_prints_how_to_resume(
    searching: Any, begin: Begin, tmp_path: Path, which: signal.Signals
) -> None:
    """No finals, no outcome: exit code 75, as a run that was preempted; the same command resumes it."""
    folder, log = tmp_path / "runs" / "s", tmp_path / "log"
    words = searching("--search-id", "s", "--slots", "1", *sets("search.scheduler=none"))
    search = begin(words, log)
    until(lambda: results(folder), search)
    search.send_signal(which)
    assert search.wait(WAIT_S) == 75, log.read_text()[-3000:]
    assert "repeat the command with --resume s" in log.read_text()
    before = results(folder)
    assert len(before) < 4
    assert not results(folder, "finals")
    assert not (folder / "outcome.json").exists()
    records = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    children = {record["child"] for record in records if "child" in record}
    closed = {record["child"] for record in records if record["kind"] == "closed"}
    assert closed == children, "no child is left running"
    words[words.index("--search-id")] = "--resume"
    outcome = run(words)
    assert outcome["completed"] == 4
    assert outcome["comparison"] is not None
    assert {name: results(folder)[name] for name in before} == before


@pytest.mark.parametrize(("which", "there"), [(signal.SIGINT, "search.json"), (signal.SIGTERM, "cluster.json")])
def test_a_search_interrupted_before_its_first_trial_can_be_resumed(
    searching: Any, begin: Begin, tmp_path: Path, which: signal.Signals, there: str
) -> None:
    """While Ray starts, or once it has set its own handler for SIGTERM."""
    folder, log = tmp_path / "runs" / "s", tmp_path / "log"
    search = begin(searching(*NEW), log, env={**os.environ, "ANTIPHON_TEST": str(tmp_path)})
    until((folder / there).exists, search)
    search.send_signal(which)
    assert search.wait(WAIT_S) == 75, log.read_text()[-3000:]
    assert "repeat the command with --resume s" in log.read_text()
    assert not list(folder.glob("trials/*/result.json"))
    assert not (folder / "outcome.json").exists()
    until(lambda: not marked(str(tmp_path)))
    assert run(searching(*RESUMED))["trials"] == 4


def test_a_population_is_stored_on_an_object_store(
    searching: Any, s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints, pointers to them, results, page: everything is written to s3:// and read from there."""
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    s3_server.client().create_bucket(Bucket="searches")
    more = sets("search.searcher=pbt", "search.scheduler=none", *LONG)
    outcome = run(searching(*NEW, "--storage", "s3://searches/x", *more))
    search = read_search("s3://searches/x/s")
    assert outcome["completed"] == len(search.ranked) == 4
    assert all([rung.step for rung in trial.history] == [8, 16, 24] for trial in search.trials)
    assert outcome["best"]["objective"] == search.ranked[0].objective
    assert not list(tmp_path.glob("**/checkpoints")), "only the event log and the page are local"
    done = subprocess.run([ANTIPHON, "report", "s3://searches/x/s", "--out", "page.html"], capture_output=True)
    assert done.returncode == 0
    page = (tmp_path / "page.html").read_text()
    assert all(f"trial {trial.number}" in page for trial in search.trials)


def refuse_one_request(endpoint: str) -> None:
    """Listen at the store's address and close every connection, until a request other than a heartbeat was refused."""
    address = urlsplit(endpoint)
    with socket.create_server((str(address.hostname), int(address.port or 80))) as listening:
        listening.settimeout(WAIT_S)
        request = b"/attempts/"
        while b"/attempts/" in request:
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(WAIT_S)
                request = connection.recv(4096).split(b"\r\n")[0]


def test_a_population_waits_for_an_unavailable_store(
    searching: Any, begin: Begin, rgw_server: Any, kill_server: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """All of Ceph is killed once a member has reached a rung: driver, members and Tune wait until it is restarted."""
    client, log = rgw_server.client(), tmp_path / "log"
    client.create_bucket(Bucket="searches")
    # Not where another test's search has the same id: the local event log of a storage on S3 lies under its URI.
    more = sets("search.searcher=pbt", "search.scheduler=none", *LONG)
    words = searching(*NEW, "--storage", "s3://searches/waits", *more)

    def reached() -> bool:
        entries = client.list_objects_v2(Bucket="searches", Prefix="waits/s/trials/").get("Contents", [])
        return any("/checkpoints/step-00000008" in entry["Key"] and MARKER in entry["Key"] for entry in entries)

    search = begin([*words, "--json"], log, cwd=tmp_path, env={**os.environ, **rgw_server.env})
    until(reached, search)
    kill_server()
    refuse_one_request(rgw_server.endpoint)
    start_server(rgw_server)
    assert search.wait(WAIT_S) == 0, log.read_text()[-3000:]
    outcome = json.loads(log.read_text().splitlines()[-1])
    assert (outcome["completed"], outcome["failed"]) == (4, 0)
    for name, value in rgw_server.env.items():
        monkeypatch.setenv(name, value)
    trials = read_search("s3://searches/waits/s").trials
    assert all([rung.step for rung in trial.history] == [8, 16, 24] for trial in trials)


@pytest.fixture
def two_nodes(begin: Begin, tmp_path: Path) -> Iterator[tuple[str, dict[str, str], subprocess.Popen[bytes]]]:
    """A Ray of two nodes with one CPU each: its address, what a client's environment needs, the second node.

    As root, that node sees an empty folder at `elsewhere`, as another machine would.
    """
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    unshared = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {elsewhere} && exec "$0" "$@"'] if ROOT else []
    up = stack.up(tmp_path / "stack", cpus=1, mlflow=False)
    (head,) = up.services
    env = {**os.environ, **head.client_env}
    ray = str(Path(sys.executable).with_name("ray"))
    node = begin(
        [*unshared, ray, "start", f"--address={head.address}", "--num-cpus=1", "--block"],
        tmp_path / "node.log",
        env=env,
    )
    try:
        program = (
            f"import ray; ray.init({head.address!r}, logging_level='ERROR'); print(ray.cluster_resources()['CPU'])"
        )

        def joined() -> bool:
            done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
            return done.stdout.strip().endswith("2.0")

        until(joined, node)
        yield head.address, env, node
    finally:
        if node.poll() is None:
            kill(node)
        stack.down(tmp_path / "stack")


@pytest.mark.skipif(not ROOT, reason="only root can give a node another view of the file system")
def test_a_storage_that_one_node_does_not_see_is_refused(searching: Any, tmp_path: Path, two_nodes: Any) -> None:
    address, env, _ = two_nodes
    words = searching(*NEW, "--address", address, "--storage", str(tmp_path / "elsewhere" / "runs"))
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "--storage: 1 of 2 nodes do not see" in done.stderr
    assert not list((tmp_path / "elsewhere").glob("**/settings.json")), "no trial was started"


def test_a_trial_on_a_lost_node_is_run_again(searching: Any, begin: Begin, tmp_path: Path, two_nodes: Any) -> None:
    """The second node is killed while a trial trains there: it is run again on the other one."""
    address, env, node = two_nodes
    folder, more = tmp_path / "runs" / "s", sets("search.scheduler=none", "schedule.turns=60", "search.rungs=1")

    def training_there() -> list[psutil.Process]:
        below = psutil.Process(node.pid).children(recursive=True)
        return [process for process in below if process.cmdline()[:1] and "train" in process.cmdline()[0]]

    search = begin(searching(*NEW, "--slots", "2", "--address", address, *more), tmp_path / "log", env=env)
    until(lambda: len(list(folder.glob("trials/*/settings.json"))) == 2 and training_there(), search)
    assert not results(folder)
    kill(node)
    assert search.wait(WAIT_S) == 0, (tmp_path / "log").read_text()[-3000:]
    trials = results(folder)
    assert [result["status"] for result in trials.values()] == ["done"] * 4
    assert {name: result["settings"] for name, result in trials.items()} == expected_settings(searching, tmp_path)
