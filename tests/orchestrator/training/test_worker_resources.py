"""A worker takes a CPU for each thread and each loader, and all of them on one node."""

import pytest

from orchestrator.training.worker_resources import count_workers, worker_resources
from workloads.config.recipe import Train


def test_threads_loaders_and_a_gpu_are_reserved() -> None:
    assert worker_resources(Train(threads=3)) == {"CPU": 3.0}
    assert worker_resources(Train(threads=1, loaders=4, device="cuda")) == {"CPU": 5.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "most"),
    [
        ([{"CPU": 8.0, "GPU": 1.0}], 1),
        ([{"CPU": 8.0, "GPU": 4.0}], 2),
        ([{"CPU": 3.0, "GPU": 1.0}, {"CPU": 9.0, "GPU": 3.0}, {"CPU": 64.0}], 4),
        ([], 0),
    ],
)
def test_a_worker_is_on_one_node(nodes: list[dict[str, float]], most: int) -> None:
    assert count_workers(nodes, {"CPU": 3.0, "GPU": 1.0}) == most
