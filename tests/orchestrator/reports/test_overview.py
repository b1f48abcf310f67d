"""The list of a storage's runs and searches says what is known of each, in few requests, whatever state they are in."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from aiobotocore.client import AioBaseClient

from orchestrator.recipes.loader import resolve
from orchestrator.reports.overview import Entry, overview
from orchestrator.runs.lease import Driver, beating, take_over
from orchestrator.storage import object_store
from tests import searches
from tests.drivers import driver_on_another_host, ended_process
from workloads.config.recipe import Recipe
from workloads.runtime.json_files import json_text

STEPS = ("schedule.burn_in=12", "schedule.period=12", "schedule.turns=2")  # 36
SCORES = {"val": {"accuracy": 0.5, "mAP": 0.25}, "test": {"accuracy": 0.75, "mAP": 0.375}}
ELSEWHERE = driver_on_another_host()


@pytest.fixture
def create(storage: str, tiny: Callable[..., Recipe]) -> Callable[..., str]:
    """Write the files of a run, with its outcome where it has one; returns its URI."""
    recipe = resolve(tiny("demo", *STEPS))

    def create(name: str, *, outcome: Any = None, driver: Driver | None = None) -> str:
        uri = object_store.join(storage, name)
        object_store.put_text(object_store.join(uri, "recipe.json"), json_text(recipe))
        if driver is not None:
            take_over(uri, driver)
        if outcome is not None:
            text = outcome if isinstance(outcome, str) else json.dumps(outcome)
            object_store.put_text(object_store.join(uri, "outcome.json"), text)
        return uri

    return create


def outcome(status: str, *, steps: int, models: Any = None, error: str = "") -> dict[str, Any]:
    return {
        "status": status,
        "error": error,
        "resumed_from_step": 0,
        "steps_run": steps,
        "models": models or {},
    }


def add_checkpoint(uri: str, *, step: int, marker: bool = True) -> None:
    folder = object_store.join(uri, "checkpoints", f"step-{step:08}-attempt-1")
    object_store.put_text(
        object_store.join(folder, "state.json"), json.dumps({"validated": {"cnn": [step - 2, 0.125]}})
    )
    if marker:
        object_store.put_text(object_store.join(folder, "COMMITTED.json"), "{}")


def entries(storage: str) -> dict[str, Entry]:
    return {entry.id: entry for entry in overview(storage)}


def statuses(storage: str) -> dict[str, str]:
    return {name: entry.status for name, entry in entries(storage).items()}


def test_a_run_that_is_done_has_its_test_scores_and_all_steps(storage: str, create: Callable[..., str]) -> None:
    create("whole", outcome=outcome("done", steps=36, models={"cnn": SCORES}), driver=ELSEWHERE)
    (entry,) = overview(storage)
    assert (entry.status, entry.kind, entry.recipe) == ("done", "run", "demo")
    assert (entry.part, entry.metric, entry.scores) == ("test", "accuracy", {"cnn": 0.75})
    assert (entry.done, entry.total, entry.quiet_s) == (36, 36, None)


def test_validation_scores_where_the_test_clips_were_left_alone(storage: str, create: Callable[..., str]) -> None:
    create("whole", outcome=outcome("done", steps=36, models={"cnn": {"val": {"mAP": 0.25}, "test": {}}}))
    (entry,) = overview(storage)
    assert (entry.part, entry.metric, entry.scores) == ("val", "mAP", {"cnn": 0.25})


def test_an_unfinished_run_is_as_far_as_its_newest_whole_checkpoint(storage: str, create: Callable[..., str]) -> None:
    uri = create("cut", driver=ELSEWHERE)
    add_checkpoint(uri, step=12)
    add_checkpoint(uri, step=24)
    add_checkpoint(uri, step=30, marker=False)
    (entry,) = overview(storage)
    assert (entry.done, entry.total, entry.checkpoint) == (24, 36, "step-00000024-attempt-1")
    assert (entry.part, entry.metric, entry.scores) == ("val", "mAP", {"cnn": 0.125})


def test_the_status_of_an_unfinished_run_is_what_its_newest_driver_left(
    storage: str, create: Callable[..., str]
) -> None:
    create("running", driver=Driver())
    create("ending", driver=Driver(), outcome=outcome("preempted", steps=5))
    create("killed", driver=ended_process())
    create("not-claimed")
    with beating(create("interrupted", driver=ELSEWHERE), ELSEWHERE):
        pass
    create("preempted", driver=ended_process(), outcome=outcome("preempted", steps=5))
    create("failed", driver=ended_process(), outcome=outcome("failed", steps=5, error="no space"))
    assert statuses(storage) == {
        "running": "running",
        "ending": "running",
        "killed": "killed",
        "not-claimed": "not started",
        "interrupted": "interrupted",
        "preempted": "preempted",
        "failed": "failed",
    }
    failed = entries(storage)["failed"]
    assert (failed.error, failed.done, failed.total) == ("no space", 5, 36)


def test_the_outcome_of_an_earlier_driver_does_not_hide_that_the_run_goes_on(
    tmp_path: Any, tiny: Callable[..., Recipe]
) -> None:
    """In a folder, whose times are finer than whole seconds."""
    uri = str(tmp_path / "resumed")
    object_store.put_text(f"{uri}/recipe.json", json_text(resolve(tiny("demo", *STEPS))))
    take_over(uri, ended_process())
    object_store.put_text(f"{uri}/outcome.json", json.dumps(outcome("preempted", steps=5, error="gone")))
    assert statuses(str(tmp_path)) == {"resumed": "preempted"}
    take_over(uri, ended_process())
    assert statuses(str(tmp_path)) == {"resumed": "killed"}
    take_over(uri, Driver())
    (entry,) = overview(str(tmp_path))
    assert (entry.status, entry.error) == ("running", "")


def test_damaged_files_of_one_run_are_named_and_hide_nothing_else(storage: str, create: Callable[..., str]) -> None:
    create("whole", outcome=outcome("done", steps=36, models={"cnn": SCORES}))
    create("torn", outcome='{"status": "do')
    create("strange", outcome={"status": "done", "resumed_from_step": 0, "steps_run": 1, "models": {"cnn": 1}})
    object_store.put_text(object_store.join(create("no-recipe"), "recipe.json"), "")
    object_store.put_text(object_store.join(storage, "search", "search.json"), "[]")
    found = entries(storage)
    assert {name: len(entry.problems) for name, entry in found.items()} == {
        "whole": 0,
        "torn": 1,
        "strange": 1,
        "no-recipe": 1,
        "search": 1,
    }
    assert found["whole"].status == "done"
    assert found["torn"].status == found["strange"].status == "damaged"
    assert "torn/outcome.json" in found["torn"].problems[0]
    assert (found["no-recipe"].status, found["no-recipe"].total) == ("not started", None)


def test_a_search_has_its_best_objective_and_its_trials(storage: str) -> None:
    trials = searches.write_finished_search(f"{storage}/finished")
    uri = f"{storage}/unfinished"
    searches.write_json(uri, "search.json", value=searches.head())
    for entry in trials[:3]:
        searches.write_task_start(uri, entry)
    for entry in trials[:2]:
        searches.write_task_end(uri, entry)
    take_over(uri, ended_process())
    found = entries(storage)
    best = min(trial["objective"] for trial in trials if trial["status"] == "done")
    finished, unfinished = found["finished"], found["unfinished"]
    assert (finished.kind, finished.status, finished.metric) == ("search", "done", "val log_loss")
    assert (finished.scores, finished.done, finished.total) == ({"best": best}, 24, 24)
    assert (unfinished.status, unfinished.done, unfinished.total) == ("killed", 2, 24)


def test_a_search_that_was_interrupted_says_so_in_its_event_log(storage: str) -> None:
    uri = f"{storage}/stopped"
    searches.write_json(uri, "search.json", value=searches.head())
    take_over(uri, ELSEWHERE)
    with beating(uri, ELSEWHERE):
        pass
    assert statuses(storage) == {"stopped": "interrupted"}
    object_store.put_text(f"{uri}/events.jsonl", '{"kind": "run"}\n{"kind": "end", "status": "preempted"}\n')
    (entry,) = overview(storage)
    assert (entry.status, entry.quiet_s) == ("preempted", None)


def test_the_newest_is_first_and_other_folders_are_left_out(tmp_path: Any, tiny: Callable[..., Recipe]) -> None:
    for name in ("b", "a", "c"):
        object_store.put_text(f"{tmp_path}/{name}/recipe.json", json_text(resolve(tiny())))
    for name in ("artifacts", ".recipes", "a-store"):
        object_store.put_text(f"{tmp_path}/{name}/other.json", "{}")
    assert [entry.id for entry in overview(str(tmp_path))] == ["c", "a", "b"]
    assert overview(str(tmp_path / "nothing")) == []


@pytest.mark.parametrize("storage", ["s3"], indirect=True)
def test_a_run_takes_three_requests_and_an_unfinished_one_seven(
    storage: str, create: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, real = [], AioBaseClient._make_api_call

    async def counted(self: Any, operation: str, parameters: Any) -> Any:
        requests.append(operation)
        return await real(self, operation, parameters)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", counted)
    create("whole", outcome=outcome("done", steps=36, models={"cnn": SCORES}))
    requests.clear()
    overview(storage)
    assert sorted(requests) == ["GetObject"] * 2 + ["ListObjectsV2"] * 2  # one of them of the storage
    add_checkpoint(create("preempted", driver=ended_process(), outcome=outcome("preempted", steps=24)), step=24)
    requests.clear()
    overview(storage)
    assert len(requests) == 1 + 3 + 7
    searches.write_finished_search(f"{storage}/search")
    requests.clear()
    overview(storage)
    assert len(requests) == 1 + 3 + 7 + 3
