"""The files of a search as the search reads them; how reports read them: tests/orchestrator/reports/search."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.search.rungs import RungScore
from orchestrator.search.store import SearchStore
from orchestrator.search.summary import ranked_trials
from orchestrator.search.trial_spec import Task
from orchestrator.storage import object_store
from tests import searches

TASK = Task("trial", 3, {"edges.0.weight": 0.5}, hyperparameter_history=[(0, {"edges.0.weight": 0.2})])
ENDED = {"status": "done", "reason": "", "objective": 0.5, "began": 1.0, "loop_seconds": 1.0}


@pytest.fixture
def store(tmp_path: Path) -> SearchStore:
    return SearchStore(str(tmp_path))


def test_a_task_is_read_as_it_was_written(store: SearchStore, tmp_path: Path) -> None:
    store.write_settings(TASK, began=1.0)
    fields = json.loads((tmp_path / "trials" / "0003" / "settings.json").read_text())
    assert fields.pop("began") == 1.0
    assert sorted(fields) == ["course", "kind", "number", "seed", "settings", "slice", "slot"]
    assert Task.from_json(TASK.as_json()) == TASK


def test_a_result_is_committed_once(store: SearchStore) -> None:
    store.write_result(TASK, ENDED | {"course": []}, [RungScore(4, 0.5, {"cnn/val/ece": 0.1})])
    store.write_result(TASK, ENDED | {"status": "stopped"}, [])
    result = store.read_result(TASK)
    assert result is not None
    assert (result["status"], result["course"]) == ("done", []), "the trial's own history, not its task's"
    assert result["history"] == [{"step": 4, "objective": 0.5, "values": {"cnn/val/ece": 0.1}}]


def damage(store: SearchStore, name: str) -> None:
    object_store.put_text(object_store.join(store.uri, name), '{"a":' * 500 + "1" + "}" * 500)


def test_a_finished_trial_is_known_by_its_result_alone(store: SearchStore) -> None:
    store.write_settings(TASK, began=1.0)
    store.write_result(TASK, ENDED, [])
    damage(store, "trials/0003/settings.json")
    ((task, result),) = store.known_trials()
    assert (task.kind, task.number, task.settings, task.seed) == ("trial", 3, {"edges.0.weight": 0.5}, None)
    assert result == store.read_result(TASK)
    assert [result["number"] for result in ranked_trials(store)] == [3]


def test_a_trial_without_result_whose_settings_are_damaged_stops_the_drivers(
    store: SearchStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another trial could win in its place, and other settings would go on from its checkpoints."""
    store.write_settings(TASK, began=1.0)
    store.write_settings(replace(TASK, number=4), began=1.0)
    damage(store, "trials/0003/settings.json")
    with pytest.raises(ValueError, match=r"0003/settings\.json: is nested too deeply.*delete \S+/trials/0003 to run"):
        store.known_trials()
    store.write_settings(replace(TASK, kind="finalist", seed=1), began=1.0)
    with pytest.raises(ValueError, match=r"settings\.json: is nested too deeply.*; restore it$"):
        store.known_trials()
    store.create(searches.head())
    files = store.read_all()
    assert files is not None
    assert [task.name for task in files.trials if task.settings] == ["0004"]
    assert "left out: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["search.json", "outcome.json", "trials/0003/result.json"])
def test_a_damaged_file_is_named(store: SearchStore, name: str) -> None:
    store.write_settings(TASK, began=1.0)
    object_store.put_text(object_store.join(store.uri, name), "{half")
    with pytest.raises(ValueError, match=rf"{name}.*is not JSON .*damaged or written by something else"):
        (store.read_definition(), store.reopen(), store.known_trials())
