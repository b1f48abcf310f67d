"""A worker takes a CPU for each thread and each loader, or what the recipe says, and all of it on one node."""

from collections.abc import Callable

import pytest

from orchestrator.training.worker_resources import (
    Node,
    WorkerNeeds,
    needs_of,
    require_room,
    room_beside,
    teacher_needs,
    worker_needs,
)
from workloads.config.recipe import Recipe
from workloads.config.resources import Resources, selects


def nodes(*resources: dict[str, float]) -> list[Node]:
    return [Node(each) for each in resources]


def test_threads_loaders_and_a_gpu_are_reserved(tiny: Callable[..., Recipe]) -> None:
    assert worker_needs(tiny("demo", "train.threads=3")).resources == {"CPU": 3.0}
    cuda = tiny("demo", "train.threads=1", "train.loaders=4", "train.device=cuda")
    assert worker_needs(cuda) == WorkerNeeds({"CPU": 5.0, "GPU": 1.0})


def test_a_recipe_says_what_else_a_worker_takes_and_where(tiny: Callable[..., Recipe]) -> None:
    table = '{cpus=2.5, gpus=0.5, memory_gb=4, accelerator="H200", labels={"ray.io/market-type"="!spot"}}'
    needs = worker_needs(tiny("demo", f"resources={table}", "train.device=cuda"))
    assert needs.resources == {"CPU": 2.5, "GPU": 0.5, "memory": 4e9, "accelerator_type:H200": 0.001}
    assert str(needs) == "2.5 CPU, 0.5 GPU, 4 GB memory, H200, ray.io/market-type !spot"
    with_gpu = {"CPU": 64.0, "GPU": 1.0, "memory": 9e9, "accelerator_type:H200": 1.0}
    assert needs.fit(Node(with_gpu)) == 2
    assert needs.fit(Node(with_gpu, {"ray.io/market-type": "spot"})) == 0
    assert needs.fit(Node(with_gpu | {"memory": 7.9e9}, {"ray.io/market-type": "on-demand"})) == 1
    assert needs.fit(Node({"CPU": 64.0, "GPU": 1.0, "memory": 9e9, "accelerator_type:L4": 1.0})) == 0


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [("a", {"a"}), ("!a", {"b", "c", None}), ("in(a, b)", {"a", "b"}), ("!in(a, b)", {"c", None})],
)
def test_selectors_mean_what_they_mean_to_ray(selector: str, chosen: set[str | None]) -> None:
    assert {value for value in ("a", "b", "c", None) if selects(selector, value)} == chosen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"zone": ""}}, "labels.zone = '': must be a label of Ray's nodes"),
        ({"labels": {"zone": "a, b"}}, "labels.zone = 'a, b': must be"),
        ({"labels": {"zone": "in(a"}}, r"labels.zone = 'in\(a': must be"),
        ({"labels": {"-": "a"}}, "labels.- = 'a': must be"),
        ({"gpus": 1.5}, "gpus = 1.5: must be a whole number, or below 1"),
        ({"memory_gb": -1}, "memory_gb = -1: must be 0 or more"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Resources(**change)


@pytest.mark.parametrize(
    ("cluster", "most"),
    [
        (nodes({"CPU": 8.0, "GPU": 1.0}), 1),
        (nodes({"CPU": 8.0, "GPU": 4.0}), 2),
        (nodes({"CPU": 3.0, "GPU": 1.0}, {"CPU": 9.0, "GPU": 3.0}, {"CPU": 64.0}), 4),
        ([], 0),
    ],
)
def test_a_worker_is_on_one_node(cluster: list[Node], most: int) -> None:
    assert WorkerNeeds({"CPU": 3.0, "GPU": 1.0}).count(cluster) == most


def test_strict_placements_hold_fewer() -> None:
    cluster = nodes({"CPU": 4.0}, {"CPU": 2.0}, {"CPU": 1.0})
    assert [
        WorkerNeeds({"CPU": 2.0}, placement=placement).count(cluster)
        for placement in ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
    ] == [3, 3, 2, 2]


@pytest.mark.parametrize(
    ("address", "where", "wait"),
    [("", "this machine", ""), ("h:1", "the cluster at h:1", ", or, where the cluster scales up, give --wait SECONDS")],
)
def test_workers_that_do_not_fit_are_refused_with_what_fits(address: str, where: str, wait: str) -> None:
    cluster, needs = nodes({"CPU": 5.0}, {"CPU": 3.0}), needs_of(2, "cpu")
    require_room(cluster, needs, 3, address, fix="or fewer threads")
    message = f"--workers 4: {where} holds 3 of 2 CPU each at once; ask for fewer, or fewer threads{wait}$"
    with pytest.raises(ValueError, match=message):
        require_room(cluster, needs, 4, address, fix="or fewer threads")


def test_actors_of_teachers_are_reckoned_beside_the_workers(tiny: Callable[..., Recipe]) -> None:
    table = '{actors=2, resources={gpus=1, accelerator="H200"}}'
    needs = teacher_needs(tiny("demo", "train.threads=2", "train.loaders=3", f"service={table}"))
    assert needs.resources == {"CPU": 2.0, "GPU": 1.0, "accelerator_type:H200": 0.001}
    gpus = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H200": 1.0}
    cluster = nodes({"CPU": 6.0}, gpus, gpus)
    left = room_beside(cluster, needs, 2)
    assert [node.resources.get("CPU") for node in left] == [6.0, 6.0, 6.0]
    assert [node.resources.get("GPU", 0) for node in left] == [0.0, 0.0, 0.0]
    assert room_beside(cluster, needs, 3) == []
    require_room(cluster, needs_of(2, "cpu"), 9, "h:1", fix="", beside=(needs, 2))
    message = (
        r"--workers 10: the cluster at h:1 holds 9 of 2 CPU each at once beside service.actors = 2 of 2 CPU, 1 GPU"
    )
    with pytest.raises(ValueError, match=message):
        require_room(cluster, needs_of(2, "cpu"), 10, "h:1", fix="", beside=(needs, 2))
