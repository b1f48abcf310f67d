"""A whole search on real Ray: its files, its MLflow runs, and that nothing is lost or done twice."""

import itertools
import json
import statistics
import subprocess
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.reports.overview import overview
from orchestrator.runs.records import checkpointed_records
from tests.tiny_search import expected_settings, results, run, sets, wait_until_replayed

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
    folder = tmp_path / "runs" / "s"
    trials = results(folder)
    assert outcome["trials"] == len(trials) == 4
    assert outcome["completed"] + outcome["stopped"] == 4
    assert outcome["failed"] == 0
    done = {name: result for name, result in trials.items() if result["status"] == "done"}
    best = min(done.values(), key=lambda result: result["objective"])
    assert outcome["best"] == {key: best[key] for key in ("number", "settings", "objective")}
    assert all(len(result["history"]) < 3 for result in trials.values() if result["status"] == "stopped")
    assert all(len(result["history"]) == 3 for result in done.values())
    assert outcome["overhead_s_per_trial"] > 0
    finals = results(folder, "finals")
    assert sorted(finals) == [
        f"{kind}-{best['number']:04}-seed-{seed}" for kind in ("control", "winner") for seed in (1, 2)
    ]
    winners = [finals[f"winner-{best['number']:04}-seed-{s}"]["objective"] for s in (1, 2)]
    controls = [finals[f"control-{best['number']:04}-seed-{s}"]["objective"] for s in (1, 2)]
    mean = sum(winner - control for winner, control in zip(winners, controls, strict=True)) / 2
    assert outcome["comparison"]["difference"] == pytest.approx(mean)
    assert outcome["comparison"]["low"] < mean < outcome["comparison"]["high"]
    assert len(outcome["test"]["winner"]["cnn"]["mAP"]) == 2
    assert [finals[f"{kind}-{best['number']:04}-seed-1"]["slice"] for kind in ("winner", "control")] == [2, 2]
    wait_until_replayed(folder)
    check_mlflow(outcome, trials)
    paths = json.loads((folder / "mlflow.json").read_text())
    assert {name: run_path(run.info) for name, run in mlflow_runs(outcome).items()} == paths
    assert json.loads((folder / "cluster.json").read_text())["slots"] == outcome["slots"]
    (listed,) = overview(str(tmp_path / "runs"))
    assert (listed.id, listed.kind, listed.recipe, listed.status) == ("s", "search", "tiny", "done")
    assert (listed.scores, listed.done, listed.total) == ({"best": best["objective"]}, 4, 4)


def run_path(info: Any) -> str:
    return f"experiments/{info.experiment_id}/runs/{info.run_id}"


def mlflow_runs(outcome: dict[str, Any]) -> dict[str, Any]:
    """MLflow runs by task name; the parent's is empty."""
    client = MlflowClient(outcome["tracking"])
    (experiment,) = (one for one in client.search_experiments() if one.name == "antiphon")
    runs = client.search_runs([experiment.experiment_id])
    return {run.info.run_name if "mlflow.parentRunId" in run.data.tags else "": run for run in runs}


def check_mlflow(outcome: dict[str, Any], trials: dict[str, dict[str, Any]]) -> None:
    """One parent, one child for every task, with settings as parameters and one point per rung."""
    client, children = MlflowClient(outcome["tracking"]), mlflow_runs(outcome)
    parent = children.pop("")
    assert all(child.data.tags["mlflow.parentRunId"] == parent.info.run_id for child in children.values())
    assert len(children) == 8
    assert parent.info.status == "FINISHED"
    for name, result in trials.items():
        child = children[name]
        points = [(point.step, point.value) for point in client.get_metric_history(child.info.run_id, "objective")]
        assert points == [(rung["step"], rung["objective"]) for rung in result["history"]]
        assert float(child.data.params["edges.0.weight"]) == result["settings"]["edges.0.weight"]
        assert child.info.status == {"done": "FINISHED", "stopped": "KILLED"}[result["status"]]
    for model in ("cnn", "vit"):
        version = client.get_model_version_by_alias(f"tiny-{model}", "best")
        assert "winner" in version.tags["antiphon.run_id"]


