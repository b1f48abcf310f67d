"""What is there after a pod has ended as Kubernetes ends it: asked to stop, and killed 30 seconds later."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import killed
from tests.faults import recovery
from tests.integration.test_nodes import arguments, weights
from tests.integration.test_run_ended import wait_for_record
from tests.nodes import Node, RayNodes, ray_nodes
from tests.processes import killed_at_the_end
from tests.proxy import Proxy
from tests.s3_user import S3User, command, through, wait_for
from tests.servers import MlflowServer
from tests.tiny_search import ANTIPHON, sets
from workloads.runtime.checkpoint_store import MARKER
from workloads.runtime.event_log import read_event_log

pytestmark = pytest.mark.faults
GRACE_S = 30
JOB = (sys.executable, "-m", "orchestrator.cli.app")  # how a job runs a command
LONG = sets("schedule.burn_in=600", "train.checkpoint_every=100000", "train.log_every=5", "train.eval_every=300")


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[MlflowServer]:
    (tmp_path / "mlflow").mkdir()
    server = MlflowServer(tmp_path / "mlflow", f"sqlite:///{tmp_path}/mlflow.db", None)
    try:
        yield server
    finally:
        server.signal(signal.SIGCONT)
        server.stop()


def programs(process: subprocess.Popen[Any]) -> list[str]:
    """The command lines of the processes that a process has started."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):
            found.append(" ".join(child.cmdline()))
    return found


