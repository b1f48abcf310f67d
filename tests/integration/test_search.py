"""A whole search on real Ray: what it leaves, what MLflow shows, and that nothing is lost or done twice."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests import small

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))
PLAN = ("schedule.burn_in=4", "schedule.period=2", "schedule.turns=4")  # 12 steps
RECIPE = """
extends = "demo"
name = "tiny"
[search]
searcher = "random"
scheduler = "asha"
trials = 4
rungs = 3
halving = 2
repeats = 2
[search.space]
"edges.0.weight" = {{ low = 0.1, high = 0.9 }}
"models.vit.optimizer.lr" = {{ low = 1e-4, high = {high}, log = true }}
"""


@pytest.fixture
def command(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The words of `antiphon search` for a recipe of a second or two a trial."""

    def words(*more: str, high: str = "1e-2") -> list[str]:
        recipe = tmp_path / "tiny.toml"
        recipe.write_text(RECIPE.format(high=high))
        cache = tmp_path_factory.getbasetemp() / "clips"
        values = [*small.SIZES, *small.TWO_MODELS, *PLAN, f"data.cache={cache}"]
        sets = [word for value in values for word in ("--set", value)]
        return [ANTIPHON, "search", str(recipe), "--storage", str(tmp_path / "runs"), *sets, *more]

    return words


