"""Runs on three Ray nodes with a network between them, of which one fails: what is learned is the same bit for bit."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import recovery
from tests.integration.test_nodes import command, weights
from tests.integration.test_run_ended import wait_for_record
from tests.nodes import Node, RayNodes, ray_nodes
from tests.processes import killed_at_the_end
from tests.tiny_search import ANTIPHON, sets

pytestmark = pytest.mark.faults
PLAN = sets("schedule.burn_in=400", "train.checkpoint_every=40", "train.eval_every=200")
HUNG_S = "30"  # RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S of these runs


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The weights of a run of one process that nothing happens to."""
    folder = tmp_path_factory.mktemp("alone")
    return weights(subprocess.run(local(folder, *PLAN), capture_output=True, text=True))


def local(folder: Path, *options: str) -> list[str]:
    nowhere = RayNodes({}, folder, "", "", [Node("", "", None)])  # type: ignore[arg-type]
    return [ANTIPHON, *command(nowhere, folder, *options, "--local")[5:]]


def hang_worker(node: Node) -> None:
    """Its peer waits for it in a collective."""
    node.process_of("RayTrainWorker").suspend()


FAULTS: dict[str, Callable[[Node], None]] = {
    "a worker's node frozen (SIGSTOP) for ever": Node.freeze,
    "a worker frozen (SIGSTOP), its peer hangs in a collective": hang_worker,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_of_two_workers_nodes_fails(fault: str, alone: dict[str, str], tmp_path: Path, fault_table: Any) -> None:
    with ray_nodes(1, 2, 2) as nodes:
        head = nodes.ids()[nodes.head.address]
        spread = sets(f'resources={{labels={{"ray.io/node-id"="!{head}"}}, placement="SPREAD"}}')
        words = command(nodes, tmp_path, *PLAN, *spread, "--workers", "2", "--address", nodes.address, "--run-id", "a")
        env = {**nodes.env, "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": HUNG_S}
        process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with killed_at_the_end(process):
            event_log = wait_for_record(tmp_path / "runs", process, kind="checkpoint")
            FAULTS[fault](nodes.nodes[2])
            out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err[-3000:]
    assert {name: row["weights_sha256"] for name, row in json.loads(out)["models"].items()} == alone
    seen = "nothing; Ray starts the workers again on the other node"
    fault_table(fault=f"Ray: {fault}", seen=seen, **recovery(event_log), equal=True)
