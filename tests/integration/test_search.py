"""A whole search on real Ray: what it leaves, what MLflow shows, and that nothing is lost or done twice."""

import itertools
import json
import statistics
import subprocess
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.runs.records import history
from tests.tiny_search import planned_settings, results, run, wait_until_told

UNEQUAL = (  # half of each trial's steps are not half of each model's
    "search.space.schedule.choices=[{kind='alternate', burn_in=0, period=2, turns=6, order=['vit', 'cnn']}, "
    "{kind='mutual', burn_in=4, steps=8}]"
)

EDGES = 'search.space={"edges.1.weight" = {low = 0.1, high = 1.1}}'
SHAPES = (
    '{"models.cnn.arch.width" = {choices = [0.1, 0.2]}, '
    '"models.cnn.front_end.kind" = {choices = ["logmel64", "logmel40"]}}'
)


def test_a_search_finds_judges_and_records(searching, tmp_path) -> None:
    outcome = run(searching("--search-id", "s"))
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
        f"{kind}-{best['number']:04}-seed-{seed}" for kind in ("control", "winner") for seed in (1, 2)
    ]
    pairs = [finals[f"winner-{best['number']:04}-seed-{s}"]["objective"] for s in (1, 2)]
    controls = [finals[f"control-{best['number']:04}-seed-{s}"]["objective"] for s in (1, 2)]
    mean = sum(ours - theirs for ours, theirs in zip(pairs, controls, strict=True)) / 2
    assert outcome["comparison"]["difference"] == pytest.approx(mean)
    assert outcome["comparison"]["low"] < mean < outcome["comparison"]["high"]
    assert len(outcome["test"]["winner"]["cnn"]["mAP"]) == 2
    assert [finals[f"{kind}-{best['number']:04}-seed-1"]["slice"] for kind in ("winner", "control")] == [2, 2]
    wait_until_told(home)
    check_mlflow(outcome, trials)
    names = json.loads((home / "mlflow.json").read_text())
    assert {name: found.info.run_id for name, found in mlflow_runs(outcome).items()} == names
    assert json.loads((home / "cluster.json").read_text())["slots"] == outcome["slots"]


def mlflow_runs(outcome: dict[str, Any]) -> dict[str, Any]:
    """MLflow's runs by the name of the task; the parent's is empty."""
    client = MlflowClient(outcome["tracking"])
    (experiment,) = (found for found in client.search_experiments() if found.name == "antiphon")
    runs = client.search_runs([experiment.experiment_id])
    return {found.info.run_name if "mlflow.parentRunId" in found.data.tags else "": found for found in runs}


def check_mlflow(outcome: dict[str, Any], trials: dict[str, dict[str, Any]]) -> None:
    """One parent, one child for every task, with settings as parameters and one point a rung."""
    client, children = MlflowClient(outcome["tracking"]), mlflow_runs(outcome)
    parent = children.pop("")
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
def test_finalists_are_repeated_before_one_of_them_wins(searching, tmp_path) -> None:
    """The winner is the finalist with the better mean over seeds, and is then judged by others on other slices."""
    sets = ["search.scheduler=none", "search.finalists=2", "search.slices=2"]
    words = [word for value in sets for word in ("--set", value)]
    outcome = run(searching("--search-id", "s", "--tracking", "none", *words))
    home = tmp_path / "runs" / "s"
    ranked = sorted(results(home).values(), key=lambda found: found["objective"])
    finals = results(home, "finals").values()
    means = {
        number: statistics.fmean(f["objective"] for f in finals if (f["kind"], f["number"]) == ("finalist", number))
        for number in (ranked[0]["number"], ranked[1]["number"])
    }
    assert outcome["winner"]["number"] == min(means, key=lambda number: means[number])
    judged = {kind: {(f["seed"], f["slice"]) for f in finals if f["kind"] == kind} for kind in ("finalist", "winner")}
    assert {seed for seed, _ in judged["finalist"]} == {1, 2}
    assert {seed for seed, _ in judged["winner"]} == {3, 4}
    slices = [[slice_ for _, slice_ in seen] for seen in judged.values()]
    assert len({0, 1, *slices[0], *slices[1]}) == 6, "trials' two slices, and four that chose nobody"


