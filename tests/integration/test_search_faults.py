"""Searches whose driver or node is lost: what was committed stays, nothing is done twice, nothing is missing."""

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
from tests.tiny_search import ANTIPHON, planned_settings, results, run
from workloads.runtime.opener import MARKER

pytestmark = pytest.mark.slow

QUIET = ("--search-id", "s", "--no-finals", "--tracking", "none")
AGAIN = ("--resume", "s", "--no-finals", "--tracking", "none")
LONG = ("schedule.burn_in=0", "schedule.turns=12")  # 24 steps, which three rungs cut into whole cycles
WAIT_S = 240.0
ROOT = os.geteuid() == 0


def until(happened: Callable[[], Any], search: subprocess.Popen[bytes] | None = None) -> Any:
    """Wait for it; what it gave. Fails if it takes too long, or if the search is over before."""
    deadline = time.monotonic() + WAIT_S
    while not (found := happened()):
        assert time.monotonic() < deadline
        assert search is None or search.poll() is None
        time.sleep(0.1)
    return found


Begin = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Start a command with a process group of its own; what is left of it ends with the test."""
    begun: list[subprocess.Popen[bytes]] = []

    def begin(words: list[str], log: Path, **options: Any) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            begun.append(subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True, **options))
        return begun[-1]

    yield begin
    for process in begun:
        if process.poll() is None:
            kill(process)


def marked(mark: str) -> list[str]:
    """The processes that were begun with this mark in their environment, by us or by who was begun so."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("ANTIPHON_TEST") == mark:
                found.append(process.name())
    return found


def sets(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to it and all it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_a_killed_search_goes_on_with_the_same_trials(
    searching: Any, begin: Begin, tmp_path: Path, searcher: str
) -> None:
    """Killed once a trial is done; every trial ends once, with its own settings."""
    home, more = tmp_path / "runs" / "s", sets(f"search.searcher={searcher}")
    search = begin(searching(*QUIET, "--slots", "1", *more), tmp_path / "log")
    until(lambda: results(home), search)
    kill(search)
    before = {path: path.read_bytes() for path in home.glob("trials/*/result.json")}
    assert 1 <= len(before) < 4, "killed in the middle"
    outcome = run(searching(*AGAIN, "--slots", "1", *more))
    assert outcome["trials"] == len(results(home)) == 4
    assert {path: path.read_bytes() for path in before} == before, "what was committed stays"
    if searcher == "random":
        settings = {name: found["settings"] for name, found in results(home).items()}
        assert settings == planned_settings(searching, tmp_path)


@pytest.mark.parametrize("reached", [1, 4])
def test_a_killed_population_goes_on_from_its_checkpoints(
    searching: Any, begin: Begin, tmp_path: Path, reached: int
) -> None:
    """Killed once so many trials have reached a rung: as many as before come to their end, each rung told once."""
    home, more = tmp_path / "runs" / "s", sets("search.searcher=pbt", "search.scheduler=none", *LONG)
    search = begin(searching(*QUIET, *more), tmp_path / "log")
    first = f"trials/*/checkpoints/step-00000008-*/{MARKER}"
    until(lambda: len(list(home.glob(first))) >= reached, search)
    kill(search)
    assert not results(home), "killed before any came to its end"
    kept = {path: path.stat().st_mtime_ns for path in home.glob(first)}
    outcome = run(searching(*AGAIN, *more))
    trials = results(home)
    assert outcome["trials"] == outcome["completed"] == len(trials) == 4
    assert all([rung["step"] for rung in found["history"]] == [8, 16, 24] for found in trials.values())
    if reached == 4:
        assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what all had learned is not learned again"


def test_a_trial_of_several_workers_goes_on_where_its_first_slice_is_learned(
    searching: Any, begin: Begin, tmp_path: Path
) -> None:
    """Killed while it learns on its second slice; on the first it is judged as before, and learns nothing again."""
    more = sets("search.rungs=1", "search.scheduler=none", "search.trials=1", "search.slices=2", "train.shards=2")
    words = ("--workers", "2", "--no-finals", "--tracking", "none", *more)
    home = tmp_path / "runs" / "s"
    search = begin(searching("--search-id", "s", *words), tmp_path / "log")
    until(lambda: (home / "trials" / "0000" / "slice-1" / "attempts" / "1").exists(), search)
    kill(search)
    assert not results(home)
    outcome = run(searching("--resume", "s", *words))
    assert outcome["completed"] == 1
    whole = run(searching("--search-id", "whole", *words))
    assert outcome["best"]["objective"] == pytest.approx(whole["best"]["objective"], abs=1e-4)


def test_a_member_that_fails_last_does_not_hold_up_the_population(tmp_path: Path) -> None:
    """One CPU, so that the others have waited at their first rung when it fails; Tune itself would wait for ever."""
    program = f"from tests.integration.test_search_faults import fail_last; fail_last({str(tmp_path)!r})"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=WAIT_S)
    assert done.stdout.split() == ["3", "3", "3"], done.stderr[-3000:]


