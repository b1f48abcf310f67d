"""What a search's driver tells of its tasks: to the spool, from which MLflow is told, and to whoever proposes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.search.finals import finals
from orchestrator.search.store import read_result, write_result, write_settings
from orchestrator.search.trial_ledger import TrialLedger
from orchestrator.search.trial_spec import Task
from orchestrator.storage import object_store
from orchestrator.tracking.nested_runs import RUN_IDS_FILE
from workloads.config.recipe import Recipe
from workloads.config.search import Range, Search
from workloads.runtime.event_log import EventLog, read_event_log

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

    def __init__(self, search_uri: Path) -> None:
        self.search_uri, self.ran = str(search_uri), 0

    def run_listed(self, tasks: list[Task]) -> float:
        for task in tasks:
            self.ran += read_result(self.search_uri, task) is None
            end(self.search_uri, task, "done", float(task.seed or 0))
        return 0.0


def end(search_uri: str, task: Task, status: str, objective: float | None, **more: Any) -> None:
    write_settings(search_uri, task, began=1.0)
    result = {"status": status, "reason": "", "objective": objective, "history": [], "began": 1.0, "loop_seconds": 1.0}
    write_result(search_uri, task, result | more)


@pytest.fixture
def recipe(tiny: Callable[..., Recipe]) -> Recipe:
    search = Search(space={"edges.0.weight": Range(low=0.1, high=0.9)}, slices=1, repeats=2, finalists=2)
    return replace(tiny(), search=search)


@pytest.fixture
def ledger(recipe: Recipe, tmp_path: Path) -> TrialLedger:
    return TrialLedger(Heard(), recipe, str(tmp_path), EventLog(tmp_path / "events.jsonl"), slots=1)


def kinds(ledger: TrialLedger) -> list[str]:
    return [record["kind"] for record in read_event_log(ledger.event_log.path)]


def test_what_a_winner_delivered_is_told_also_by_whoever_only_finds_it(ledger: TrialLedger, recipe: Recipe) -> None:
    """Its process committed, and the driver was interrupted before it heard so; a later driver does not repeat it."""
    ledger.begin(WINNER)
    end(ledger.search_uri, WINNER, "done", 0.4, delivered={"kind": "result", "t": 1, "models": {}})
    ledger.leave()
    assert kinds(ledger) == ["run", "result", "closed"]
    again = TrialLedger(Heard(), recipe, ledger.search_uri, ledger.event_log, slots=1)
    again.begin(WINNER)
    again.end(WINNER)
    assert kinds(ledger) == ["run", "result", "closed"]


def test_a_task_that_could_not_even_begin_is_told_as_one_that_failed(ledger: TrialLedger) -> None:
    ledger.end(WINNER, error="no memory")
    assert kinds(ledger) == ["run", "closed"]
    found = read_result(ledger.search_uri, WINNER)
    assert found is not None
    assert (found["status"], found["reason"]) == ("failed", "no memory")


def test_who_proposes_learns_how_a_trial_ended_and_where_it_was_stopped(ledger: TrialLedger) -> None:
    rungs = [{"step": 10, "objective": 0.7, "values": {}}, {"step": 20, "objective": 0.6, "values": {}}]
    end(ledger.search_uri, Task("trial", 0), "done", 0.5, second=3.0, history=rungs)
    end(ledger.search_uri, Task("trial", 1), "stopped", 0.6, history=rungs)
    end(ledger.search_uri, Task("trial", 2), "failed", None)
    for number in range(3):
        ledger.end(Task("trial", number))
    assert isinstance(ledger.source, Heard)
    assert ledger.source.told == [(0, [0.5, 3.0], False), (1, [0.7, 0.6], True), (2, None, False)]


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
    ledger = TrialLedger(Heard(), recipe, "s3://links/s", EventLog(tmp_path / "events.jsonl"), slots=1)
    ledger.begin(Task("trial", 0))
    (tmp_path / RUN_IDS_FILE).write_text('{"": "p", "0000": "c"}')
    ledger.hear(Task("trial", 0), {"records": [], "rung": {"step": 10, "objective": 0.7, "values": {}}})
    assert object_store.get_text(f"s3://links/s/{RUN_IDS_FILE}") == (tmp_path / RUN_IDS_FILE).read_text()
