"""Searches on three Ray nodes with a network between them, of which one fails: all trials end, with the same scores."""

import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.nodes import Node, RayNodes, ray_nodes
from tests.processes import killed_at_the_end
from tests.tiny_search import results, run, sets

pytestmark = pytest.mark.faults
# 24 steps a trial, and no scheduler that stops trials by when their rivals report
OPTIONS = (
    *sets("schedule.burn_in=0", "schedule.turns=12", "search.scheduler=none"),
    "--no-finals",
    "--tracking",
    "none",
)
FAULTS: dict[str, Callable[[Node], None]] = {"killed": Node.kill, "cut off for ever": Node.cut}


def scores(folder: Path) -> dict[str, tuple[Any, float]]:
    """Settings and objective of each trial."""
    return {name: (result["settings"], result["objective"]) for name, result in results(folder).items()}


def searched(
    nodes: RayNodes, words: list[str], folder: Path, fault: Callable[[], object], repair: Callable[[], object]
) -> float:
    """Search by a driver on the second node, with the fault once a trial is done, repaired after the next one.

    Returns the seconds between the two.
    """
    words = nodes.command(nodes.nodes[1], *words, "--search-id", "s", "--slots", "2", "--address", nodes.address)
    process = subprocess.Popen(words, env=nodes.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with killed_at_the_end(process):
        for number in (1, 2):
            deadline = time.monotonic() + 600
            while len(results(folder)) < number:
                assert process.poll() is None, process.stderr and process.stderr.read()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.1)
            if number == 1:
                fault()
                began = time.monotonic()
        seconds = time.monotonic() - began
        repair()
        _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said[-3000:]
    return seconds


@pytest.mark.parametrize("fault", FAULTS)
def test_one_of_two_nodes_with_trials_fails(searching: Any, tmp_path: Path, fault_table: Any, fault: str) -> None:
    alone = searching(*OPTIONS, "--search-id", "alone", "--slots", "1")
    run(alone)
    with ray_nodes(0, 1, 1) as nodes:
        fail = partial(FAULTS[fault], nodes.nodes[2])
        seconds = searched(nodes, searching(*OPTIONS), tmp_path / "runs" / "s", fail, lambda: None)
    assert scores(tmp_path / "runs" / "s") == scores(tmp_path / "runs" / "alone")
    seen = "nothing; its trial is tried again on the other"
    fault_table(fault=f"search on Ray: one of two nodes with trials {fault}", seen=seen, seconds=seconds, equal=True)


def test_the_head_is_killed_and_started_again(searching: Any, tmp_path: Path, fault_table: Any) -> None:
    run(searching(*OPTIONS, "--search-id", "alone", "--slots", "1"))
    with ray_nodes(0, 1, 1, redis=True) as nodes:
        repair = partial(nodes.restart, nodes.head)
        seconds = searched(nodes, searching(*OPTIONS), tmp_path / "runs" / "s", nodes.head.kill, repair)
    assert scores(tmp_path / "runs" / "s") == scores(tmp_path / "runs" / "alone")
    seen = "nothing; running trials go on"
    fault_table(fault="search on Ray: the head killed, Redis behind it", seen=seen, seconds=seconds, equal=True)