@pytest.mark.slow
def test_a_population_changes_its_values_while_it_learns(searching, tmp_path) -> None:
    """PBT: at every rung the worst goes on from the best, with values near the best's; the winner takes that course."""
    sets = ["search.searcher=pbt", "search.scheduler=none", "schedule.burn_in=0", "schedule.turns=12"]
    words = searching("--search-id", "s", "--tracking", "none")
    outcome = run([*words, *(word for value in sets for word in ("--set", value))])
    home = tmp_path / "runs" / "s"
    trials = results(home)
    assert outcome["completed"] == len(trials) == 4
    assert all([rung["step"] for rung in found["history"]] == [8, 16, 24] for found in trials.values())
    began = planned_settings(searching, tmp_path, *sets)
    moved = [name for name, found in trials.items() if found["settings"] != began[name]]
    assert moved
    for name in moved:
        assert 0.1 <= trials[name]["settings"]["edges.0.weight"] <= 0.9
    event_log = [json.loads(line) for line in (home / "events.jsonl").read_text().splitlines()]
    told: dict[str, list[list[Any]]] = {}
    for record in event_log:
        values = {key.removeprefix("set/"): value for key, value in record.get("values", {}).items() if "set/" in key}
        if values:
            told.setdefault(record["child"], []).append([record["step"] - 1, values])
    assert any(step > 0 for name in trials for step, _ in told[name]), "a value that was taken up at a rung"
    winner = trials[f"{outcome['winner']['number']:04}"]
    assert outcome["winner"]["course"] == winner["course"]
    repeats = results(home, "finals")
    assert len(repeats) == 4
    assert all(told[name] == (winner["course"] or [[0, winner["settings"]]]) for name in repeats)


@pytest.mark.slow
def test_trials_of_two_workers_say_what_trials_of_one_would(searching, tmp_path) -> None:
    """Two shards in two workers of a nested Ray Train run, against two shards one after the other."""
    sets = ["search.rungs=1", "search.scheduler=none", "search.trials=1", "search.repeats=1", "train.shards=2"]
    words = [word for value in sets for word in ("--set", value)]
    several = run(searching("--search-id", "two", "--workers", "2", "--tracking", "none", *words))
    alone = run(searching("--search-id", "one", "--no-finals", "--tracking", "none", *words))
    assert several["slots"] == 1
    assert several["best"]["objective"] == pytest.approx(alone["best"]["objective"], abs=1e-4)
    assert several["test"]["winner"]["cnn"]["mAP"]
    (found,) = results(tmp_path / "runs" / "two").values()
    assert 0 < found["loop_seconds"] < found["ended"] - found["began"], "the start of workers is not training"
    event_log = (tmp_path / "runs" / "two" / "trials" / "0000" / "slice-0" / "models").glob("*/state.json")
    assert [json.loads(path.read_text())["test"] for path in event_log] == [{}, {}], (
        "a trial leaves the test fold alone"
    )


@pytest.mark.slow
def test_trials_of_two_workers_are_stopped_where_trials_of_one_would_be(searching, tmp_path) -> None:
    """ASHA, one trial after the other: a Ray Train run for each rung, which goes on from the one before."""
    sets = ["schedule.turns=6", "search.rungs=2", "search.trials=2", "search.seed=1", "train.shards=2"]
    words = ["--no-finals", "--tracking", "none", *(word for value in sets for word in ("--set", value))]
    several = run(searching("--search-id", "two", "--workers", "2", *words))
    alone = run(searching("--search-id", "one", "--slots", "1", *words))
    assert several["stopped"] == alone["stopped"] == 1
    found, expected = (results(tmp_path / "runs" / name) for name in ("two", "one"))
    for name, trial in expected.items():
        assert found[name]["status"] == trial["status"]
        assert [rung["step"] for rung in found[name]["history"]] == [rung["step"] for rung in trial["history"]]
        assert [rung["objective"] for rung in found[name]["history"]] == pytest.approx(
            [rung["objective"] for rung in trial["history"]], abs=1e-4
        )
    said = history(str(tmp_path / "runs" / "two" / "trials" / "0000" / "slice-0"))
    assert [record["step"] for record in said if record["kind"] == "start"] == [0, 8], "one that is not ended goes on"


