"""Who proposes what: grids, random draws, TPE, and what resuming makes of them."""

import json
import math

import pytest

from orchestrator.search.samplers import Proposals, num_trials, planned
from orchestrator.search.trial_spec import Task
from workloads.config.search import Choices, Range, Search

SPACE = {
    "edges.0.weight": Range(low=0.1, high=0.9),
    "edges.0.temperature": Range(low=1.0, high=8.0, log=True),
    "schedule.period": Choices(choices=(10, 20, 40)),
    "models.vit.arch.depth": Range(low=1, high=4),
}


def proposed(proposals: Proposals, count: int) -> list[Task]:
    tasks = [proposals.propose(slot=0) for _ in range(count)]
    return [task for task in tasks if task is not None]


def test_a_grid_has_every_point_once_in_the_order_of_its_axes() -> None:
    space = {"a": Choices(choices=(1, 2)), "b": Choices(choices=("x", "y", "z"))}
    points = planned(Search(space=space, searcher="grid"))
    assert points == [{"a": a, "b": b} for a in (1, 2) for b in "xyz"]
    proposals = Proposals(Search(space=space, searcher="grid", trials=2), [])
    assert [task.settings for task in proposed(proposals, 10)] == points


def test_random_draws_stay_within_and_depend_on_seed_and_number_only() -> None:
    search = Search(space=SPACE, searcher="random", trials=300)
    drawn = planned(search)
    assert drawn == planned(Search(space=SPACE, searcher="random", trials=400))[:300]
    assert drawn != planned(Search(space=SPACE, searcher="random", trials=300, seed=1))
    for place, low, high in (("edges.0.weight", 0.1, 0.9), ("edges.0.temperature", 1, 8)):
        values = [settings[place] for settings in drawn]
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(values) <= high
    middle = sorted(settings["edges.0.temperature"] for settings in drawn)[150]
    assert middle == pytest.approx(math.sqrt(8), rel=0.15), "even steps of the logarithm"
    assert {settings["models.vit.arch.depth"] for settings in drawn} == {1, 2, 3, 4}
    assert {settings["schedule.period"] for settings in drawn} == {10, 20, 40}


def objective(settings: dict) -> float:
    return (settings["edges.0.weight"] - 0.3) ** 2 + 0.1 * (settings["schedule.period"] != 20)


def tried(proposals: Proposals, count: int) -> list[Task]:
    tasks = []
    for _ in range(count):
        tasks += proposed(proposals, 1)
        proposals.tell(tasks[-1].number, [objective(tasks[-1].settings)])
    return tasks


def test_tpe_learns_where_it_is_good() -> None:
    search = Search(space=SPACE, searcher="tpe", trials=60)
    tasks = tried(Proposals(search, []), 60)
    first = [objective(task.settings) for task in tasks[:10]]
    last = [objective(task.settings) for task in tasks[-20:]]
    assert sum(last) / 20 < 0.5 * sum(first) / 10
    assert all(isinstance(task.settings["models.vit.arch.depth"], int) for task in tasks)


def test_tpe_is_not_drawn_to_where_trials_are_stopped() -> None:
    """Half of the space looks best at its first rung, where all of it is stopped."""
    proposals = Proposals(Search(space=SPACE, searcher="tpe", trials=60), [])
    stopped = []
    for _ in range(60):
        (task,) = proposed(proposals, 1)
        stopped.append(task.settings["edges.0.weight"] > 0.5)
        proposals.tell(task.number, [-1.0] if stopped[-1] else [objective(task.settings)], stopped=stopped[-1])
    assert any(stopped[:10])
    assert sum(stopped[-30:]) <= 6


def test_what_was_begun_comes_first_as_it_was_and_counts() -> None:
    for searcher in ("random", "tpe"):
        search = Search(space=SPACE, searcher=searcher, trials=6)
        before = tried(Proposals(search, []), 4)
        begun = [before[0], before[1], before[3]]  # number 2 was never begun
        again = tried(Proposals(search, begun), 6)
        assert [task.number for task in again] == [0, 1, 3, 2, 4, 5]
        assert [task.settings for task in again[:3]] == [task.settings for task in begun]
        assert Proposals(search, begun).total == 6


