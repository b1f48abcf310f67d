"""What a search may spend, and how many trials the nodes hold at once."""

import pytest

from orchestrator.search.request import Budget, parse_budget
from orchestrator.search.trial_slots import count_slots
from orchestrator.training.worker_resources import Node, WorkerNeeds


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("24", Budget(trials=24)),
        ("24 trials", Budget(trials=24)),
        ("90s", Budget(seconds=90)),
        ("1.5 m", Budget(seconds=90)),
        ("2h", Budget(seconds=7200)),
        ("0.5gpuh", Budget(gpu_hours=0.5)),
    ],
)
def test_a_budget_is_trials_time_or_gpu_hours(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "0", "-3", "soon", "2d", "1.5", "1.5 trials", "3 gpu"])
def test_invalid_budgets_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"--budget .*(must be a number of trials|the number of trials must be whole)"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["10001", "9" * 400, "9" * 400 + "h", "1000001 s"])
def test_budgets_without_bound_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"--budget .* must be at most 10,000 trials, or 1,000,000 of s, m or h"):
        parse_budget(text)


def test_gpu_hours_are_shared_by_all_gpus() -> None:
    assert Budget(gpu_hours=4).wall_seconds(gpus=8) == 1800
    assert Budget(seconds=60).wall_seconds(gpus=8) == 60
    assert Budget(trials=24).wall_seconds(gpus=8) is None


def cluster(*resources: dict[str, float]) -> list[Node]:
    return [Node(each) for each in resources]


def test_a_trial_runs_on_one_node() -> None:
    """Seven CPUs on nodes of 3, 3 and 1 hold two trials of two CPUs, and GPUs count too."""
    nodes = cluster({"CPU": 3.0}, {"CPU": 3.0}, {"CPU": 1.0})
    assert count_slots(nodes, WorkerNeeds({"CPU": 2.0}), 0) == 2
    assert count_slots(nodes, WorkerNeeds({"CPU": 1.0}), 0) == 7
    assert count_slots(nodes, WorkerNeeds({"CPU": 1.0}), 4) == 4
    assert count_slots(cluster({"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0}), WorkerNeeds({"CPU": 1.0, "GPU": 1.0}), 0) == 2


def test_the_workers_of_a_trial_may_be_on_several_nodes_each_of_them_on_one() -> None:
    nodes = cluster({"CPU": 3.0}, {"CPU": 3.0}, {"CPU": 1.0})
    assert count_slots(nodes, WorkerNeeds({"CPU": 1.0}), 0, workers=2) == 3
    assert count_slots(nodes, WorkerNeeds({"CPU": 2.0}), 0, workers=2) == 1
    with pytest.raises(ValueError, match="holds 0 trials of 2 workers of 3 CPU each"):
        count_slots(cluster({"CPU": 3.0}, {"CPU": 2.9}), WorkerNeeds({"CPU": 3.0}), 0, workers=2)
    with pytest.raises(ValueError, match="holds 0 trials"):
        count_slots(cluster({"CPU": 2.0}), WorkerNeeds({"CPU": 1.0}), 0, workers=2)


@pytest.mark.parametrize(
    ("cpus", "workers", "slots"),
    [
        ((4.5, 4.5, 2.5), 2, {"PACK": 5, "STRICT_PACK": 5, "STRICT_SPREAD": 5}),
        ((3.5, 3.5, 3.5), 2, {"PACK": 4, "STRICT_PACK": 3, "STRICT_SPREAD": 4}),
        ((6.5, 1.5), 2, {"PACK": 3, "STRICT_PACK": 3, "STRICT_SPREAD": 1}),
        ((5.5, 2.5, 2.5, 1.5), 3, {"PACK": 3, "STRICT_PACK": 1, "STRICT_SPREAD": 2}),
        ((2.5, 2.5), 3, {"PACK": 1, "STRICT_PACK": 0, "STRICT_SPREAD": 0}),
    ],
)
def test_slots_are_counted_as_the_workers_of_each_trial_are_placed(
    cpus: tuple[float, ...], workers: int, slots: dict[str, int]
) -> None:
    """A trial's workers together on one node, or each on another; different trials share nodes."""
    nodes = cluster(*({"CPU": count} for count in cpus))
    for placement, most in slots.items():
        needs = WorkerNeeds({"CPU": 1.0}, placement=placement)
        if most:
            assert count_slots(nodes, needs, 0, workers=workers) == most
        else:
            with pytest.raises(
                ValueError, match=f"holds 0 trials of 3 workers of 1 CPU each(, placed by {placement},|) at"
            ):
                count_slots(nodes, needs, 0, workers=workers)


def test_a_trial_that_waits_for_its_workers_takes_the_place_of_one_where_no_cpu_is_left() -> None:
    whole = WorkerNeeds({"CPU": 4.0}, placement="STRICT_PACK")
    assert count_slots(cluster({"CPU": 16.0}, {"CPU": 8.0}), whole, 0, workers=2) == 2
    assert count_slots(cluster({"CPU": 16.0}, {"CPU": 8.0}, {"CPU": 0.02}), whole, 0, workers=2) == 2
    assert count_slots(cluster({"CPU": 16.0}, {"CPU": 8.0}, {"CPU": 0.03}), whole, 0, workers=2) == 3
    apart = WorkerNeeds({"CPU": 4.0}, placement="STRICT_SPREAD")
    assert count_slots(cluster({"CPU": 8.0}, {"CPU": 8.0}, {"CPU": 4.0}), apart, 0, workers=2) == 2


@pytest.mark.parametrize("wanted", [0, 3])
def test_more_trials_than_the_nodes_hold_are_refused(wanted: int) -> None:
    nodes = cluster({"CPU": 3.0}, {"CPU": 3.0}) if wanted else cluster({"CPU": 1.0}, {"CPU": 1.0})
    most = 2 if wanted else 0
    with pytest.raises(ValueError, match=rf"(--slots 3|search): .*: the cluster holds {most} trials of 2 CPU"):
        count_slots(nodes, WorkerNeeds({"CPU": 2.0}), wanted)
