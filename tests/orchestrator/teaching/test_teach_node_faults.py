"""Stores that are filled on three Ray nodes with a network between them, of which one fails: the same bytes."""

import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.nodes import Node, RayNodes, ray_nodes
from tests.orchestrator.teaching.test_teach_faults import WAIT_S, command, content, num_shards, until
from tests.orchestrator.teaching.test_teach_faults import undisturbed as undisturbed
from tests.processes import killed_at_the_end
from tests.teachers import CLIPS
from tests.tiny_search import ANTIPHON

pytestmark = pytest.mark.faults


def kill_raylet(node: Node) -> None:
    node.process_of("raylet/raylet").kill()


FAULTS: dict[str, Callable[[Node], None]] = {
    "the raylet of one of three nodes killed": kill_raylet,
    "one of three nodes frozen (SIGSTOP) for ever": Node.freeze,
    "one of three nodes cut off for ever": Node.cut,
}


def filled(
    nodes: RayNodes,
    folder: Path,
    store: Path,
    fault: Callable[[], object],
    *options: str,
    repair: Callable[[], object] = lambda: None,
) -> float:
    """Fill a store by a driver on the second node, with the fault once two shards are written.

    Returns the seconds from then on to the next shard, after which the fault is repaired.
    """
    words = [ANTIPHON, *command(folder, store, *options, "--address", nodes.address)]
    words = nodes.command(nodes.nodes[1], *words)
    process = subprocess.Popen(words, env=nodes.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with killed_at_the_end(process):
        until(lambda: num_shards(store) >= 2, lambda: process.poll() is not None)
        fault()
        before, began = num_shards(store), time.monotonic()
        assert before < len(CLIPS)
        until(lambda: num_shards(store) > before, lambda: process.poll() is not None)
        seconds = time.monotonic() - began
        repair()
        _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said[-3000:]
    return seconds


@pytest.mark.parametrize("fault", FAULTS)
def test_one_of_three_nodes_fails(folder, undisturbed, tmp_path, fault_table, fault):
    store = tmp_path / "store"
    with ray_nodes(1, 1, 1) as nodes:
        seconds = filled(nodes, folder, store, lambda: FAULTS[fault](nodes.nodes[2]), "--workers", "3")
    assert content(store) == undisturbed
    seen = "nothing; its shard is given to another worker"
    fault_table(fault=f"teach on Ray: {fault}", seen=seen, seconds=seconds, equal=True)


def test_the_head_is_killed_and_started_again(folder, undisturbed, tmp_path, fault_table: Any):
    store = tmp_path / "store"
    with ray_nodes(0, 1, 1, redis=True) as nodes:
        repair = partial(nodes.restart, nodes.head)
        seconds = filled(nodes, folder, store, nodes.head.kill, "--workers", "2", repair=repair)
    assert content(store) == undisturbed
    seen = "nothing; workers go on"
    fault_table(fault="teach on Ray: the head killed, Redis behind it", seen=seen, seconds=seconds, equal=True)