@pytest.mark.slow
def test_hyperband_lets_trials_wait_and_go_on(searching, tmp_path) -> None:
    """Whatever varies; here also what is no number."""
    sets = ["search.scheduler=hyperband", "schedule.burn_in=0", "schedule.turns=12", f"search.space={SHAPES}"]
    words = searching("--search-id", "s", "--no-finals", "--tracking", "none")
    outcome = run([*words, *(word for value in sets for word in ("--set", value))])
    trials = results(tmp_path / "runs" / "s")
    assert outcome["completed"] + outcome["stopped"] == len(trials) == 4
    assert outcome["completed"] >= 1
    assert outcome["stopped"] >= 1
    for found in trials.values():
        steps = [rung["step"] for rung in found["history"]]
        assert steps == [8, 16, 24][: len(steps)], "no rung twice, none left out"


@pytest.mark.slow
def test_trials_that_diverge_are_recorded_with_their_reason(searching, tmp_path) -> None:
    words = searching("--search-id", "s", "--no-finals", "--tracking", "none", high="1e38")
    outcome = run([*words, "--set", "models.vit.optimizer.clip_norm=0"], code=1)
    failed = [found for found in results(tmp_path / "runs" / "s").values() if found["status"] == "failed"]
    assert outcome["failed"] == len(failed) == 4
    assert all("not finite" in found["reason"] for found in failed)
    assert (outcome["status"], outcome["best"]) == ("failed", None), "a search in which nothing came to its end"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--budget", "soon"], "must be a number of trials"),
        (["--budget", "2gpuh"], "GPU-hours need train.device = 'cuda'"),
        (["--set", "search.rungs=5"], "search.rungs = 5: must divide"),
        (
            ["--set", UNEQUAL],
            "of some trials have taken cnn 2, vit 2 own steps and those of others cnn 4, vit 4, so who",
        ),
        (
            ["--workers", "2", "--set", "search.scheduler=hyperband"],
            "trials that wait for one another (pbt, hyperband)",
        ),
        (["--full", "3"], "takes 2 trials or more, to rank them again, and search.share = 1 below 1"),
        (["--resume", "nobody"], "no search.json there"),
        (["--set", "data.test_fold=9"], "data.test_fold = 9"),
        (["--set", "search.repeats=6", "--set", "search.finalists=2"], "it takes 13 validation slices"),
        (["--set", "search.searcher=tpe", "--set", EDGES], "edges.1.weight = 1.1: must be between 0 and 1"),
        (["--slots", "500"], "the cluster holds"),
    ],
)
def test_mistakes_are_told_before_anything_is_learned(searching, tmp_path, more, words) -> None:
    done = subprocess.run([*searching(*more), "--tracking", "none"], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    assert words in " ".join(done.stderr.split())
    assert not list((tmp_path / "runs").glob("*/trials"))


@pytest.mark.slow
def test_full_runs_after_the_search_tell_whether_its_ranking_holds(searching, tmp_path) -> None:
    """A search that is done goes on with --full: nothing is learned again, and three trials are, over all steps."""
    sets = ["search.share=0.5", "schedule.burn_in=8", "schedule.turns=8", "search.scheduler=none"]
    words = [word for value in sets for word in ("--set", value)]
    first = run(searching("--search-id", "s", "--tracking", "none", *words))
    trials = {name: found["ended"] for name, found in results(tmp_path / "runs" / "s").items()}
    second = run(searching("--resume", "s", "--no-finals", "--full", "3", "--tracking", "none", *words))
    assert {name: found["ended"] for name, found in results(tmp_path / "runs" / "s").items()} == trials
    ranked = sorted(results(tmp_path / "runs" / "s").values(), key=lambda found: found["objective"])
    finals = results(tmp_path / "runs" / "s", "finals")
    full = {name: found for name, found in finals.items() if found["kind"] == "full"}
    assert sorted(full) == sorted(f"full-{ranked[place]['number']:04}" for place in (0, 2, 3))
    assert all(found["history"][-1]["step"] == 24 for found in full.values())
    agreement = second["agreement"]
    assert agreement["short"] == [ranked[place]["objective"] for place in (0, 2, 3)]
    assert agreement["full"] == [full[f"full-{number:04}"]["objective"] for number in agreement["trials"]]
    pairs = itertools.combinations(zip(agreement["short"], agreement["full"], strict=True), 2)
    same = [(a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in pairs]
    assert agreement["tau"] == pytest.approx((2 * sum(same) - len(same)) / len(same))
    assert first["agreement"] is None
    assert first["comparison"] is not None
    for told in ("winner", "comparison", "test"):
        assert second[told] == first[told], "what was found before stays where nothing was learned for it again"
    assert second["overhead_s_per_trial"] == first["overhead_s_per_trial"]
    assert second["seconds"] > first["seconds"]


@pytest.mark.slow
def test_a_time_budget_ends_a_search_that_whoever_resumes_completes(searching, tmp_path) -> None:
    """Trials under way at the end of the time are nobody's result: they are done when the search goes on."""
    sets = ["search.trials=500", "search.scheduler=none", "search.rungs=1", "schedule.turns=24"]
    words = ["--no-finals", *(word for value in sets for word in ("--set", value))]
    first = run(searching("--search-id", "s", "--budget", "50s", *words))
    home = tmp_path / "runs" / "s"
    before = results(home)
    assert 0 < first["completed"] == len(before) <= first["trials"] < 500  # most often two are cut off
    assert first["stopped"] == first["failed"] == 0
    wait_until_told(home)
    status = {name: child.info.status for name, child in mlflow_runs(first).items() if name}
    assert status == {f"{n:04}": "FINISHED" if f"{n:04}" in before else "KILLED" for n in range(first["trials"])}
    second = run(searching("--resume", "s", "--budget", str(first["trials"]), *words))
    assert second["completed"] == second["trials"] == first["trials"]
    after = results(home)
    assert {name: after[name] for name in before} == before
    planned = planned_settings(searching, tmp_path, *sets)
    assert all(found["settings"] == planned[name] for name, found in after.items())
    wait_until_told(home)
    assert all(child.info.status == "FINISHED" for child in mlflow_runs(second).values())


@pytest.mark.slow
def test_score_against_size_over_widths_and_front_ends(searching, tmp_path) -> None:
    """Two objectives; whatever a recipe can set varies, here a number inside a model and the kind of its front end."""
    sets = [
        "search.searcher=tpe",
        "search.scheduler=none",
        "search.rungs=1",
        "search.second=macs",
        f"search.space={SHAPES}",
    ]
    words = [word for value in sets for word in ("--set", value)]
    outcome = run(searching("--search-id", "s", "--no-finals", "--tracking", "none", *words))
    trials = results(tmp_path / "runs" / "s").values()
    assert outcome["completed"] == len(trials) == 4
    sizes: dict[tuple[Any, ...], set[float]] = {}
    for found in trials:
        shape = (found["settings"]["models.cnn.arch.width"], found["settings"]["models.cnn.front_end.kind"])
        sizes.setdefault(shape, set()).add(found["second"])
    assert all(len(macs) == 1 for macs in sizes.values())
    assert len(sizes) > 1
    assert len(set.union(*sizes.values())) == len(sizes), "another shape is another number of multiply-adds"
