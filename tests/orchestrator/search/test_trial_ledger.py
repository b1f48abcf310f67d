"""What a search's driver tells of its tasks: to the spool, from which MLflow is told, and to whoever proposes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.search.finals import finals
from orchestrator.search.store import read_result, write_result, write_settings
from orchestrator.search.trial_ledger import Desk
from orchestrator.search.trial_spec import Task
from orchestrator.storage import object_store
from orchestrator.tracking.nested_runs import NAMES
from workloads.config.recipe import Recipe
from workloads.config.search import Range, Search
from workloads.runtime.event_log import Spool, read_spool

WINNER = Task("winner", 0, {"edges.0.weight": 0.5}, seed=1)


class Heard:
    """Proposes nothing, and keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, list[float] | None, bool]] = []

    def propose(self, slot: int) -> Task | None:
        return None

    def tell(self, number: int, objectives: list[float] | None, *, stopped: bool = False) -> None:
        self.told.append((number, objectives, stopped))


class Sure:
    """Whatever it runs comes to its end, with the seed for a score."""

    def __init__(self, home: Path) -> None:
        self.home, self.ran = str(home), 0

    def run_listed(self, tasks: list[Task]) -> float:
        for task in tasks:
            self.ran += read_result(self.home, task) is None
            end(self.home, task, "done", float(task.seed or 0))
        return 0.0


def end(home: str, task: Task, status: str, objective: float | None, **more: Any) -> None:
    write_settings(home, task, began=1.0)
    result = {"status": status, "reason": "", "objective": objective, "history": [], "began": 1.0, "loop_seconds": 1.0}
    write_result(home, task, result | more)


@pytest.fixture
def recipe(tiny: Callable[..., Recipe]) -> Recipe:
    search = Search(space={"edges.0.weight": Range(low=0.1, high=0.9)}, slices=1, repeats=2, finalists=2)
    return replace(tiny(), search=search)


@pytest.fixture
def desk(recipe: Recipe, tmp_path: Path) -> Desk:
    return Desk(Heard(), recipe, str(tmp_path), Spool(tmp_path / "spool.jsonl"), slots=1)


def kinds(desk: Desk) -> list[str]:
    return [record["kind"] for record in read_spool(desk.spool.path)]


def test_what_a_winner_delivered_is_told_also_by_whoever_only_finds_it(desk: Desk, recipe: Recipe) -> None:
    """Its process committed, and the driver was interrupted before it heard so; a later driver does not repeat it."""
    desk.begin(WINNER)
    end(desk.home, WINNER, "done", 0.4, delivered={"kind": "result", "t": 1, "models": {}})
    desk.leave()
    assert kinds(desk) == ["run", "result", "closed"]
    again = Desk(Heard(), recipe, desk.home, desk.spool, slots=1)
    again.begin(WINNER)
    again.end(WINNER)
    assert kinds(desk) == ["run", "result", "closed"]


def test_a_task_that_could_not_even_begin_is_told_as_one_that_failed(desk: Desk) -> None:
    desk.end(WINNER, error="no memory")
    assert kinds(desk) == ["run", "closed"]
    found = read_result(desk.home, WINNER)
    assert found is not None
    assert (found["status"], found["reason"]) == ("failed", "no memory")


def test_who_proposes_learns_how_a_trial_ended_and_where_it_was_stopped(desk: Desk) -> None:
    rungs = [{"step": 10, "objective": 0.7, "values": {}}, {"step": 20, "objective": 0.6, "values": {}}]
    end(desk.home, Task("trial", 0), "done", 0.5, second=3.0, history=rungs)
    end(desk.home, Task("trial", 1), "stopped", 0.6, history=rungs)
    end(desk.home, Task("trial", 2), "failed", None)
    for number in range(3):
        desk.end(Task("trial", number))
    assert isinstance(desk.source, Heard)
    assert desk.source.told == [(0, [0.5, 3.0], False), (1, [0.7, 0.6], True), (2, None, False)]


def test_a_winner_is_scored_on_the_test_fold_once_however_many_trials_follow(recipe: Recipe, tmp_path: Path) -> None:
    """At first there is one trial, which wins without a choice; then there are two."""
    crew: Any = Sure(tmp_path)
    end(str(tmp_path), Task("trial", 0, {"edges.0.weight": 0.5}), "done", 0.5)
    first = finals(recipe, str(tmp_path), crew)
    ran = crew.ran
    assert {task.kind for task in first} == {"winner", "control"}
    end(str(tmp_path), Task("trial", 1, {"edges.0.weight": 0.2}), "done", 0.4)
    assert finals(recipe, str(tmp_path), crew) == first
    assert crew.ran == ran, "nothing is learned again"


def test_links_to_mlflow_are_beside_a_search_on_an_object_store_while_it_goes_on(
    recipe: Recipe, tmp_path: Path, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    s3_server.client().create_bucket(Bucket="links")
    desk = Desk(Heard(), recipe, "s3://links/s", Spool(tmp_path / "spool.jsonl"), slots=1)
    desk.begin(Task("trial", 0))
    (tmp_path / NAMES).write_text('{"": "p", "0000": "c"}')
    desk.hear(Task("trial", 0), {"records": [], "rung": {"step": 10, "objective": 0.7, "values": {}}})
    assert object_store.get_text(f"s3://links/s/{NAMES}") == (tmp_path / NAMES).read_text()
