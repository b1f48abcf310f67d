"""Runs on Ray nodes that have a network between them: `tests/nodes.py`."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nodes import RayNodes, ray_nodes
from tests.small import SIZES, TWO_MODELS
from tests.tiny_search import ANTIPHON, PLAN, sets

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with ray_nodes(2, 2) as cluster:
        yield cluster


def run(nodes: RayNodes, tmp_path: Path, *options: str, env: dict[str, str] | None = None) -> Any:
    """`antiphon run demo` with tiny models on the head, and the object that it prints."""
    values = sets(*SIZES, *TWO_MODELS, *PLAN, "train.shards=2", f"data.cache={tmp_path}/clips")
    command = [ANTIPHON, "run", "demo", "--json", "--tracking", "none", *values, *options]
    done = subprocess.run(
        nodes.command(nodes.head, *command), env={**nodes.env, **(env or {})}, capture_output=True, text=True
    )
    return done, json.loads(done.stdout.splitlines()[-1])


def weights(outcome: dict[str, Any]) -> dict[str, str]:
    return {name: model["weights_sha256"] for name, model in outcome["models"].items()}


def test_workers_on_two_nodes_whose_name_means_127_0_0_1_learn_what_one_worker_does(nodes, tmp_path):
    """Left to itself gloo takes the interface of the host's name: `connectFullMesh ... remote=[127.0.0.1]`."""
    storage = ["--storage", f"{tmp_path}/runs"]
    # two CPUs for a worker: one on each node
    two = ["--workers", "2", "--set", "train.threads=1", "--set", "train.loaders=1"]
    done, apart = run(nodes, tmp_path, *storage, *two, env={"RAY_ADDRESS": nodes.address})
    assert done.returncode == 0, done.stderr[-3000:]
    done, alone = run(nodes, tmp_path, *storage, "--local")
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights(apart) == weights(alone)