def fail_last(folder: str) -> None:
    """Print the heights to which the members of a population climb that do not fail."""
    import ray
    from ray import tune

    from orchestrator.search.schedulers import Population

    def climb(config: dict[str, Any]) -> None:
        given = tune.get_checkpoint()
        height = int(Path(given.to_directory(), "height").read_text()) if given else 0
        if config["number"] == 3:
            raise RuntimeError("it always fails")
        while height < 3:
            height += 1
            kept = Path(tempfile.mkdtemp(dir=folder))
            (kept / "height").write_text(str(height))
            told = {"height": height, "objective": config["number"] + config["lr"]}
            tune.report(told, checkpoint=tune.Checkpoint.from_directory(kept))

    os.environ.setdefault("RAY_worker_niceness", "0")  # as in a search
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    population = Population(
        time_attr="height",
        metric="objective",
        mode="min",
        perturbation_interval=1,
        burn_in_period=1,
        synch=True,
        hyperparam_mutations={"lr": tune.uniform(0.0, 0.1)},
    )
    found = tune.Tuner(
        climb,
        param_space={"number": tune.grid_search([0, 1, 2, 3]), "lr": 0.05},
        tune_config=tune.TuneConfig(scheduler=population),
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    ).fit()
    ray.shutdown()
    print(*(result.metrics["height"] for result in found if result.error is None))


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_search_keeps_what_is_committed_and_says_how_to_go_on(
    searching: Any, begin: Begin, tmp_path: Path, which: signal.Signals
) -> None:
    """No finals, no outcome: 75, as a run that was preempted; the same command goes on."""
    home, log = tmp_path / "runs" / "s", tmp_path / "log"
    words = searching("--search-id", "s", "--slots", "1", *sets("search.scheduler=none"))
    search = begin(words, log)
    until(lambda: results(home), search)
    search.send_signal(which)
    assert search.wait(WAIT_S) == 75, log.read_text()[-3000:]
    assert "repeat the command with --resume s" in log.read_text()
    before = results(home)
    assert len(before) < 4
    assert not results(home, "finals")
    assert not (home / "outcome.json").exists()
    cut = [json.loads(line) for line in (home / "events.jsonl").read_text().splitlines()]
    children = {record["child"] for record in cut if "child" in record}
    assert {record["child"] for record in cut if record["kind"] == "closed"} == children, "nobody is left running"
    words[words.index("--search-id")] = "--resume"
    outcome = run(words)
    assert outcome["completed"] == 4
    assert outcome["comparison"] is not None
    assert {name: results(home)[name] for name in before} == before


@pytest.mark.parametrize(("which", "there"), [(signal.SIGINT, "search.json"), (signal.SIGTERM, "cluster.json")])
def test_an_interruption_before_the_first_trial_leaves_a_search_to_go_on_with(
    searching: Any, begin: Begin, tmp_path: Path, which: signal.Signals, there: str
) -> None:
    """While Ray starts, or once it has, with a handler of its own for SIGTERM."""
    home, log = tmp_path / "runs" / "s", tmp_path / "log"
    search = begin(searching(*QUIET), log, env={**os.environ, "ANTIPHON_TEST": str(tmp_path)})
    until((home / there).exists, search)
    search.send_signal(which)
    assert search.wait(WAIT_S) == 75, log.read_text()[-3000:]
    assert "repeat the command with --resume s" in log.read_text()
    assert not list(home.glob("trials/*/result.json"))
    assert not (home / "outcome.json").exists()
    until(lambda: not marked(str(tmp_path)))
    assert run(searching(*AGAIN))["trials"] == 4