@pytest.mark.slow
def test_finalists_are_repeated_before_one_of_them_wins(searching, tmp_path) -> None:
    """The winner is the finalist with the better mean over seeds, and is then judged with others on other slices."""
    words = sets("search.scheduler=none", "search.finalists=2", "search.slices=2")
    outcome = run(searching("--search-id", "s", "--tracking", "none", *words))
    folder = tmp_path / "runs" / "s"
    ranked = sorted(results(folder).values(), key=lambda result: result["objective"])
    finals = results(folder, "finals").values()
    means = {
        number: statistics.fmean(f["objective"] for f in finals if (f["kind"], f["number"]) == ("finalist", number))
        for number in (ranked[0]["number"], ranked[1]["number"])
    }
    assert outcome["winner"]["number"] == min(means, key=lambda number: means[number])
    judged = {kind: {(f["seed"], f["slice"]) for f in finals if f["kind"] == kind} for kind in ("finalist", "winner")}
    assert {seed for seed, _ in judged["finalist"]} == {1, 2}
    assert {seed for seed, _ in judged["winner"]} == {3, 4}
    slices = [[slice_ for _, slice_ in seen] for seen in judged.values()]
    assert len({0, 1, *slices[0], *slices[1]}) == 6, "two slices of the trials, and four that were not used to choose"


@pytest.mark.slow
def test_a_population_changes_its_values_during_training(searching, tmp_path) -> None:
    """PBT: at every rung the worst resumes from the best, with values near the best's; the winner repeats them all."""
    values = ("search.searcher=pbt", "search.scheduler=none", "schedule.burn_in=0", "schedule.turns=12")
    outcome = run(searching("--search-id", "s", "--tracking", "none", *sets(*values)))
    folder = tmp_path / "runs" / "s"
    trials = results(folder)
    assert outcome["completed"] == len(trials) == 4
    assert all([rung["step"] for rung in result["history"]] == [8, 16, 24] for result in trials.values())
    planned = expected_settings(searching, tmp_path, *values)
    changed = [name for name, result in trials.items() if result["settings"] != planned[name]]
    assert changed
    for name in changed:
        assert 0.1 <= trials[name]["settings"]["edges.0.weight"] <= 0.9
    event_log = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    reported: dict[str, list[list[Any]]] = {}
    for record in event_log:
        metrics = record.get("values", {})
        settings = {key.removeprefix("set/"): value for key, value in metrics.items() if "set/" in key}
        if settings:
            reported.setdefault(record["child"], []).append([record["step"] - 1, settings])
    assert any(step > 0 for name in trials for step, _ in reported[name]), "values that changed at a rung"
    winner = trials[f"{outcome['winner']['number']:04}"]
    assert outcome["winner"]["course"] == winner["course"]
    repeats = results(folder, "finals")
    assert len(repeats) == 4
    assert all(reported[name] == (winner["course"] or [[0, winner["settings"]]]) for name in repeats)


@pytest.mark.slow
def test_trials_of_two_workers_score_as_trials_of_one(searching, tmp_path) -> None:
    """Two shards in two workers of a nested Ray Train run, against two shards one after the other."""
    words = sets("search.rungs=1", "search.scheduler=none", "search.trials=1", "search.repeats=1", "train.shards=2")
    several = run(searching("--search-id", "two", "--workers", "2", "--tracking", "none", *words))
    alone = run(searching("--search-id", "one", "--no-finals", "--tracking", "none", *words))
    assert several["slots"] == 1
    assert several["best"]["objective"] == pytest.approx(alone["best"]["objective"], abs=1e-4)
    assert several["test"]["winner"]["cnn"]["mAP"]
    (result,) = results(tmp_path / "runs" / "two").values()
    assert 0 < result["loop_seconds"] < result["ended"] - result["began"], "the start of workers is not training"
    states = (tmp_path / "runs" / "two" / "trials" / "0000" / "slice-0" / "models").glob("*/*/state.json")
    assert [json.loads(path.read_text())["test"] for path in states] == [{}, {}], "a trial does not score the test fold"


