"""`antiphon runs` and `antiphon status` on real runs: killed, resumed to the end, elsewhere; and while one goes on."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import status as status_command
from orchestrator.recipes.loader import resolve
from orchestrator.runs.lease import Driver, beating, take_over
from orchestrator.runs.location import location_of
from orchestrator.runs.progress import RunProgress
from orchestrator.storage import object_store, published_folders
from tests import searches
from tests.drivers import driver_on_another_host, ended_process
from workloads.config.recipe import Recipe
from workloads.run import Run
from workloads.runtime.event_log import EventLog
from workloads.runtime.json_files import json_text
from workloads.train import loop

PLAN = ("schedule.burn_in=12", "schedule.period=12", "schedule.turns=2", "train.checkpoint_every=5")  # 36 steps
RUN = "[b]run"  # no markup
TAGS = {"workers": "2"}  # as far as they are read


@pytest.fixture
def killed(storage: str, start: Callable[..., Run], tiny: Callable[..., Recipe], tmp_path: Path) -> str:
    """A run that a killed driver has left after 25 of 36 steps; returns its URI.

    On S3 the published event log is that of the driver's start.
    """
    run, uri = start(tiny("demo", *PLAN)), object_store.join(storage, "cut")
    assert loop(run, until=25) == "preempted"
    folder = run.session.work_dir.parent
    object_store.put_text(object_store.join(uri, "recipe.json"), json_text(resolve(run.recipe)))
    take_over(uri, ended_process())
    first = {"kind": "run", "t": 0, "run_id": "cut", "experiment": "", "name": "demo", "params": {}, "tags": TAGS}
    lines = (folder / "events.jsonl").read_text() if object_store.is_local(storage) else ""
    object_store.put_text(object_store.join(uri, "events.jsonl"), json_text(first) + "\n" + lines)
    for checkpoint in (folder / "checkpoints").iterdir():
        published_folders.publish(checkpoint, object_store.join(uri, "checkpoints", checkpoint.name))
    return uri


def test_a_killed_run_is_shown_as_its_records_and_checkpoints_say(
    storage: str, killed: str, antiphon: Callable[..., Any]
) -> None:
    (listed,) = json.loads(antiphon("runs", "--storage", storage, "--json").out)["runs"]
    assert (listed["id"], listed["status"], listed["done"], listed["total"]) == ("cut", "killed", 25, 36)
    found = json.loads(antiphon("status", killed, "--json").out)
    assert (found["status"], found["step"], found["roles"]) == ("killed", 25, "phase 3/3: vit -> cnn")
    assert found["validation"]["mAP"] == pytest.approx(listed["scores"])
    assert {*found["losses"], *listed["scores"]} == {"cnn", "vit"}
    assert (found["workers"], found["seconds_left"]) == (2, None)
    assert 0 < found["seconds_per_step"] < 60
    source = f"{killed}/events.jsonl" if object_store.is_local(storage) else "the checkpoint of step 25"
    assert found["records"] == source
    shown = antiphon("status", "cut", "--storage", storage).out
    for text in ("killed, last sign of life", "step 25 of 36", "step 25, "):
        assert text in shown
    assert antiphon("status", killed, "--watch").code == 75


@pytest.mark.parametrize("storage", ["s3"], indirect=True)
def test_on_the_machine_of_the_driver_the_records_are_its_own(killed: str, antiphon: Callable[..., Any]) -> None:
    own = location_of(killed.rsplit("/", 1)[0], "cut", "none").event_log
    with EventLog(own) as log:
        log.append({"kind": "start", "step": 0, "attempt": 1, "damaged": []})
        log.append({"kind": "metrics", "step": 31, "values": {"vit/loss": 0.5}})
    found = json.loads(antiphon("status", killed, "--json").out)
    assert (found["step"], found["losses"], found["records"]) == (31, {"vit": 0.5}, str(own))


@pytest.fixture
def ongoing(tmp_path: Path, tiny: Callable[..., Recipe]) -> Path:
    """The folder of a run that this process drives."""
    folder = tmp_path / RUN
    object_store.put_text(f"{folder}/recipe.json", json_text(resolve(tiny("demo", *PLAN))))
    take_over(str(folder), Driver())
    return folder


def phase(index: int, *trains: str) -> dict[str, Any]:
    edges = [{"teacher": "cnn", "student": "vit", "weight": 1.0, "temperature": 1.0}] if trains == ("vit",) else []
    edges = [edge | {"source": "live", "view": "same", "gate": "none"} for edge in edges]
    place = {"step": 12 * index, "index": index, "of": 3, "steps": 12, "total": 36}
    return {"kind": "phase", "t": 1000, **place, "trains": list(trains), "edges": edges}


def test_a_run_is_watched_to_its_end(
    ongoing: Path, antiphon: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instead of sleeping, the command's process writes what a run would have written meanwhile."""
    log = EventLog(ongoing / "events.jsonl")

    def start() -> None:
        log.append({"kind": "run", "t": 0, "run_id": RUN, "experiment": "", "name": "", "params": {}, "tags": TAGS})
        log.append({"kind": "start", "t": 1000, "step": 0, "attempt": 2, "damaged": []})
        log.append(phase(0, "cnn", "vit"))

    def evaluate() -> None:
        log.append({"kind": "metrics", "t": 7000, "step": 12, "values": {"cnn/loss": 0.5, "cnn/val/mAP": 0.25}})
        log.append({"kind": "bad", "t": 7000, "step": 12, "models": ["cnn"], "policy": "skip", "clip_ids": []})

    def next_phase() -> None:
        log.append(phase(1, "vit"))
        log.append({"kind": "worker-failed", "t": 7000, "rank": 1, "error": "[/b] killed"})
        with log.path.open("a") as file:
            file.write('{"kind": "metrics", "t": 7000, "step": 13}\n')  # without values: damaged

    def end() -> None:
        outcome = {"status": "failed", "error": "no space", "resumed_from_step": 0, "steps_run": 12, "models": {}}
        object_store.put_text(f"{ongoing}/outcome.json", json.dumps(outcome))
        driver = Driver(**json.loads((ongoing / "attempts" / "1").read_text())["driver"])
        with beating(str(ongoing), driver):  # leaves the note of its end
            pass

    actions = iter([start, evaluate, lambda: None, next_phase, end])
    monkeypatch.setattr(status_command.time, "sleep", lambda _: next(actions)())
    watched = antiphon("status", ongoing, "--watch")
    assert watched.code == 1
    lines = [line if line[2] != ":" else line[9:] for line in watched.out.splitlines()]
    assert lines == [
        "running; 0 of 36 steps",
        "running; phase 1/3: cnn, vit; step 0 of 36",
        "step 12: numbers of cnn are not finite",
        "running; phase 1/3: cnn, vit; step 12 of 36; 0:00:12 left; loss cnn 0.500; val mAP cnn 0.250",
        "worker 1 has failed: [/b] killed",
        f"left out: 1 damaged lines of {log.path}",
        "running; phase 2/3: cnn -> vit; step 12 of 36; 0:00:12 left; loss cnn 0.500; val mAP cnn 0.250",
        "failed; phase 2/3: cnn -> vit; step 12 of 36; loss cnn 0.500; val mAP cnn 0.250; no space",
    ]


