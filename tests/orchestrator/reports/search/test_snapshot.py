"""A search is read in any state: finished, running, empty, damaged; from a disk and from an object store."""

import json
import os
import re
from typing import Any

import pytest

from orchestrator.reports.search.snapshot import SearchSnapshot, read_search
from orchestrator.search.store import SearchStore
from orchestrator.storage import object_store
from tests import searches

RESULT = searches.results()[0]


def test_a_finished_search_is_read_from_a_disk_and_from_an_object_store(storage: str) -> None:
    entries = searches.write_finished_search(f"{storage}/search-demo-1")
    search = read_search(f"{storage}/search-demo-1")
    assert [trial.number for trial in search.trials] == list(range(24))
    assert [trial.status for trial in search.trials] == [entry["status"] for entry in entries]
    assert [trial.objective for trial in search.trials] == [entry["objective"] for entry in entries]
    assert [dict(trial.settings) for trial in search.trials] == [entry["settings"] for entry in entries]
    assert search.trials[0].steps == 360
    assert search.trials[0].seconds == pytest.approx(38.0)
    assert {(trial.kind, trial.seed) for trial in search.finals} == {
        (kind, seed) for kind in ("winner", "control") for seed in range(3)
    }
    assert search.metric == "val log_loss"
    assert search.slots == 2
    assert search.outcome is not None
    best = min((entry for entry in entries if entry["status"] == "done"), key=lambda entry: entry["objective"])
    assert search.ranked[0].number == best["number"] == search.outcome["best"]["number"]


def test_a_trial_without_a_result_runs_until_the_search_has_an_outcome(tmp_path: Any) -> None:
    uri, entries = str(tmp_path), searches.results()
    searches.write_json(uri, "search.json", value=searches.head())
    for entry in entries[:2]:
        searches.write_task_start(uri, entry)
    searches.write_task_end(uri, entries[0])
    running = read_search(uri)
    assert [trial.status for trial in running.trials] == ["done", "running"]
    assert running.trials[1].slot == entries[1]["slot"]
    assert running.trials[1].seconds is None
    searches.write_json(uri, "outcome.json", value=searches.outcome(entries[:1], comparison=None, status="stopped"))
    assert [trial.status for trial in read_search(uri).trials] == ["done", "interrupted"]


def test_a_finished_search_that_was_resumed_has_no_outcome(tmp_path: Any) -> None:
    uri = str(tmp_path)
    entries = searches.write_finished_search(uri)
    assert (was := read_search(uri).outcome) is not None
    SearchStore(uri).reopen()
    searches.write_task_start(uri, entries[0] | {"number": len(entries), "kind": "trial"})
    running = read_search(uri)
    assert running.outcome is None
    assert running.of_status("running")
    SearchStore(uri).reopen()  # killed before it finished again, and resumed
    assert SearchStore(uri).read_earlier_outcome() == was


def test_finished_trials_are_not_read_again(tmp_path: Any) -> None:
    uri, entries = str(tmp_path), searches.results()
    searches.write_json(uri, "search.json", value=searches.head())
    for entry in entries[:2]:
        searches.write_task_start(uri, entry)
    searches.write_task_end(uri, entries[0])
    before = read_search(uri)
    object_store.put_text(object_store.join(uri, "trials", "0000", "result.json"), "damaged since then")
    searches.write_task_end(uri, entries[1])
    after = read_search(uri, before=before)
    assert after.trials[0] is before.trials[0]
    assert after.trials[1].status == "stopped"


def test_scores_are_compared_where_the_trials_were_judged(tmp_path: Any) -> None:
    entries = searches.write_finished_search(str(tmp_path / "asha"))
    label, scored = read_search(str(tmp_path / "asha")).comparable_scores
    assert label == "after 120 steps"
    assert [score for _, score in scored] == [
        entry["history"][0]["objective"] for entry in entries if entry["status"] != "failed"
    ]
    entries = searches.write_finished_search(str(tmp_path / "all"), scheduler="none")
    label, scored = read_search(str(tmp_path / "all")).comparable_scores
    assert label == "at the end"
    assert [score for _, score in scored] == sorted(
        entry["objective"] for entry in entries if entry["status"] == "done"
    )


