"""Searches on several Ray nodes with a network between them, of which one fails: the same scores of all trials."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import node_faults
from tests.node_faults import Command, Fault, loser_of
from tests.node_faults import add_node as add_node
from tests.node_faults import disk as disk
from tests.node_faults import nodes as nodes
from tests.nodes import Node, RayNodes
from tests.tiny_search import results, search_command, sets

pytestmark = pytest.mark.faults
# 40 steps a trial, and no scheduler that stops trials by when their rivals report
VALUES = ("schedule.burn_in=0", "schedule.turns=20", "search.scheduler=none", "search.rungs=1")
OPTIONS = (*sets(*VALUES), "--no-finals", "--tracking", "none")

AGAIN = "trial N: ...; it is started again"
# Whether a trial is started again; None: where Ray takes the node for lost, which depends on its last health check, and
# where the trial may end in time.
FAULTS: dict[str, tuple[Fault, bool | None]] = {
    "the raylet of a trial's node killed": (node_faults.kill_raylet, True),
    "a trial's node killed": (node_faults.kill, True),
    "a trial's node frozen (SIGSTOP) for ever": (node_faults.freeze, True),
    "a trial's node cut off for 30 s": (node_faults.cut_for_30_s, None),
    "a trial's node cut off for ever": (node_faults.cut, True),
    "the head killed and started again, Redis behind it": (node_faults.restart_head, False),
    "a trial's node taken away after a notice of 5 s": (node_faults.take_away, None),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def alone(nodes: RayNodes, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The scores of a search that nothing happens to, on one node."""
    folder = tmp_path_factory.mktemp("alone")
    with started(nodes, nodes.nodes[1], folder, cache, slots=1) as searching:
        searching.end()
    return scores(folder / "runs" / "s")


def scores(search: Path) -> dict[str, Any]:
    """Settings and objective of each trial."""
    return {name: (result["settings"], result["objective"]) for name, result in results(search).items()}


def started(nodes: RayNodes, node: Node, folder: Path, cache: Path, *, slots: int = 2) -> Command:
    """A search of so many trials at once, each on a node; its driver is on a node."""
    where = ["--search-id", "s", "--resume", "auto", "--slots", str(slots), "--address", nodes.address]
    return Command(nodes, node, search_command(folder, cache, *OPTIONS, *where))


def trains(search: Path, nodes: RayNodes, node: Node) -> bool:
    """Whether a trial is done, and two others train, one of them on the node."""
    begun = len(list(search.glob("trials/*/settings.json")))
    return begun - len(results(search)) == 2 < begun and any(map(is_trial, nodes.programs(node)))


def is_trial(program: str) -> bool:
    return program.startswith("ray::") and ".train" in program


@pytest.mark.parametrize("fault", FAULTS)
def test_a_node_fails(
    fault: str, nodes: RayNodes, add_node: Callable[[], Node], cache: Path, alone: Any, tmp_path: Path, fault_table: Any
) -> None:
    inject, again = FAULTS[fault]
    failing = add_node()
    search = tmp_path / "runs" / "s"
    with started(nodes, nodes.nodes[1], tmp_path, cache) as searching:
        searching.until(lambda: trains(search, nodes, failing))
        before, since = results(search), time.time()
        inject(nodes, failing)
        searching.end()
    assert scores(search) == alone
    ended = results(search)
    assert {name: ended[name] for name in before} == before, "what was committed stays"
    detected = searching.said("it is started again", since=since)
    assert again in (None, detected is not None), searching.err[-3000:]
    lost = [line.split()[1].rstrip(":") for line in searching.err.splitlines() if "it is started again" in line]
    # a process that is only cut off ends its trial all the same: then the trial that is started again finds that result
    begun = [ended[name]["began"] - since for name in lost]
    times = {"detected": detected, "seconds": max((seconds for seconds in begun if seconds > 0), default=None)}
    seen = AGAIN if lost else "nothing"
    fault_table(fault=f"search on Ray: {fault}", seen=seen, **times, equal=True)


def test_the_node_of_the_driver_is_killed(
    nodes: RayNodes, add_node: Callable[[], Node], cache: Path, alone: Any, tmp_path: Path, fault_table: Any
) -> None:
    search = tmp_path / "runs" / "s"
    failing = add_node()
    with started(nodes, failing, tmp_path, cache) as searching:
        searching.until(lambda: trains(search, nodes, failing))
        before, since = results(search), time.time()
        failing.kill()
    add_node()
    with started(nodes, nodes.nodes[1], tmp_path, cache) as searching:
        searching.end()
    assert scores(search) == alone
    ended = results(search)
    assert {name: ended[name] for name in before} == before, "what was committed stays"
    seconds = min(result["began"] for result in ended.values() if result["began"] > since) - since
    seen = "the same command on another node goes on"
    fault_table(fault="search on Ray: the driver's node killed", seen=seen, seconds=seconds, equal=True)


def test_two_drivers_on_two_nodes(
    nodes: RayNodes, add_node: Callable[[], Node], cache: Path, alone: Any, tmp_path: Path, fault_table: Any
) -> None:
    search = tmp_path / "runs" / "s"
    failing = add_node()
    since = time.time()
    with started(nodes, nodes.nodes[1], tmp_path, cache) as one, started(nodes, failing, tmp_path, cache) as other:
        loser, winner = loser_of(one, other)
        detected = time.time() - since
        loser.end(75)
        winner.end()
    assert scores(search) == alone
    seen = "one of them exits 75: the search is driven by the other"
    fault_table(fault="search on Ray: two drivers of one search at once", seen=seen, detected=detected, equal=True)