def test_a_terminal_shows_a_table_of_the_run(ongoing: Path) -> None:
    from rich.console import Console

    from orchestrator.reports.run_status import StatusReader

    with EventLog(ongoing / "events.jsonl") as log:
        log.append({"kind": "start", "t": 1000, "step": 0, "attempt": 2, "damaged": ["step-5: weights differ"]})
        log.append(phase(0, "cnn", "vit"))
        log.append({"kind": "metrics", "t": 7000, "step": 12, "values": {"cnn/loss": 0.5}})
    out = io.StringIO()
    reader = StatusReader(str(ongoing), patience_s=0)
    Console(file=out, width=100).print(status_command._table(reader.read()))
    for text in (RUN, "running", "2.00 steps/s", "0:00:12 left", "damaged: step-5: weights differ"):
        assert text in out.getvalue()


def test_a_search_shows_its_trials_and_the_best(tmp_path: Path, antiphon: Callable[..., Any]) -> None:
    trials = searches.write_finished_search(str(tmp_path / "runs" / "s"))
    best = min((trial for trial in trials if trial["status"] == "done"), key=lambda trial: trial["objective"])
    listed = antiphon("runs", "--storage", tmp_path / "runs")
    assert "(search)" in listed.out
    done = antiphon("status", "s", "--storage", tmp_path / "runs", "--watch")
    assert done.code == 0
    assert f"best trial {best['number']:04}: val log_loss {best['objective']:.4f}" in done.out
    assert "trial 0005 has failed: ValueError: <script>" in done.out
    found = json.loads(antiphon("status", tmp_path / "runs" / "s", "--json").out)
    assert (found["done"], found["best"]["number"]) == (24, best["number"])
    assert found["best"]["settings"] == best["settings"]