def exit_code_within_grace(process: subprocess.Popen[Any]) -> int | None:
    """The exit code after SIGTERM; None where it has to be killed."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        return process.wait(GRACE_S)
    return None


def outcome_on_s3(user: S3User) -> dict[str, Any]:
    return json.loads(user.server.client().get_object(Bucket=user.bucket, Key="runs/r/outcome.json")["Body"].read())


def num_metrics(user: S3User) -> int:
    records = read_event_log(user.event_log) if user.event_log.exists() else []
    return len([record for record in records if record["kind"] == "metrics"])


def mlflow_status(server: MlflowServer) -> str:
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("antiphon")
    (run,) = client.search_runs([experiment.experiment_id])
    return str(run.info.status)


def test_a_driver_saves_with_a_slow_store_and_a_tracking_server_that_hangs(
    user: S3User, proxy: Proxy, mlflow: MlflowServer, fault_table: Any
) -> None:
    """First the checkpoint, then the outcome; MLflow gets its records when the run goes on."""
    run = user.start_on_ray(*LONG, env=through(proxy), tracking=mlflow.uri)
    wait_for(lambda: num_metrics(user) >= 4, run)
    with killed_at_the_end(run):
        proxy.delay_s = 0.3
        mlflow.signal(signal.SIGSTOP)
        asked_at = time.time()
        code = exit_code_within_grace(run)
        seconds = time.time() - asked_at
    assert code == 75, user.stderr[-3000:]
    records = read_event_log(user.event_log)
    assert [record["kind"] for record in records if record["kind"] in ("checkpoint", "closed", "end")] == [
        "checkpoint",
        "closed",
        "end",
    ]
    (name,) = [name for name, files in user.checkpoints().items() if MARKER in files]
    user.check_intact(name)
    outcome = outcome_on_s3(user)
    assert (outcome["status"], outcome["error"]) == ("preempted", "")
    assert f"step-{outcome['steps_run']:08d}-" in name
    client = user.server.client()
    times = [
        client.head_object(Bucket=user.bucket, Key=f"runs/r/{key}")["LastModified"]
        for key in (f"checkpoints/{name}/{MARKER}", "outcome.json")
    ]
    assert times == sorted(times)
    mlflow.signal(signal.SIGCONT)
    assert mlflow_status(mlflow) == "RUNNING", "nothing has reached it since"

    again = user.start_on_ray("--resume", "r", *LONG, tracking=mlflow.uri)
    assert again.wait() == 0, user.stderr[-3000:]
    assert user.outcome["resumed_from_step"] == outcome["steps_run"]
    assert mlflow_status(mlflow) == "FINISHED"
    where = ["--local", "--storage", str(user.home / "alone"), "--run-id", "r"]
    assert killed.antiphon([*command(user.cache), *LONG, *where], user.home / "alone.out") == 0
    undisturbed = killed.outcome(user.home / "alone.out")["models"]
    assert {name: row["weights_sha256"] for name, row in user.outcome["models"].items()} == {
        name: row["weights_sha256"] for name, row in undisturbed.items()
    }
    fault_table(
        fault="Ray, on S3: SIGTERM to the driver with every answer 0.3 s late and MLflow hung; SIGKILL after 30 s",
        seen=f"exit 75 after {seconds:.0f} s: checkpoint, then outcome; MLflow gets the rest when the run goes on",
        repeated=0,
        equal=True,
    )


def test_a_driver_whose_workers_have_not_begun_leaves_an_outcome(user: S3User, fault_table: Any) -> None:
    run = user.start_on_ray(*LONG)
    with killed_at_the_end(run):
        wait_for(lambda: any("TrainController" in program for program in programs(run)), run)
        code = exit_code_within_grace(run)
    assert code == 75, user.stderr[-3000:]
    assert outcome_on_s3(user)["status"] == "preempted"
    assert user.checkpoints() == {}
    fault_table(
        fault="Ray, on S3: SIGTERM to the driver before its workers have begun; SIGKILL after 30 s",
        seen="exit 75, with an outcome",
    )


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with ray_nodes(2, 2, 2) as cluster:
        yield cluster


def end_pod(cluster: RayNodes, node: Node) -> subprocess.CompletedProcess[str]:
    """The hook of a rendered pod, then SIGKILL for all that is left of it; the hook says what it has asked for."""
    words = cluster.command(node, ANTIPHON, "cluster", "leave", "--seconds", "25")
    try:
        return subprocess.run(words, env=cluster.env, capture_output=True, text=True, timeout=GRACE_S)
    finally:
        node.kill()


def test_a_worker_s_pod_ends_and_a_driver_s(nodes: RayNodes, tmp_path: Path, fault_table: Any) -> None:
    """The worker moves to another node, no step is repeated; then the driver's own pod ends: it saves and goes on."""
    head = nodes.ids()[nodes.head.address]
    elsewhere = ["--set", f'resources.labels={{"ray.io/node-id"="!{head}"}}', "--set", "resources.cpus=2"]
    values = [*sets("schedule.burn_in=800", "train.checkpoint_every=100000", "train.eval_every=400"), *elsewhere]
    given = arguments(tmp_path, *values, "--address", nodes.address, "--run-id", "a", "--resume", "auto")
    words = nodes.command(nodes.head, *JOB, *given)
    event_log = tmp_path / "runs" / "a" / "events.jsonl"
    process = subprocess.Popen(words, env=nodes.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with killed_at_the_end(process):
        wait_for_record(tmp_path / "runs", process, kind="metrics")
        (left,) = [node for node in nodes.nodes if any("RayTrainWorker" in name for name in nodes.programs(node))]
        hook = end_pod(nodes, left)
        assert hook.returncode == 0, hook.stderr
        assert "workers are asked to move to other nodes: 1\n" in hook.stderr
        wait_for_steps_after_restart(event_log, process)
        times = recovery(event_log)
        hook = end_pod(nodes, nodes.head)
        assert hook.returncode == 0, hook.stderr
        assert "is asked to save and stop" in hook.stderr
        _, err = process.communicate()
    assert process.returncode == 75, err[-3000:]
    records = read_event_log(event_log)
    (leaving,) = [record for record in records if record["kind"] == "leaving"]
    first, second = [record for record in records if record["kind"] == "start"]
    assert 0 == first["step"] < leaving["step"] == second["step"]
    outcome = json.loads((tmp_path / "runs" / "a" / "outcome.json").read_text())
    saved = [record for record in records if record["kind"] == "checkpoint"][-1]
    assert (outcome["status"], outcome["resumed_from_step"] + outcome["steps_run"]) == ("preempted", saved["step"])
    assert (event_log.parent / "checkpoints" / saved["name"] / MARKER).is_file()
    local = [ANTIPHON, *arguments(tmp_path, *values, "--local")]
    again = subprocess.run([*local, "--run-id", "a", "--resume", "auto"], capture_output=True, text=True)
    alone = subprocess.run([*local, "--run-id", "b"], capture_output=True, text=True)
    assert weights(again) == weights(alone)
    seen = "nothing; the workers save and start again on another node"
    fault_table(fault="Ray: a worker's pod ends (the hook, then SIGKILL)", seen=seen, **times, equal=True)
    seen = "exit 75: saved; the same command goes on"
    fault_table(
        fault="Ray: the pod of head and driver ends (the hook, then SIGKILL)", seen=seen, repeated=0, equal=True
    )


TASK = """
import ray, sys, time
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
ray.init(address=sys.argv[1], log_to_driver=False)
@ray.remote(scheduling_strategy=NodeAffinitySchedulingStrategy(sys.argv[2], soft=False))
class Trial:
    def train(self):
        return "begun"
trial = Trial.remote()
print(ray.get(trial.train.remote()), flush=True)
sys.stdin.readline()
print(*ray._private.state.state.get_draining_nodes(), flush=True)
sys.stdin.readline()
"""


def test_a_node_with_an_actor_that_is_no_worker_of_a_run_is_announced_too(fault_table: Any) -> None:
    """A search's trial, a study's run, a task of `teach`: Ray gives the node nothing more, and nobody is waited for."""
    with ray_nodes(2, 2) as cluster:
        (other,) = [node for node in cluster.nodes if node is not cluster.head]
        node_id = cluster.ids()[other.address]
        words = cluster.command(cluster.head, sys.executable, "-c", TASK, cluster.address, node_id)
        process = subprocess.Popen(words, env=cluster.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with process, killed_at_the_end(process):
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            hook = cluster.command(other, ANTIPHON, "cluster", "leave", "--seconds", "25")
            done = subprocess.run(hook, env=cluster.env, capture_output=True, text=True, timeout=GRACE_S)
            assert done.returncode == 0, done.stderr
            assert "workers are asked to move to other nodes: 1\n" in done.stderr
            print(file=process.stdin, flush=True)
            assert process.stdout.readline().split() == [node_id]
            process.stdin.close()
    fault_table(
        fault="Ray: the pod of a trial, a study's run or a task of `teach` ends (the hook)",
        seen="the node gets nothing more; it is not waited for",
    )


def wait_for_steps_after_restart(event_log: Path, process: subprocess.Popen[str]) -> None:
    """Return once the workers have started for the second time, and recorded a step."""
    deadline = time.monotonic() + 300
    while True:
        kinds = [record["kind"] for record in read_event_log(event_log) if record["kind"] in ("start", "metrics")]
        if kinds.count("start") == 2 and kinds[-1] == "metrics":
            return
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
