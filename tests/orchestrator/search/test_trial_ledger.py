"""What a search's driver records of its tasks: in the event log, which is sent to MLflow, and to the task source."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.search.finals import run_finals
from orchestrator.search.rungs import RungScore
from orchestrator.search.store import SearchStore
from orchestrator.search.trial_ledger import TrialLedger
from orchestrator.search.trial_spec import SearchPlan, Task, search_plan
from orchestrator.storage import object_store
from orchestrator.tracking.nested_runs import RUN_PATHS_FILE
from workloads.config.recipe import Recipe
from workloads.config.search import Range, Search
from workloads.runtime.event_log import EventLog, read_event_log

WINNER = Task("winner", 0, {"edges.0.weight": 0.5}, seed=1)


class RecordingSource:
    """Has no tasks, and records how tasks end."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, list[float] | None, bool]] = []

    def next_task(self, slot: int) -> Task | None:
        return None

    def on_task_end(self, number: int, objectives: list[float] | None, *, stopped: bool = False) -> None:
        self.ends.append((number, objectives, stopped))


class SucceedingRunner:
    """Every task that it runs finishes, with its seed as objective."""

    def __init__(self, store: SearchStore) -> None:
        self.store, self.num_run = store, 0

    def run_listed(self, tasks: list[Task]) -> float:
        for task in tasks:
            self.num_run += self.store.read_result(task) is None
            write_end(self.store, task, "done", float(task.seed or 0))
        return 0.0


def write_end(
    store: SearchStore,
    task: Task,
    status: str,
    objective: float | None,
    history: tuple[RungScore, ...] = (),
    **more: Any,
) -> None:
    store.write_settings(task, began=1.0)
    result = {"status": status, "reason": "", "objective": objective, "began": 1.0, "loop_seconds": 1.0}
    store.write_result(task, result | more, list(history))


@pytest.fixture
def plan(tiny: Callable[..., Recipe]) -> SearchPlan:
    search = Search(space={"edges.0.weight": Range(low=0.1, high=0.9)}, slices=1, repeats=2, finalists=2)
    return search_plan(replace(tiny(), search=search))


@pytest.fixture
def store(tmp_path: Path) -> SearchStore:
    return SearchStore(str(tmp_path))


@pytest.fixture
def ledger(plan: SearchPlan, store: SearchStore, tmp_path: Path) -> TrialLedger:
    return TrialLedger(RecordingSource(), plan.recipe, store, EventLog(tmp_path / "events.jsonl"), slots=1, repeats=2)


def kinds(ledger: TrialLedger) -> list[str]:
    return [record["kind"] for record in read_event_log(ledger.event_log.path)]


def test_a_winners_delivery_is_logged_also_where_only_its_result_is_found(
    ledger: TrialLedger, store: SearchStore, plan: SearchPlan
) -> None:
    """Its process committed, and the driver was interrupted before the report; a later driver does not repeat it."""
    ledger.on_start(WINNER)
    write_end(store, WINNER, "done", 0.4, delivered={"kind": "result", "t": 1, "models": {}})
    ledger.on_shutdown()
    assert kinds(ledger) == ["run", "result", "closed"]
    later = TrialLedger(RecordingSource(), plan.recipe, store, ledger.event_log, slots=1, repeats=2)
    later.on_start(WINNER)
    later.on_end(WINNER)
    assert kinds(ledger) == ["run", "result", "closed"]


def test_a_task_that_could_not_even_start_is_recorded_as_failed(ledger: TrialLedger, store: SearchStore) -> None:
    ledger.on_end(WINNER, error="no memory")
    assert kinds(ledger) == ["run", "closed"]
    result = store.read_result(WINNER)
    assert result is not None
    assert (result["status"], result["reason"]) == ("failed", "no memory")


def test_the_source_is_given_how_a_trial_ended_and_where_it_was_stopped(
    ledger: TrialLedger, store: SearchStore
) -> None:
    rungs = (RungScore(10, 0.7, {}), RungScore(20, 0.6, {}))
    write_end(store, Task("trial", 0), "done", 0.5, rungs, second=3.0)
    write_end(store, Task("trial", 1), "stopped", 0.6, rungs)
    write_end(store, Task("trial", 2), "failed", None)
    for number in range(3):
        ledger.on_end(Task("trial", number))
    assert isinstance(ledger.source, RecordingSource)
    assert ledger.source.ends == [(0, [0.5, 3.0], False), (1, [0.7, 0.6], True), (2, None, False)]


def test_a_winner_is_scored_on_the_test_fold_once_however_many_trials_follow(
    plan: SearchPlan, store: SearchStore
) -> None:
    """At first there is one trial, which wins without a choice; then there are two."""
    runner: Any = SucceedingRunner(store)
    write_end(store, Task("trial", 0, {"edges.0.weight": 0.5}), "done", 0.5)
    first = run_finals(plan, store, runner)
    num_run = runner.num_run
    assert {task.kind for task in first} == {"winner", "control"}
    write_end(store, Task("trial", 1, {"edges.0.weight": 0.2}), "done", 0.4)
    assert run_finals(plan, store, runner) == first
    assert runner.num_run == num_run, "no task is run again"
    object_store.remove_file(object_store.join(store.uri, "trials/0000/result.json"))
    with pytest.raises(ValueError, match="trial 0 has runs as the winner but no result of its own"):
        run_finals(plan, store, runner)


def test_mlflow_paths_are_beside_a_search_on_an_object_store_while_it_runs(
    plan: SearchPlan, tmp_path: Path, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    s3_server.client().create_bucket(Bucket="links")
    event_log = EventLog(tmp_path / "events.jsonl")
    ledger = TrialLedger(RecordingSource(), plan.recipe, SearchStore("s3://links/s"), event_log, slots=1, repeats=2)
    ledger.on_start(Task("trial", 0))
    (tmp_path / RUN_PATHS_FILE).write_text('{"": "p", "0000": "c"}')
    ledger.on_result(Task("trial", 0), {"records": [], "rung": {"step": 10, "objective": 0.7, "values": {}}})
    assert object_store.get_bytes(f"s3://links/s/{RUN_PATHS_FILE}") == (tmp_path / RUN_PATHS_FILE).read_bytes()
