"""Stores that are filled on several Ray nodes with a network between them, of which one fails: the same bytes."""

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests import node_faults
from tests.node_faults import Command, Fault
from tests.node_faults import add_node as add_node
from tests.node_faults import disk as disk
from tests.node_faults import nodes as nodes
from tests.nodes import Node, RayNodes
from tests.orchestrator.teaching.test_teach_faults import command, content, num_shards
from tests.orchestrator.teaching.test_teach_faults import undisturbed as undisturbed
from tests.teachers import CLIPS
from tests.tiny_search import ANTIPHON

pytestmark = pytest.mark.faults

OTHER = "shard N: the worker that had it died (...); another one gets it"
# Whether a shard is given to another worker; None: where Ray takes the node for lost, which depends on its last health
# check, and where the shards may be filled in time.
FAULTS: dict[str, tuple[Fault, bool | None]] = {
    "the raylet of a worker's node killed": (node_faults.kill_raylet, True),
    "a worker's node killed": (node_faults.kill, True),
    "a worker's node frozen (SIGSTOP) for ever": (node_faults.freeze, True),
    "a worker's node cut off for 30 s": (node_faults.cut_for_30_s, None),
    "a worker's node cut off for ever": (node_faults.cut, True),
    "the head killed and started again, Redis behind it": (node_faults.restart_head, False),
    "a worker's node taken away after a notice of 5 s": (node_faults.take_away, None),
}


def started(nodes: RayNodes, node: Node, folder: Path, store: Path) -> Command:
    """Two workers on two nodes fill a store; the driver is on a node."""
    options = ["--workers", "2", "--address", nodes.address]
    return Command(nodes, node, [ANTIPHON, *command(folder, store, *options)])


def begun(store: Path, nodes: RayNodes, node: Node) -> bool:
    """Whether shards are written, and a worker is on the node."""
    return num_shards(store) >= 2 and any("ShardFiller" in program for program in nodes.programs(node))


def next_shard(command: Command, store: Path, before: int, since: float) -> float:
    """Seconds from a fault to the next shard that is written."""
    command.until(lambda: num_shards(store) > before)
    return time.time() - since


@pytest.mark.parametrize("fault", FAULTS)
def test_a_node_fails(fault, folder, nodes, add_node, undisturbed, tmp_path, fault_table):
    inject, again = FAULTS[fault]
    store, failing = tmp_path / "store", add_node()
    with started(nodes, nodes.nodes[1], folder, store) as filling:
        filling.until(lambda: begun(store, nodes, failing))
        before, since = num_shards(store), time.time()
        assert before < len(CLIPS) - 2
        inject(nodes, failing)
        filling.end()
    assert content(store) == undisturbed
    detected = filling.said("another one gets it", since=since)
    assert again in (None, detected is not None), filling.err[-3000:]
    written = sorted(path.stat().st_mtime - since for path in store.glob("shards/outputs-*"))
    after = [0.0, *(seconds for seconds in written if seconds > 0)]
    longest_pause = max(later - earlier for earlier, later in pairwise(after))
    fault_table(
        fault=f"teach on Ray: {fault}",
        seen="nothing" if detected is None else OTHER,
        detected=detected,
        seconds=longest_pause if detected is None else min(seconds for seconds in after if seconds > detected),
        repeated=0 if detected is None else 1,
        equal=True,
    )


def test_the_node_of_the_driver_is_killed(folder, nodes, add_node, undisturbed, tmp_path, fault_table: Any):
    store, failing = tmp_path / "store", add_node()
    with started(nodes, failing, folder, store) as filling:
        filling.until(lambda: begun(store, nodes, failing))
        failing.kill()
    before, since = num_shards(store), time.time()
    assert before < len(CLIPS)
    add_node()
    with started(nodes, nodes.nodes[1], folder, store) as filling:
        seconds = next_shard(filling, store, before, since)
        filling.end()
    assert content(store) == undisturbed
    seen = "the same command on another node goes on"
    fault_table(fault="teach on Ray: the driver's node killed", seen=seen, seconds=seconds, equal=True)


def test_the_store_is_on_a_slow_disk(folder, nodes, add_node, undisturbed, disk, fault_table: Any):
    place, slow_down = disk
    store, failing = place / "store", add_node()
    with started(nodes, nodes.nodes[1], folder, store) as filling:
        filling.until(lambda: begun(store, nodes, failing))
        since = time.time()
        slow_down()
        filling.end()
    assert content(store) == undisturbed
    assert filling.said("another one gets it", since=since) is None
    fault = "teach on Ray: the store's disk stops for 3 of 3.3 seconds"
    fault_table(fault=fault, seen="nothing; a shard takes longer", repeated=0, equal=True)