def test_the_trials_of_a_killed_search_are_not_running(tmp_path: Path, antiphon: Callable[..., Any]) -> None:
    uri, trials = str(tmp_path / "s"), searches.results()
    searches.write_json(uri, "search.json", value=searches.head())
    for entry in trials[:3]:
        searches.write_task_start(uri, entry)
    searches.write_task_end(uri, trials[0])
    take_over(uri, ended_process())
    shown = antiphon("status", uri).out
    for text in ("killed, last sign of life", "1 of 24 trials; 2 unfinished, 1 done"):
        assert text in shown
    assert json.loads(antiphon("status", uri, "--json").out)["running"] == 0
    take_over(uri, Driver())
    assert "1 of 24 trials; 2 running, 1 done" in antiphon("status", uri).out
    seconds = trials[0]["ended"] - trials[0]["began"]  # one at a time, as long as the search has not said how many
    assert json.loads(antiphon("status", uri, "--json").out)["seconds_left"] == pytest.approx(23 * seconds)


def test_a_driver_elsewhere_is_shown_with_its_last_sign_of_life(
    tmp_path: Path, tiny: Callable[..., Recipe], antiphon: Callable[..., Any]
) -> None:
    object_store.put_text(f"{tmp_path}/r/recipe.json", json_text(resolve(tiny("demo", *PLAN))))
    take_over(str(tmp_path / "r"), driver_on_another_host())
    at = (tmp_path / "r" / "attempts" / "1").stat().st_mtime - 180
    os.utime(tmp_path / "r" / "attempts" / "1", (at, at))
    assert "silent, last sign of life 3 min ago" in antiphon("status", tmp_path / "r").out
    assert "silent" in antiphon("runs", "--storage", tmp_path).out


def test_what_is_no_run_is_refused(tmp_path: Path, antiphon: Callable[..., Any]) -> None:
    nothing = antiphon("status", "nightly", "--storage", tmp_path)
    assert nothing.code == 2
    assert f"run '{tmp_path}/nightly': no recipe.json or search.json there" in nothing.err
    empty = antiphon("runs", "--storage", tmp_path)
    assert (empty.code, empty.out) == (0, "")
    assert "there are no runs or searches" in empty.err


def test_the_number_of_workers_is_that_of_the_last_start() -> None:
    """Of a range the run's record knows no number."""
    progress = RunProgress()
    progress.update({"kind": "run", "tags": {"workers": "1-4"}})
    assert progress.workers is None
    for count in (1, 4):
        progress.update({"kind": "workers", "count": count, "nodes": {"10.0.0.1": 1, "10.0.0.2": count - 1}})
        assert progress.workers == count == sum(progress.nodes.values())