@pytest.mark.slow
def test_trials_of_two_workers_are_stopped_where_trials_of_one_would_be(searching, tmp_path) -> None:
    """ASHA, one trial after the other: a Ray Train run for each rung, which resumes from the previous one."""
    values = ("schedule.turns=6", "search.rungs=2", "search.trials=2", "search.seed=1", "train.shards=2")
    words = ["--no-finals", "--tracking", "none", *sets(*values)]
    several = run(searching("--search-id", "two", "--workers", "2", *words))
    alone = run(searching("--search-id", "one", "--slots", "1", *words))
    assert several["stopped"] == alone["stopped"] == 1
    of_two, of_one = (results(tmp_path / "runs" / name) for name in ("two", "one"))
    for name, expected in of_one.items():
        result = of_two[name]
        assert result["status"] == expected["status"]
        assert [rung["step"] for rung in result["history"]] == [rung["step"] for rung in expected["history"]]
        assert [rung["objective"] for rung in result["history"]] == pytest.approx(
            [rung["objective"] for rung in expected["history"]], abs=1e-4
        )
    records = checkpointed_records(str(tmp_path / "runs" / "two" / "trials" / "0000" / "slice-0"))
    starts = [record["step"] for record in records if record["kind"] == "start"]
    assert starts == [0, 8], "one that is not stopped continues"


@pytest.mark.slow
def test_hyperband_pauses_and_resumes_trials(searching, tmp_path) -> None:
    """Settings of any type may vary; here also strings."""
    values = ("search.scheduler=hyperband", "schedule.burn_in=0", "schedule.turns=12", f"search.space={SHAPES}")
    outcome = run(searching("--search-id", "s", "--no-finals", "--tracking", "none", *sets(*values)))
    trials = results(tmp_path / "runs" / "s")
    assert outcome["completed"] + outcome["stopped"] == len(trials) == 4
    assert outcome["completed"] >= 1
    assert outcome["stopped"] >= 1
    for result in trials.values():
        steps = [rung["step"] for rung in result["history"]]
        assert steps == [8, 16, 24][: len(steps)], "no rung twice, none left out"


@pytest.mark.slow
def test_trials_that_diverge_are_recorded_with_their_reason(searching, tmp_path) -> None:
    words = searching("--search-id", "s", "--no-finals", "--tracking", "none", high="1e38")
    outcome = run([*words, "--set", "models.vit.optimizer.clip_norm=0"], code=1)
    failed = [result for result in results(tmp_path / "runs" / "s").values() if result["status"] == "failed"]
    assert outcome["failed"] == len(failed) == 4
    assert all("not finite" in result["reason"] for result in failed)
    assert (outcome["status"], outcome["best"]) == ("failed", None), "a search in which no trial finished"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "soon"], "must be a number of trials"),
        (["--budget", "2gpuh"], "GPU-hours need train.device = 'cuda'"),
        (["--set", "search.rungs=5"], "search.rungs = 5: must divide"),
        (
            ["--set", UNEQUAL],
            "of some trials have taken cnn 2, vit 2 own steps and those of others cnn 4, vit 4, so which",
        ),
        (
            ["--workers", "2", "--set", "search.scheduler=hyperband"],
            "trials that wait for one another (pbt, hyperband)",
        ),
        (["--full", "3"], "takes 2 trials or more, to rank them again, and search.share = 1 below 1"),
        (["--resume", "unknown"], "no search.json there"),
        (["--set", "data.test_fold=9"], "data.test_fold = 9"),
        (["--set", "search.repeats=6", "--set", "search.finalists=2"], "it takes 13 validation slices"),
        (["--set", "search.searcher=tpe", "--set", EDGES], "edges.1.weight = 1.1: must be between 0 and 1"),
    ],
)
def test_mistakes_are_refused_before_anything_is_trained(searching, antiphon, tmp_path, more, message) -> None:
    _, *words = searching(*more)
    done = antiphon(*words, "--tracking", "none")
    assert done.code == 2, done.err[-2000:]
    assert message in " ".join(done.err.split())
    assert not list((tmp_path / "runs").glob("*/trials"))