def test_a_population_lives_on_an_object_store(
    searching: Any, s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints, pointers to them, results, page: everything is at s3://, and is read from there."""
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    s3_server.client().create_bucket(Bucket="searches")
    more = sets("search.searcher=pbt", "search.scheduler=none", *LONG)
    outcome = run(searching(*QUIET, "--storage", "s3://searches/x", *more))
    search = read_search("s3://searches/x/s")
    assert outcome["completed"] == len(search.ranked) == 4
    assert all([rung.step for rung in trial.history] == [8, 16, 24] for trial in search.trials)
    assert outcome["best"]["objective"] == search.ranked[0].objective
    assert not list(tmp_path.glob("**/checkpoints")), "nothing but the spool and the page is kept here"
    done = subprocess.run([ANTIPHON, "report", "s3://searches/x/s", "--out", "page.html"], capture_output=True)
    assert done.returncode == 0
    assert (tmp_path / "page.html").stat().st_size > 1_000_000


def turn_away(endpoint: str) -> None:
    """Listen where the store was, and hang up on whoever asks, until it was more than a heartbeat."""
    place = urlsplit(endpoint)
    with socket.create_server((str(place.hostname), int(place.port or 80))) as listening:
        listening.settimeout(WAIT_S)
        asked = b"/attempts/"
        while b"/attempts/" in asked:
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(WAIT_S)
                asked = connection.recv(4096).split(b"\r\n")[0]


def test_a_population_outlives_its_store_being_away(
    searching: Any, begin: Begin, rgw_server: Any, kill_server: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """All of Ceph is killed once a member has reached a rung: driver, members and Tune wait until it is there again."""
    client, log = rgw_server.client(), tmp_path / "log"
    client.create_bucket(Bucket="away")
    more = sets("search.searcher=pbt", "search.scheduler=none", *LONG)
    words = searching(*QUIET, "--storage", "s3://away/x", *more)

    def reached() -> bool:
        found = client.list_objects_v2(Bucket="away", Prefix="x/s/trials/").get("Contents", [])
        return any("/checkpoints/step-00000008" in entry["Key"] and MARKER in entry["Key"] for entry in found)

    search = begin([*words, "--json"], log, cwd=tmp_path, env={**os.environ, **rgw_server.env})
    until(reached, search)
    kill_server()
    turn_away(rgw_server.endpoint)
    start_server(rgw_server)
    assert search.wait(WAIT_S) == 0, log.read_text()[-3000:]
    outcome = json.loads(log.read_text().splitlines()[-1])
    assert (outcome["completed"], outcome["failed"]) == (4, 0)
    for name, value in rgw_server.env.items():
        monkeypatch.setenv(name, value)
    trials = read_search("s3://away/x/s").trials
    assert all([rung.step for rung in trial.history] == [8, 16, 24] for trial in trials)


@pytest.fixture
def two_nodes(begin: Begin, tmp_path: Path) -> Iterator[tuple[str, dict[str, str], subprocess.Popen[bytes]]]:
    """A Ray of two nodes with one CPU each: its address, what a client's environment needs, the second node.

    Where we may, that node sees an empty folder at `elsewhere`, as another machine would.
    """
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    alone = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {elsewhere} && exec "$0" "$@"'] if ROOT else []
    up = stack.up(tmp_path / "stack", cpus=1, mlflow=False)
    (head,) = up.services
    env = {**os.environ, **head.client_env}
    ray = str(Path(sys.executable).with_name("ray"))
    node = begin(
        [*alone, ray, "start", f"--address={head.address}", "--num-cpus=1", "--block"], tmp_path / "node.log", env=env
    )
    try:
        ask = f"import ray; ray.init({head.address!r}, logging_level='ERROR'); print(ray.cluster_resources()['CPU'])"

        def joined() -> bool:
            told = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True)
            return told.stdout.strip().endswith("2.0")

        until(joined, node)
        yield head.address, env, node
    finally:
        if node.poll() is None:
            kill(node)
        stack.down(tmp_path / "stack")


@pytest.mark.skipif(not ROOT, reason="only root can give a node a file system of its own")
def test_a_storage_that_one_node_does_not_see_is_refused(searching: Any, tmp_path: Path, two_nodes: Any) -> None:
    address, env, _ = two_nodes
    words = searching(*QUIET, "--address", address, "--storage", str(tmp_path / "elsewhere" / "runs"))
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "--storage: 1 of 2 nodes do not see" in done.stderr
    assert not list((tmp_path / "elsewhere").glob("**/settings.json")), "no trial began"


def test_a_node_that_is_lost_takes_no_trial_along(searching: Any, begin: Begin, tmp_path: Path, two_nodes: Any) -> None:
    """A trial learns on the second node when that is killed: it is done again on the other one."""
    address, env, node = two_nodes
    home, more = tmp_path / "runs" / "s", sets("search.scheduler=none", "schedule.turns=60", "search.rungs=1")

    def learning_there() -> list[psutil.Process]:
        below = psutil.Process(node.pid).children(recursive=True)
        return [process for process in below if process.cmdline()[:1] and "train" in process.cmdline()[0]]

    search = begin(searching(*QUIET, "--slots", "2", "--address", address, *more), tmp_path / "log", env=env)
    until(lambda: len(list(home.glob("trials/*/settings.json"))) == 2 and learning_there(), search)
    assert not results(home)
    kill(node)
    assert search.wait(WAIT_S) == 0, (tmp_path / "log").read_text()[-3000:]
    trials = results(home)
    assert [found["status"] for found in trials.values()] == ["done"] * 4
    assert {name: found["settings"] for name, found in trials.items()} == planned_settings(searching, tmp_path)