def run(words: list[str]) -> dict[str, Any]:
    done = subprocess.run([*words, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def results(home: Path, kind: str = "trials") -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(home.glob(f"{kind}/*/result.json"))}


def test_a_search_finds_judges_and_records(command, tmp_path) -> None:
    outcome = run(command("--search-id", "s"))
    home = tmp_path / "runs" / "s"
    trials = results(home)
    assert outcome["trials"] == len(trials) == 4
    assert outcome["completed"] + outcome["stopped"] == 4
    assert outcome["failed"] == 0
    done = {name: found for name, found in trials.items() if found["status"] == "done"}
    best = min(done.values(), key=lambda found: found["objective"])
    assert outcome["best"] == {key: best[key] for key in ("number", "settings", "objective")}
    assert all(len(found["history"]) < 3 for found in trials.values() if found["status"] == "stopped")
    assert all(len(found["history"]) == 3 for found in done.values())
    assert outcome["overhead_s_per_trial"] > 0
    finals = results(home, "finals")
    assert sorted(finals) == [
        f"{kind}-{best['number']:04}-seed-{seed}" for kind in ("control", "winner") for seed in (0, 1)
    ]
    pairs = [finals[f"winner-{best['number']:04}-seed-{s}"]["objective"] for s in (0, 1)]
    controls = [finals[f"control-{best['number']:04}-seed-{s}"]["objective"] for s in (0, 1)]
    mean = sum(ours - theirs for ours, theirs in zip(pairs, controls, strict=True)) / 2
    assert outcome["comparison"]["difference"] == pytest.approx(mean)
    assert outcome["comparison"]["low"] < mean < outcome["comparison"]["high"]
    assert len(outcome["test"]["winner"]["cnn"]["mAP"]) == 2
    check_mlflow(outcome, trials)


def check_mlflow(outcome: dict[str, Any], trials: dict[str, dict[str, Any]]) -> None:
    """One parent, one child for every task, with settings as parameters and one point a rung."""
    client = MlflowClient(outcome["tracking"])
    (experiment,) = (found for found in client.search_experiments() if found.name == "antiphon")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (found for found in runs if "mlflow.parentRunId" not in found.data.tags)
    children = {found.info.run_name: found for found in runs if found is not parent}
    assert all(found.data.tags["mlflow.parentRunId"] == parent.info.run_id for found in children.values())
    assert len(children) == 8
    assert parent.info.status == "FINISHED"
    for name, found in trials.items():
        child = children[name]
        told = client.get_metric_history(child.info.run_id, "objective")
        assert [(point.step, point.value) for point in told] == [(r["step"], r["objective"]) for r in found["history"]]
        assert float(child.data.params["edges.0.weight"]) == found["settings"]["edges.0.weight"]
        assert child.info.status == {"done": "FINISHED", "stopped": "KILLED"}[found["status"]]
    for model in ("cnn", "vit"):
        version = client.get_model_version_by_alias(f"tiny-{model}", "best")
        assert "winner" in version.tags["antiphon.run_id"]


@pytest.mark.slow
def test_a_killed_search_goes_on_with_the_same_trials(command, tmp_path) -> None:
    """SIGKILL to the driver and all it started, once a trial is done; every trial ends once, with its own settings."""
    home = tmp_path / "runs" / "s"
    search = subprocess.Popen(
        command("--search-id", "s", "--no-finals", "--tracking", "none", "--slots", "1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not results(home):
        assert time.monotonic() < deadline
        assert search.poll() is None
        time.sleep(0.2)
    os.killpg(search.pid, signal.SIGKILL)
    search.wait()
    before = {path: path.read_bytes() for path in home.glob("trials/*/result.json")}
    assert 1 <= len(before) < 4, "killed in the middle"
    outcome = run(command("--resume", "s", "--no-finals", "--tracking", "none", "--slots", "1"))
    assert outcome["trials"] == 4
    assert {path: path.read_bytes() for path in before} == before, "what was committed stays"
    planned = run_settings(command, tmp_path)
    assert {name: found["settings"] for name, found in results(home).items()} == planned


@pytest.mark.slow
def test_a_population_changes_its_values_while_it_learns(command, tmp_path) -> None:
    """PBT: at every rung the worst goes on from the best, with values near the best's."""
    sets = ["search.searcher=pbt", "search.scheduler=none", "schedule.burn_in=0", "schedule.turns=12"]
    words = command("--search-id", "s", "--no-finals", "--tracking", "none")
    outcome = run([*words, *(word for value in sets for word in ("--set", value))])
    home = tmp_path / "runs" / "s"
    trials = results(home)
    assert outcome["completed"] == len(trials) == 4
    assert all([rung["step"] for rung in found["history"]] == [8, 16, 24] for found in trials.values())
    began = run_settings(command, tmp_path, *sets)
    moved = [name for name, found in trials.items() if found["settings"] != began[name]]
    assert moved
    for name in moved:
        assert 0.1 <= trials[name]["settings"]["edges.0.weight"] <= 0.9
    spool = [json.loads(line) for line in (home / "spool.jsonl").read_text().splitlines()]
    course = [record for record in spool if "set/edges.0.weight" in record.get("values", {})]
    assert {record["child"] for record in course} == set(trials)
    assert any(record["step"] > 1 for record in course), "a value that was taken up at a rung"


@pytest.mark.slow
def test_trials_of_two_workers_say_what_trials_of_one_would(command, tmp_path) -> None:
    """Two shards in two workers of a nested Ray Train run, against two shards one after the other."""
    sets = ["search.rungs=1", "search.scheduler=none", "search.trials=1", "search.repeats=1", "train.shards=2"]
    words = [word for value in sets for word in ("--set", value)]
    several = run(command("--search-id", "two", "--workers", "2", "--tracking", "none", *words))
    alone = run(command("--search-id", "one", "--no-finals", "--tracking", "none", *words))
    assert several["slots"] == 1
    assert several["best"]["objective"] == pytest.approx(alone["best"]["objective"], abs=1e-4)
    assert several["test"]["winner"]["cnn"]["mAP"]
    spool = (tmp_path / "runs" / "two" / "trials" / "0000" / "slice-0" / "models").glob("*/state.json")
    assert [json.loads(path.read_text())["test"] for path in spool] == [{}, {}], "a trial leaves the test fold alone"


@pytest.mark.slow
def test_hyperband_lets_trials_wait_and_go_on(command, tmp_path) -> None:
    sets = ["search.scheduler=hyperband", "schedule.burn_in=0", "schedule.turns=12"]
    words = command("--search-id", "s", "--no-finals", "--tracking", "none")
    outcome = run([*words, *(word for value in sets for word in ("--set", value))])
    trials = results(tmp_path / "runs" / "s")
    assert outcome["completed"] + outcome["stopped"] == len(trials) == 4
    assert outcome["completed"] >= 1
    assert outcome["stopped"] >= 1
    for found in trials.values():
        steps = [rung["step"] for rung in found["history"]]
        assert steps == [8, 16, 24][: len(steps)], "no rung twice, none left out"


def run_settings(command: Any, tmp_path: Path, *more: str) -> dict[str, dict[str, Any]]:
    """The settings that the search tries, asked of the same proposals."""
    from orchestrator.proposals import planned
    from orchestrator.recipe import load_recipe

    words = command()
    sets = [value for word, value in itertools.pairwise(words) if word == "--set"] + [*more]
    search = load_recipe(str(tmp_path / "tiny.toml"), sets).search
    assert search is not None
    return {f"{number:04}": settings for number, settings in enumerate(planned(search) or [])}


@pytest.mark.slow
def test_trials_that_diverge_are_recorded_with_their_reason(command, tmp_path) -> None:
    words = command("--search-id", "s", "--no-finals", "--tracking", "none", high="1e38")
    outcome = run([*words, "--set", "models.vit.optimizer.clip_norm=0"])
    failed = [found for found in results(tmp_path / "runs" / "s").values() if found["status"] == "failed"]
    assert outcome["failed"] == len(failed) > 0
    assert all("not finite" in found["reason"] for found in failed)
    assert outcome["best"] is None or outcome["best"]["objective"] < 10


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--budget", "soon"], "must be a number of trials"),
        (["--budget", "2gpuh"], "GPU-hours need train.device = 'cuda'"),
        (["--set", "search.rungs=5"], "search.rungs = 5: must divide"),
        (["--resume", "nobody"], "no search.json there"),
        (["--slots", "500"], "the cluster holds"),
    ],
)
def test_mistakes_are_told_before_anything_is_learned(command, tmp_path, more, words) -> None:
    done = subprocess.run([*command(*more), "--tracking", "none"], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    assert words in " ".join(done.stderr.split())
    assert not list((tmp_path / "runs").glob("*/trials"))
