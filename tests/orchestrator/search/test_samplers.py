"""Which settings are proposed: grids, random draws, TPE, and what changes when a search is resumed."""

import json
import math

import pytest

from orchestrator.search.samplers import TrialSampler, num_trials, planned_settings
from orchestrator.search.trial_spec import Task
from workloads.config.search import Choices, Range, Search

SPACE = {
    "edges.0.weight": Range(low=0.1, high=0.9),
    "edges.0.temperature": Range(low=1.0, high=8.0, log=True),
    "schedule.period": Choices(choices=(10, 20, 40)),
    "models.vit.arch.depth": Range(low=1, high=4),
}


def next_tasks(sampler: TrialSampler, count: int) -> list[Task]:
    tasks = [sampler.next_task(slot=0) for _ in range(count)]
    return [task for task in tasks if task is not None]


def test_a_grid_has_every_point_once_in_the_order_of_its_axes() -> None:
    space = {"a": Choices(choices=(1, 2)), "b": Choices(choices=("x", "y", "z"))}
    points = planned_settings(Search(space=space, searcher="grid"))
    assert points == [{"a": a, "b": b} for a in (1, 2) for b in "xyz"]
    sampler = TrialSampler(Search(space=space, searcher="grid", trials=2), [])
    assert [task.settings for task in next_tasks(sampler, 10)] == points


def test_random_draws_stay_within_and_depend_on_seed_and_number_only() -> None:
    search = Search(space=SPACE, searcher="random", trials=300)
    drawn = planned_settings(search)
    assert drawn == planned_settings(Search(space=SPACE, searcher="random", trials=400))[:300]
    assert drawn != planned_settings(Search(space=SPACE, searcher="random", trials=300, seed=1))
    for path, low, high in (("edges.0.weight", 0.1, 0.9), ("edges.0.temperature", 1, 8)):
        values = [settings[path] for settings in drawn]
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(values) <= high
    middle = sorted(settings["edges.0.temperature"] for settings in drawn)[150]
    assert middle == pytest.approx(math.sqrt(8), rel=0.15), "even in the logarithm"
    assert {settings["models.vit.arch.depth"] for settings in drawn} == {1, 2, 3, 4}
    assert {settings["schedule.period"] for settings in drawn} == {10, 20, 40}


def objective(settings: dict) -> float:
    return (settings["edges.0.weight"] - 0.3) ** 2 + 0.1 * (settings["schedule.period"] != 20)


def run_trials(sampler: TrialSampler, count: int) -> list[Task]:
    tasks = []
    for _ in range(count):
        tasks += next_tasks(sampler, 1)
        sampler.on_task_end(tasks[-1].number, [objective(tasks[-1].settings)])
    return tasks


def test_tpe_finds_good_settings() -> None:
    search = Search(space=SPACE, searcher="tpe", trials=60)
    tasks = run_trials(TrialSampler(search, []), 60)
    first = [objective(task.settings) for task in tasks[:10]]
    last = [objective(task.settings) for task in tasks[-20:]]
    assert sum(last) / 20 < 0.5 * sum(first) / 10
    assert all(isinstance(task.settings["models.vit.arch.depth"], int) for task in tasks)


def test_tpe_avoids_settings_at_which_trials_are_stopped() -> None:
    """Half of the space looks best at the first rung, where all its trials are stopped."""
    sampler = TrialSampler(Search(space=SPACE, searcher="tpe", trials=60), [])
    stopped = []
    for _ in range(60):
        (task,) = next_tasks(sampler, 1)
        stopped.append(task.settings["edges.0.weight"] > 0.5)
        sampler.on_task_end(task.number, [-1.0] if stopped[-1] else [objective(task.settings)], stopped=stopped[-1])
    assert any(stopped[:10])
    assert sum(stopped[-30:]) <= 6


