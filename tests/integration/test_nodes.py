"""Runs on Ray nodes that have a network between them: `tests/nodes.py`."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.test_run_ended import wait_for_record
from tests.nodes import RayNodes, ray_nodes
from tests.small import SIZES, TWO_MODELS
from tests.tiny_search import ANTIPHON, PLAN, sets
from workloads.runtime.event_log import read_event_log

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with ray_nodes(2, 2) as cluster:
        yield cluster


def arguments(tmp_path: Path, *options: str) -> list[str]:
    """Those of `antiphon` for a run of the demo with tiny models."""
    values = sets(*SIZES, *TWO_MODELS, *PLAN, "train.shards=2", f"data.cache={tmp_path}/clips")
    where = ["--storage", f"{tmp_path}/runs", "--tracking", "none"]
    return ["run", "demo", "--json", *where, *values, *options]


def command(nodes: RayNodes, tmp_path: Path, *options: str) -> list[str]:
    """That run, on the head."""
    return nodes.command(nodes.head, ANTIPHON, *arguments(tmp_path, *options))


def run(nodes: RayNodes, tmp_path: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    words = command(nodes, tmp_path, *options)
    return subprocess.run(words, env={**nodes.env, **env}, capture_output=True, text=True)


def weights(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: model["weights_sha256"] for name, model in json.loads(done.stdout)["models"].items()}


def test_workers_on_two_nodes_whose_name_means_127_0_0_1_learn_what_one_worker_does(nodes, tmp_path):
    """Left to itself gloo takes the interface of the host's name: `connectFullMesh ... remote=[127.0.0.1]`."""
    apart = run(nodes, tmp_path, "--workers", "2", "--set", "resources.cpus=2", RAY_ADDRESS=nodes.address)
    alone = run(nodes, tmp_path, "--local")
    assert weights(apart) == weights(alone)


def test_a_node_that_does_not_see_the_storage_is_named_before_training_starts(nodes, tmp_path):
    (tmp_path / "runs").mkdir()
    with nodes.hidden(nodes.nodes[1], tmp_path / "runs"):
        done = run(nodes, tmp_path, "--address", nodes.address)
    assert done.returncode == 2
    outcome = json.loads(done.stdout)
    assert "--storage: 1 of 2 nodes do not see " in outcome["error"]
    assert f"(node {nodes.nodes[1].address}: no such file there)" in outcome["error"]
    assert outcome["steps_run"] == 0


