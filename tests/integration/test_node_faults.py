"""Runs on several Ray nodes with a network between them, which fail one after the other: the same bits are learned."""

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import node_faults
from tests.integration.test_nodes import arguments, weights
from tests.node_faults import Command, Fault, loser_of, times_of_run
from tests.node_faults import add_node as add_node
from tests.node_faults import disk as disk
from tests.node_faults import nodes as nodes
from tests.nodes import Node, RayNodes
from tests.tiny_search import ANTIPHON, sets
from workloads.runtime.event_log import read_event_log

pytestmark = pytest.mark.faults
PLAN = sets("schedule.burn_in=250", "train.checkpoint_every=20", "train.eval_every=250")
HUNG = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30"}  # of runs in which a worker hangs; else 180


def hang_worker(nodes: RayNodes, node: Node) -> None:
    """Its peer waits for it in a collective."""
    node.process_of("RayTrainWorker").suspend()


AGAIN = "nothing; Ray starts the workers again on nodes that are left"


class Case(NamedTuple):
    """A fault of the node of one of two workers."""

    name: str
    inject: Fault
    restarts: bool | None = True  # whether the workers are started again; None: if Ray takes the node for lost


# Ray starts workers again three times, so there are no more faults that it counts in one run.
SEQUENCES = {
    "killed": [
        Case("the raylet of a worker's node killed", node_faults.kill_raylet),
        Case("a worker's node killed", node_faults.kill),
        Case("a worker's node cut off for 30 s", node_faults.cut_for_30_s, restarts=None),
    ],
    "silent": [
        Case("a worker's node frozen (SIGSTOP) for ever", node_faults.freeze),
        Case("a worker's node cut off for ever", node_faults.cut),
        Case("a worker frozen (SIGSTOP), its peer hangs in a collective", hang_worker),
    ],
    "head": [Case("the head killed and started again, Redis behind it", node_faults.restart_head, restarts=False)],
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The weights of a run of one process that nothing happens to."""
    words = [ANTIPHON, *arguments(tmp_path_factory.mktemp("alone"), *PLAN, "--local")]
    return weights(subprocess.run(words, capture_output=True, text=True))


def started(nodes: RayNodes, node: Node, folder: Path, **env: str) -> Command:
    """A run of two workers, with its driver on a node; in `folder` lie its clips, and `runs` with it."""
    options = [*sets('resources={placement="SPREAD"}'), "--workers", "2", "--address", nodes.address]
    words = [ANTIPHON, *arguments(folder, *PLAN, *options, "--run-id", "a", "--resume", "auto")]
    return Command(nodes, node, words, **env)


def trains(event_log: Path, *, since: float = 0.0, restarts: bool = True) -> bool:
    """Whether steps follow a checkpoint that was stored since then and, if it `restarts`, since a start since then."""
    records = read_event_log(event_log) if event_log.exists() else []
    kinds = [record["kind"] for record in records if record["t"] / 1000 > since]
    for kind in ["start"] * restarts + ["checkpoint", "metrics"]:
        if kind not in kinds:
            return False
        kinds = kinds[kinds.index(kind) :]
    return True


def with_worker(nodes: RayNodes, lost: Sequence[Node] = ()) -> Node:
    """A node with a worker, other than the one of the driver, and those whose workers hang for ever."""
    left = [node for node in nodes.nodes[2:] if node not in lost]
    return next(node for node in left if any("RayTrainWorker" in name for name in nodes.programs(node)))


def injected(case: Case, run: Command, event_log: Path, nodes: RayNodes, lost: list[Node]) -> float:
    """Let a node with a worker fail, add it to those that are lost, and wait until training goes on; returns when, in
    seconds since the epoch."""
    since = time.time()
    lost.append(with_worker(nodes, lost))
    case.inject(nodes, lost[-1])
    over = since if case.restarts else time.time()
    run.until(lambda: run.process.poll() == 0 or trains(event_log, since=over, restarts=bool(case.restarts)))
    return since


def num_starts(event_log: Path, since: float, end: float) -> int:
    starts = [record["t"] / 1000 for record in read_event_log(event_log) if record["kind"] == "start"]
    return sum(since < start < end for start in starts)


def learned(out: str) -> dict[str, str]:
    return {name: row["weights_sha256"] for name, row in json.loads(out)["models"].items()}


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_nodes_fail_one_after_the_other(
    sequence: str, nodes: RayNodes, add_node: Any, alone: dict[str, str], tmp_path: Path, fault_table: Any
) -> None:
    event_log = tmp_path / "runs" / "a" / "events.jsonl"
    for _ in range(4):  # with the driver's five: two train, and three may be lost
        add_node()
    with started(nodes, nodes.nodes[1], tmp_path, **(HUNG if sequence == "silent" else {})) as run:
        run.until(lambda: trains(event_log))
        lost: list[Node] = []
        rows = [(case, injected(case, run, event_log, nodes, lost)) for case in SEQUENCES[sequence]]
        out = run.end()
    assert learned(out) == alone
    ends = [since for _, since in rows[1:]] + [time.time()]
    for (case, since), end in zip(rows, ends, strict=True):
        times, starts = times_of_run(event_log, since, end), num_starts(event_log, since, end)
        assert starts in ([0, 1] if case.restarts is None else [int(case.restarts)]), case.name
        seen = AGAIN if starts else "nothing"
        fault_table(fault=f"Ray, training: {case.name}", seen=seen, **times, equal=True)


def test_of_two_drivers_one_trains_and_its_node_is_killed(
    nodes: RayNodes, add_node: Any, alone: dict[str, str], tmp_path: Path, fault_table: Any
) -> None:
    """The other command, given again, goes on with the run: nothing of it was on the lost node alone."""
    event_log = tmp_path / "runs" / "a" / "events.jsonl"
    places = [add_node(), add_node()]
    since = time.time()
    with started(nodes, places[0], tmp_path) as one, started(nodes, places[1], tmp_path) as other:
        loser, winner = loser_of(one, other)
        detected = time.time() - since
        loser.end(75)
        winner.until(lambda: trains(event_log))
        lost = places[0] if winner is one else places[1]
        since = time.time()
        lost.kill()
    with started(nodes, next(node for node in places if node is not lost), tmp_path) as run:
        out = run.end()
    assert learned(out) == alone
    seen = "one of them exits 75: the other one is still working on it"
    fault_table(fault="Ray, training: two drivers of one run at once", seen=seen, detected=detected, equal=True)
    seen = "the same command on another node goes on"
    times = times_of_run(event_log, since)
    fault_table(fault="Ray, training: the driver's node killed", seen=seen, **times, equal=True)


def test_the_storage_is_a_slow_disk(
    nodes: RayNodes, add_node: Any, alone: dict[str, str], disk: Any, fault_table: Any
) -> None:
    folder, slow_down = disk
    event_log = folder / "runs" / "a" / "events.jsonl"
    add_node()
    with started(nodes, nodes.nodes[1], folder) as run:
        run.until(lambda: trains(event_log))
        since = time.time()
        slow_down()
        out = run.end()
    assert learned(out) == alone
    assert not [record for record in read_event_log(event_log) if record["kind"] == "worker-failed"]
    fault = "Ray, training: the storage's disk stops for 3 of 3.3 seconds"
    fault_table(fault=fault, seen="nothing; it waits for the disk", **times_of_run(event_log, since), equal=True)