def test_more_slots_than_the_cluster_holds_are_refused(searching, tmp_path) -> None:
    done = subprocess.run([*searching("--slots", "500"), "--tracking", "none"], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "the cluster holds" in " ".join(done.stderr.split())
    assert not list((tmp_path / "runs").glob("*/trials"))


@pytest.mark.slow
def test_full_runs_after_the_search_show_whether_its_ranking_holds(searching, tmp_path) -> None:
    """A finished search is resumed with --full: three trials are run again, over all steps, and nothing else is."""
    words = sets("search.share=0.5", "schedule.burn_in=8", "schedule.turns=8", "search.scheduler=none")
    first = run(searching("--search-id", "s", "--tracking", "none", *words))
    trials = {name: result["ended"] for name, result in results(tmp_path / "runs" / "s").items()}
    second = run(searching("--resume", "s", "--no-finals", "--full", "3", "--tracking", "none", *words))
    assert {name: result["ended"] for name, result in results(tmp_path / "runs" / "s").items()} == trials
    ranked = sorted(results(tmp_path / "runs" / "s").values(), key=lambda result: result["objective"])
    finals = results(tmp_path / "runs" / "s", "finals")
    full = {name: result for name, result in finals.items() if result["kind"] == "full"}
    assert sorted(full) == sorted(f"full-{ranked[place]['number']:04}" for place in (0, 2, 3))
    assert all(result["history"][-1]["step"] == 24 for result in full.values())
    agreement = second["agreement"]
    assert agreement["short"] == [ranked[place]["objective"] for place in (0, 2, 3)]
    assert agreement["full"] == [full[f"full-{number:04}"]["objective"] for number in agreement["trials"]]
    pairs = itertools.combinations(zip(agreement["short"], agreement["full"], strict=True), 2)
    same = [(a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in pairs]
    assert agreement["tau"] == pytest.approx((2 * sum(same) - len(same)) / len(same))
    assert first["agreement"] is None
    assert first["comparison"] is not None
    for key in ("winner", "comparison", "test"):
        assert second[key] == first[key], "fields of an earlier outcome stay where nothing was run for them again"
    assert second["overhead_s_per_trial"] == first["overhead_s_per_trial"]
    assert second["seconds"] > first["seconds"]


@pytest.mark.slow
def test_a_time_budget_ends_a_search_which_can_be_resumed_to_completion(searching, tmp_path) -> None:
    """Trials that run when the time is up have no result: they are run again when the search is resumed."""
    # Trials of a few steps: on any machine some end within the budget and nowhere near 500 of them.
    values = ("search.trials=500", "search.scheduler=none", "search.rungs=1", "schedule.turns=6")
    words = ["--no-finals", *sets(*values)]
    first = run(searching("--search-id", "s", "--budget", "60s", *words))
    folder = tmp_path / "runs" / "s"
    before = results(folder)
    assert 0 < first["completed"] == len(before) <= first["trials"] < 500  # most often two are cut off
    assert first["stopped"] == first["failed"] == 0
    wait_until_replayed(folder)
    status = {name: child.info.status for name, child in mlflow_runs(first).items() if name}
    assert status == {f"{n:04}": "FINISHED" if f"{n:04}" in before else "KILLED" for n in range(first["trials"])}
    second = run(searching("--resume", "s", "--budget", str(first["trials"]), *words))
    assert second["completed"] == second["trials"] == first["trials"]
    after = results(folder)
    assert {name: after[name] for name in before} == before
    planned = expected_settings(searching, tmp_path, *values)
    assert all(result["settings"] == planned[name] for name, result in after.items())
    wait_until_replayed(folder)
    assert all(child.info.status == "FINISHED" for child in mlflow_runs(second).values())


@pytest.mark.slow
def test_score_against_size_over_widths_and_front_ends(searching, tmp_path) -> None:
    """Two objectives; any value of a recipe may vary, here a number inside a model and the kind of its front end."""
    objectives = ("search.searcher=tpe", "search.second=macs", f"search.space={SHAPES}")
    words = sets(*objectives, "search.scheduler=none", "search.rungs=1")
    outcome = run(searching("--search-id", "s", "--no-finals", "--tracking", "none", *words))
    trials = results(tmp_path / "runs" / "s").values()
    assert outcome["completed"] == len(trials) == 4
    sizes: dict[tuple[Any, ...], set[float]] = {}
    for result in trials:
        shape = (result["settings"]["models.cnn.arch.width"], result["settings"]["models.cnn.front_end.kind"])
        sizes.setdefault(shape, set()).add(result["second"])
    assert all(len(macs) == 1 for macs in sizes.values())
    assert len(sizes) > 1
    assert len(set.union(*sizes.values())) == len(sizes), "another shape is another number of multiply-adds"
