"""A worker takes a CPU for each thread and each loader, and all of them on one node."""

import pytest

from orchestrator.training.worker_resources import count_workers, require_room, resources_of, worker_resources
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


@pytest.mark.parametrize(("address", "where"), [("", "this machine"), ("h:1", "the cluster at h:1")])
def test_workers_that_do_not_fit_are_refused_with_what_fits(address: str, where: str) -> None:
    nodes, worker = [{"CPU": 5.0}, {"CPU": 3.0}], resources_of(2, "cpu")
    require_room(nodes, worker, 3, address, fix="or fewer threads")
    with pytest.raises(ValueError, match=f"--workers 4: {where} holds 3 of 2 CPU each at once; ask for"):
        require_room(nodes, worker, 4, address, fix="or fewer threads")