def test_a_run_waits_for_nodes_that_its_workers_may_be_on(nodes, tmp_path):
    wanted = ["--workers", "2", "--set", "resources.labels.pool=audio", "--address", nodes.address]
    refused = run(nodes, tmp_path, *wanted)
    assert refused.returncode == 2
    assert "holds 0 of 1 CPU, pool audio each at once" in refused.stderr
    assert "give --wait SECONDS" in refused.stderr
    gave_up = run(nodes, tmp_path, *wanted, "--wait", "1")
    assert gave_up.returncode == 75
    assert "--wait 1: 2 nodes hold 0 of 2 workers of 1 CPU, pool audio each" in gave_up.stderr
    words = command(nodes, tmp_path, *wanted, "--wait", "600")
    with subprocess.Popen(words, env=nodes.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        said = next(line for line in waiting.stderr if line.startswith("waiting for the cluster: "))
        assert said == "waiting for the cluster: 2 nodes hold 0 of 2 workers of 1 CPU, pool audio each\n"
        nodes.add(2, "--labels=pool=audio")
        out, err = waiting.communicate()
    assert waiting.returncode == 0, err[-3000:]
    assert json.loads(out)["status"] == "done"


def test_the_doctor_looks_at_every_node_and_every_pair(nodes, tmp_path):
    (tmp_path / "runs").mkdir()
    words = [ANTIPHON, "doctor", "--address", nodes.address, "--storage", f"{tmp_path}/runs", "--json"]
    done = subprocess.run(nodes.command(nodes.head, *words), env=nodes.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert {"versions", "storage", "clocks", "network"} <= set(found)
    count = len(nodes.nodes)
    assert f"{count * (count - 1) // 2} pairs exchange by gloo" in found["network"]["said"]
    assert list((tmp_path / "runs").iterdir()) == []
    words[words.index("--storage") + 1] = "/proc/none"
    done = subprocess.run(nodes.command(nodes.head, *words), env=nodes.env, capture_output=True, text=True)
    assert done.returncode == 1
    assert any(f"{node.address}: write: " in done.stdout for node in nodes.nodes), "whichever node was asked first"


def test_workers_of_a_node_that_is_to_be_taken_away_save_and_move_to_another(nodes, tmp_path):
    """Ray's notice before a spot node goes: no step is repeated, and the notice's two minutes are not waited for."""
    nodes.add(2)  # the one that they move to
    head = nodes.ids()[nodes.head.address]
    long = sets("schedule.burn_in=1000", "train.checkpoint_every=100000", "resources.cpus=2")
    elsewhere = ["--set", f'resources.labels={{"ray.io/node-id"="!{head}"}}', "--address", nodes.address]
    words = command(nodes, tmp_path, *long, *elsewhere, "--run-id", "a")
    with subprocess.Popen(words, env=nodes.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for_record(tmp_path / "runs", process, kind="metrics")
        (left,) = [node for node in nodes.nodes if any("RayTrainWorker" in name for name in nodes.programs(node))]
        nodes.drain(left, deadline_s=120)
        out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    records = read_event_log(tmp_path / "runs" / "a" / "events.jsonl")
    (leaving,) = [record for record in records if record["kind"] == "leaving"]
    first, second = [record for record in records if record["kind"] == "start"]
    assert 0 == first["step"] < leaving["step"] == second["step"]
    assert second["t"] - leaving["t"] < 120_000
    assert f"step {leaving['step']}: saved, since a node is to be taken away" in err
    alone = run(nodes, tmp_path, *long, "--local")
    assert {name: row["weights_sha256"] for name, row in json.loads(out)["models"].items()} == weights(alone)


def test_the_number_of_workers_follows_the_nodes_while_the_run_trains(tmp_path):
    """A node comes: two workers instead of one; it is to go: one again. No step is repeated, the same is learned."""
    long = sets("schedule.burn_in=3000", "train.checkpoint_every=100000", "train.log_every=20", "train.eval_every=1000")
    with ray_nodes(1) as cluster:
        words = command(cluster, tmp_path, *long, "--workers", "1-2", "--address", cluster.address, "--run-id", "a")
        with subprocess.Popen(
            words, env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            wait_for_record(tmp_path / "runs", process, kind="metrics")
            joined = cluster.add(1)
            wait_for_record(tmp_path / "runs", process, kind="resizing")
            wait_for(lambda: any("RayTrainWorker" in name for name in cluster.programs(joined)), process)
            wait_for(lambda: len(starts(tmp_path)) == 2, process)
            cluster.drain(joined, deadline_s=120)
            out, err = process.communicate()
        assert process.returncode == 0, err[-3000:]
        alone = run(cluster, tmp_path, *long, "--local")
    records = read_event_log(tmp_path / "runs" / "a" / "events.jsonl")
    assert [record["count"] for record in records if record["kind"] == "workers"] == [1, 2, 1]
    (resizing,) = [record for record in records if record["kind"] == "resizing"]
    (leaving,) = [record for record in records if record["kind"] == "leaving"]
    assert [record["step"] for record in starts(tmp_path)] == [0, resizing["step"], leaving["step"]]
    assert f"step {resizing['step']}: saved by 1 worker; the cluster holds another number" in err
    assert not [record for record in records if record["kind"] == "worker-failed"]
    assert {name: row["weights_sha256"] for name, row in json.loads(out)["models"].items()} == weights(alone)


def starts(tmp_path: Path) -> list[dict]:
    return [record for record in read_event_log(tmp_path / "runs" / "a" / "events.jsonl") if record["kind"] == "start"]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Return once the condition holds; fail where the command has ended before, or after five minutes."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