def test_tpe_tries_nothing_twice_when_it_is_resumed() -> None:
    search = Search(space=SPACE, searcher="tpe", trials=30)
    for lost in (0, 5, 14):
        begun = tried(Proposals(search, []), lost)
        again = tried(Proposals(search, begun), 30)
        distinct = {json.dumps(task.settings, sort_keys=True) for task in again}
        assert len(distinct) == len(again) == 30
        assert [task.settings for task in again[:10]] == planned(Search(space=SPACE, searcher="random", trials=10))


def test_a_budget_may_ask_for_more_trials_than_the_recipe() -> None:
    for searcher in ("random", "tpe"):
        search = Search(space=SPACE, searcher=searcher, trials=3)
        assert [task.number for task in proposed(Proposals(search, [], limit=5), 9)] == [0, 1, 2, 3, 4]
    grid = Search(space={"a": Choices(choices=(1, 2))}, searcher="grid")
    with pytest.raises(ValueError, match=r"--budget 3: the grid has 2 points"):
        num_trials(grid, 3)
    population = Search(space={"edges.0.weight": Range(low=0.1, high=0.9)}, searcher="pbt", rungs=2, slices=1)
    with pytest.raises(ValueError, match=r"--budget 3: a population has search\.trials = 24 members"):
        num_trials(population, 3)


@pytest.mark.parametrize("place", ["data.test_fold", "data", "data.val_slice", "train.seed", "search.trials"])
def test_what_decides_how_trials_are_judged_cannot_be_searched(place: str) -> None:
    with pytest.raises(ValueError, match=rf"space: {place} cannot be searched"):
        Search(space={place: Choices(choices=(1, 2))})
    assert Search(space={"data.clip_seconds": Choices(choices=(1.0, 2.0))})


def test_a_limit_ends_the_proposals() -> None:
    proposals = Proposals(Search(space=SPACE, searcher="random", trials=10), [], limit=3)
    assert [task.number for task in proposed(proposals, 9)] == [0, 1, 2]
    assert proposals.propose(slot=0) is None


def test_two_objectives_are_both_told() -> None:
    search = Search(space=SPACE, searcher="tpe", trials=12, second="macs")
    proposals = Proposals(search, [])
    for _ in range(12):
        task = proposed(proposals, 1)[0]
        proposals.tell(task.number, [objective(task.settings), float(task.settings["models.vit.arch.depth"])])
    assert proposals.propose(slot=0) is None


def test_a_choice_may_be_a_whole_table() -> None:
    tables = ({"kind": "alternate", "period": 10}, {"kind": "mutual", "steps": 5})
    for searcher in ("random", "tpe", "grid"):
        search = Search(space={"schedule": Choices(choices=tables)}, searcher=searcher, trials=20)
        seen = [task.settings["schedule"] for task in proposed(Proposals(search, []), 20)]
        assert all(value in tables for value in seen)
        assert all(table in seen for table in tables)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"space": {}}, "nothing to search"),
        ({"space": SPACE, "searcher": "grid"}, "a grid needs choices"),
        ({"space": SPACE, "scheduler": "asha"}, "rungs = 1: must be 2 or more"),
        ({"space": SPACE, "searcher": "random", "second": "macs"}, "needs searcher = 'tpe'"),
        ({"space": SPACE, "halving": 1}, "halving = 1"),
        ({"space": SPACE, "share": 0}, "share = 0: must be above 0 and at most 1"),
        (
            {"space": SPACE, "searcher": "tpe", "scheduler": "hyperband", "rungs": 2},
            "hyperband takes all trials at once",
        ),
        (
            {"space": SPACE, "searcher": "random", "scheduler": "hyperband", "rungs": 2},
            "must be 1 where trials wait",
        ),
        (
            {"space": SPACE, "searcher": "pbt", "rungs": 2, "slices": 1},
            "schedule.period, models.vit.arch.depth cannot change",
        ),
        (
            {"space": {"edges.0.weight": SPACE["edges.0.weight"]}, "searcher": "pbt", "slices": 1},
            "rungs = 1: must be 2 or more",
        ),
    ],
)
def test_searches_that_cannot_be_are_refused(values: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Search(**values)
    with pytest.raises(ValueError, match="low = 2: must be below high = 1"):
        Range(low=2, high=1)
    with pytest.raises(ValueError, match="two or more different"):
        Choices(choices=(1, 1))
