"""Runs on several Ray nodes, of which one fails while models are scored and delivered: the same bits and scores."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import node_faults
from tests.integration.test_node_faults import AGAIN, HUNG, hang_worker, with_worker
from tests.integration.test_nodes import arguments
from tests.node_faults import Command, Fault, times_of_run
from tests.node_faults import add_node as add_node
from tests.node_faults import disk as disk
from tests.node_faults import nodes as nodes
from tests.nodes import Node, RayNodes
from tests.tiny_search import ANTIPHON, sets
from workloads.runtime.event_log import read_event_log

pytestmark = pytest.mark.faults
STEPS = 8
PLAN = sets("schedule.turns=2", "data.synthetic_clips=1500")  # clips enough that to score them takes seconds

FAULTS: dict[str, tuple[Fault, str, bool | None]] = {
    "a worker's node killed": (node_faults.kill, AGAIN, True),
    "a worker's node cut off for ever": (node_faults.cut, AGAIN, True),
    "a worker frozen (SIGSTOP), its peer hangs in a collective": (hang_worker, AGAIN, True),
    "the head killed and started again, Redis behind it": (node_faults.restart_head, "nothing", False),
    "a worker's node taken away after a notice of 5 s": (node_faults.take_away, AGAIN, None),  # None: if not in time
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The clips of all runs of this module."""
    return sets(f"data.cache={tmp_path_factory.mktemp('clips')}")


@pytest.fixture(scope="module")
def alone(cache: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run of one process delivers that nothing happens to."""
    words = [ANTIPHON, *arguments(tmp_path_factory.mktemp("alone"), *PLAN, *cache, "--local")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return delivered(done.stdout)


def delivered(out: str) -> dict[str, Any]:
    """Steps, digests of weights, and all scores, by model."""
    models = json.loads(out)["models"]
    return {name: {key: value for key, value in row.items() if key != "checkpoint"} for name, row in models.items()}


def started(nodes: RayNodes, node: Node, folder: Path, cache: list[str]) -> Command:
    """A run of two workers, with its driver on a node."""
    options = [*cache, *sets('resources={placement="SPREAD"}'), "--workers", "2", "--address", nodes.address]
    words = [ANTIPHON, *arguments(folder, *PLAN, *options, "--run-id", "a", "--resume", "auto")]
    return Command(nodes, node, words, **HUNG)


def delivers(folder: Path) -> bool:
    """Whether a model is delivered; there are two."""
    return any(folder.glob("runs/a/models/*"))


def restarts(event_log: Path, since: float) -> list[int]:
    """The steps from which workers have started again; nothing was delivered whole before the fault."""
    records = read_event_log(event_log)
    assert all(record["t"] / 1000 > since for record in records if record["kind"] == "result")
    return [record["step"] for record in records if record["kind"] == "start" and record["t"] / 1000 > since]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_node_fails_while_models_are_delivered(
    fault: str,
    nodes: RayNodes,
    add_node: Callable[[], Node],
    cache: list[str],
    alone: dict[str, Any],
    tmp_path: Path,
    fault_table: Any,
) -> None:
    inject, seen, again = FAULTS[fault]
    event_log = tmp_path / "runs" / "a" / "events.jsonl"
    add_node(), add_node()
    with started(nodes, nodes.nodes[1], tmp_path, cache) as run:
        run.until(lambda: delivers(tmp_path))
        failing, since = with_worker(nodes), time.time()
        inject(nodes, failing)
        out = run.end()
    assert delivered(out) == alone
    starts = restarts(event_log, since)
    assert starts in ([[], [STEPS]] if again is None else [[STEPS] * again])
    seen = seen if starts else "nothing"
    fault_table(fault=f"Ray, delivery: {fault}", seen=seen, **times_of_run(event_log, since), equal=True)


def test_the_node_of_the_driver_is_killed_while_models_are_delivered(
    nodes: RayNodes,
    add_node: Callable[[], Node],
    cache: list[str],
    alone: dict[str, Any],
    tmp_path: Path,
    fault_table: Any,
) -> None:
    event_log = tmp_path / "runs" / "a" / "events.jsonl"
    lost = add_node()
    with started(nodes, lost, tmp_path, cache) as run:
        run.until(lambda: delivers(tmp_path))
        since = time.time()
        lost.kill()
    add_node()
    with started(nodes, nodes.nodes[1], tmp_path, cache) as run:
        out = run.end()
    assert delivered(out) == alone
    assert restarts(event_log, since) == [STEPS]
    seen = "the same command on another node goes on"
    fault_table(
        fault="Ray, delivery: the driver's node killed", seen=seen, **times_of_run(event_log, since), equal=True
    )