def test_trials_that_were_started_come_first_unchanged_and_count() -> None:
    for searcher in ("random", "tpe"):
        search = Search(space=SPACE, searcher=searcher, trials=6)
        before = run_trials(TrialSampler(search, []), 4)
        started = [before[0], before[1], before[3]]  # number 2 was never started
        again = run_trials(TrialSampler(search, started), 6)
        assert [task.number for task in again] == [0, 1, 3, 2, 4, 5]
        assert [task.settings for task in again[:3]] == [task.settings for task in started]
        assert TrialSampler(search, started).total == 6


def test_tpe_tries_no_settings_twice_when_it_is_resumed() -> None:
    search = Search(space=SPACE, searcher="tpe", trials=30)
    for num_before in (0, 5, 14):
        started = run_trials(TrialSampler(search, []), num_before)
        again = run_trials(TrialSampler(search, started), 30)
        distinct = {json.dumps(task.settings, sort_keys=True) for task in again}
        assert len(distinct) == len(again) == 30
        assert [task.settings for task in again[:10]] == planned_settings(
            Search(space=SPACE, searcher="random", trials=10)
        )


def test_a_budget_may_ask_for_more_trials_than_the_recipe() -> None:
    for searcher in ("random", "tpe"):
        search = Search(space=SPACE, searcher=searcher, trials=3)
        assert [task.number for task in next_tasks(TrialSampler(search, [], limit=5), 9)] == [0, 1, 2, 3, 4]
    grid = Search(space={"a": Choices(choices=(1, 2))}, searcher="grid")
    with pytest.raises(ValueError, match=r"--budget 3: the grid has 2 points"):
        num_trials(grid, 3)
    huge = Search(space={key: Choices(choices=tuple(range(200))) for key in "abcd"}, searcher="grid")
    with pytest.raises(ValueError, match=r"the grid has 1,600,000,000 points, must have at most 10,000"):
        num_trials(huge)
    assert len(planned_settings(huge, 7) or ()) == 7
    population = Search(space={"edges.0.weight": Range(low=0.1, high=0.9)}, searcher="pbt", rungs=2, slices=1)
    with pytest.raises(ValueError, match=r"--budget 3: a population has search\.trials = 24 members"):
        num_trials(population, 3)


@pytest.mark.parametrize("path", ["data.test_fold", "data", "data.val_slice", "train.seed", "search.trials"])
def test_what_decides_how_trials_are_judged_cannot_be_searched(path: str) -> None:
    with pytest.raises(ValueError, match=rf"space: {path} cannot be searched"):
        Search(space={path: Choices(choices=(1, 2))})
    assert Search(space={"data.clip_seconds": Choices(choices=(1.0, 2.0))})


def test_a_limit_ends_the_trials() -> None:
    sampler = TrialSampler(Search(space=SPACE, searcher="random", trials=10), [], limit=3)
    assert [task.number for task in next_tasks(sampler, 9)] == [0, 1, 2]
    assert sampler.next_task(slot=0) is None


def test_two_objectives_are_both_used() -> None:
    search = Search(space=SPACE, searcher="tpe", trials=12, second="macs")
    sampler = TrialSampler(search, [])
    for _ in range(12):
        task = next_tasks(sampler, 1)[0]
        sampler.on_task_end(task.number, [objective(task.settings), float(task.settings["models.vit.arch.depth"])])
    assert sampler.next_task(slot=0) is None


def test_a_choice_may_be_a_whole_table() -> None:
    tables = ({"kind": "alternate", "period": 10}, {"kind": "mutual", "steps": 5})
    for searcher in ("random", "tpe", "grid"):
        search = Search(space={"schedule": Choices(choices=tables)}, searcher=searcher, trials=20)
        seen = [task.settings["schedule"] for task in next_tasks(TrialSampler(search, []), 20)]
        assert all(value in tables for value in seen)
        assert all(table in seen for table in tables)


@pytest.mark.parametrize(
    ("values", "message"),
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
def test_invalid_searches_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Search(**values)
    with pytest.raises(ValueError, match="low = 2: must be below high = 1"):
        Range(low=2, high=1)
    with pytest.raises(ValueError, match="two or more different"):
        Choices(choices=(1, 1))