def test_trials_whose_schedules_differ_in_steps_are_compared_rung_by_rung(tmp_path: Any) -> None:
    uri, entries = str(tmp_path), searches.results(failing=())
    searches.write_json(uri, "search.json", value=searches.head())
    for entry in entries:
        if entry["number"] % 2:  # half as many steps between its rungs
            entry["history"] = [rung | {"step": rung["step"] // 2} for rung in entry["history"]]
        searches.write_task_end(uri, entry)
    label, scored = read_search(uri).comparable_scores
    assert label == "at rung 1 of 3"
    assert [score for _, score in scored] == [entry["history"][0]["objective"] for entry in entries]


def test_a_running_trial_has_the_rungs_that_it_has_reported(tmp_path: Any) -> None:
    uri, entry = str(tmp_path), searches.results(scheduler="none")[0]
    searches.write_json(uri, "search.json", value=searches.head())
    searches.write_json(uri, "mlflow.json", value={"": "p", "0000": "c"})
    searches.write_task_start(uri, entry)
    began = entry["began"]
    rungs = {"history": entry["history"][:2], "began": began, "loop_seconds": 40.0, "told": began + 50.0}
    searches.write_json(uri, "trials", "0000", "rungs.json", value=rungs)
    search = read_search(uri)
    (trial,) = search.trials
    assert search.last_news == entry["began"] + 50.0
    assert (trial.status, trial.steps, trial.score) == ("running", 240, entry["history"][1]["objective"])
    assert (search.mlflow_path, trial.mlflow_path) == ("p", "c")


def test_a_search_without_news_for_too_long_was_active_until_its_last_news(tmp_path: Any) -> None:
    uri, entries = str(tmp_path), searches.results()
    searches.write_json(uri, "search.json", value=searches.head())
    searches.write_task_start(uri, entries[0])
    search = read_search(uri)
    assert search.active_until(entries[0]["began"] + 60.0) == entries[0]["began"] + 60.0
    assert search.active_until(entries[0]["began"] + 86400.0) == entries[0]["began"]


def test_a_search_whose_driver_has_a_heartbeat_is_active_however_long_its_trials_take(tmp_path: Any) -> None:
    uri, entries = str(tmp_path), searches.results()
    searches.write_json(uri, "search.json", value=searches.head())
    searches.write_task_start(uri, entries[0])
    searches.write_json(uri, "attempts", "1", value={})
    beat = tmp_path / "attempts" / "token.beat"
    beat.write_text("8640")
    os.utime(beat, (entries[0]["began"] + 86395.0,) * 2)
    search = read_search(uri)
    assert search.active_until(entries[0]["began"] + 86400.0) == entries[0]["began"] + 86400.0
    assert search.active_until(entries[0]["began"] + 87000.0) == entries[0]["began"]


def test_a_score_that_is_not_finite_is_none(tmp_path: Any) -> None:
    uri, entry = str(tmp_path), searches.results()[0]
    searches.write_json(uri, "search.json", value=searches.head())
    searches.write_task_end(uri, entry | {"objective": float("nan"), "history": []})
    search: SearchSnapshot = read_search(uri)
    assert search.trials[0].objective is None
    assert search.ranked == []


def test_a_folder_without_a_search_is_the_users_mistake(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"no search\.json there; give a search's folder or URI"):
        read_search(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{half", r"result\.json.*is not JSON"),
        ('{"number": 0}', r"result\.json: kind: field required"),
        ("[]", r"result\.json: its content: input should be a valid dictionary"),
        ('{"number": 0, "kind": "trial", "settings": {}, "seed": 0}', r"result\.json: began: field required"),
        (
            json.dumps(RESULT | {"status": "odd"}),
            r"result\.json: status: input should be 'done', 'stopped' or 'failed'",
        ),
        (json.dumps({key: RESULT[key] for key in RESULT if key != "reason"}), r"result\.json: reason: field required"),
        (json.dumps(RESULT | {"course": [[0]]}), r"result\.json: course\.0\.1: field required"),
    ],
)
def test_a_damaged_trial_is_left_out_and_named(tmp_path: Any, capsys: Any, text: str, message: str) -> None:
    uri = str(tmp_path)
    searches.write_json(uri, "search.json", value=searches.head())
    object_store.put_text(object_store.join(uri, "trials", "0000", "result.json"), text)
    searches.write_task_end(uri, RESULT | {"number": 1})
    assert [trial.name for trial in read_search(uri).trials] == ["0001"]
    assert re.search(rf"left out: .*{message}", " ".join(capsys.readouterr().err.split()))
    object_store.put_text(object_store.join(uri, "search.json"), text)
    with pytest.raises(ValueError, match=r"search\.json"):
        read_search(uri)
