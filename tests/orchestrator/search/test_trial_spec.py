"""One trial: what it trains, how it is judged, that it never scores the test fold, and that it is run once."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.recipes.loader import load_recipe
from orchestrator.search.rungs import judged_models, objective, rung_steps
from orchestrator.search.store import SearchStore
from orchestrator.search.summary import mean_difference
from orchestrator.search.trial_runner import run_trial
from orchestrator.search.trial_spec import Task, build_trial_recipe, search_plan, without_teachers
from tests import small
from workloads.config.recipe import Recipe
from workloads.config.search import Range, Search
from workloads.distill.schedule import own_steps, plan_phases
from workloads.models.size import model_size, seconds_per_clip
from workloads.train import advance

SPACE = {"edges.0.weight": Range(low=0.1, high=0.9)}
PLAN = ("schedule.burn_in=4", "schedule.period=2", "schedule.turns=4")  # 12 steps: rungs at 4, 8, 12


@pytest.fixture
def recipe(tiny: Callable[..., Recipe]) -> Callable[..., Recipe]:
    def make(*settings: str, **search: Any) -> Recipe:
        return replace(
            tiny("demo", *PLAN, *settings), search=Search(space=SPACE, **({"rungs": 3, "slices": 1} | search))
        )

    return make


def reports_of(recipe: Recipe, task: Task, folder: Path, *, start: str = "") -> list[dict[str, Any]]:
    """Run a task of a search in this folder; its reports."""
    reports: list[dict[str, Any]] = []
    run_trial(search_plan(recipe), task, SearchStore(str(folder)), reports.append, start=start)
    return reports


def result_of(task: Task, folder: Path) -> dict[str, Any]:
    result = SearchStore(str(folder)).read_result(task)
    assert result is not None
    return result


def test_a_trial_is_judged_at_every_rung_as_a_run_would_be(recipe, start, tmp_path) -> None:
    search_recipe = recipe()
    reports = reports_of(search_recipe, Task("trial", 0, {"edges.0.weight": 0.3}), tmp_path)
    assert [report["rung"]["step"] for report in reports] == [4, 8, 12]
    run = start(build_trial_recipe(search_plan(search_recipe), {"edges.0.weight": 0.3}))
    list(advance(run))
    records = [json.loads(line) for line in run.history.path.read_text().splitlines()]
    last: dict[str, float] = {}
    for record in records:
        if record["kind"] == "metrics":
            last |= {key: value for key, value in record["values"].items() if "/val/" in key}
    assert reports[-1]["rung"]["values"] == last
    assert reports[-1]["rung"]["objective"] == (last["cnn/val/log_loss"] + last["vit/val/log_loss"]) / 2


@pytest.mark.parametrize("second", ["macs", "latency_ms"])
def test_the_second_objective_is_the_cost_of_a_clip_over_the_judged_models(recipe, tmp_path, second) -> None:
    search_recipe = recipe(rungs=1, second=second)
    reports_of(search_recipe, Task("trial", 0, {"edges.0.weight": 0.3}), tmp_path)
    second_objective = result_of(Task("trial", 0), tmp_path)["second"]
    shape: dict[str, Any] = {
        "num_classes": 10,
        "clip_seconds": search_recipe.data.clip_seconds,
        "clip_rate": search_recipe.rate,
    }
    models = [search_recipe.models[name] for name in ("cnn", "vit")]
    if second == "macs":
        assert second_objective == sum(model_size(model, **shape).macs for model in models)
    else:  # checks the unit only: the machine may be busy
        assert 0.1 < second_objective / sum(1000 * seconds_per_clip(model, **shape) for model in models) < 10


def test_settings_change_the_objective(recipe, tmp_path) -> None:
    search_recipe = recipe(rungs=1)
    low, high = (
        reports_of(search_recipe, Task("trial", number, {"edges.0.weight": weight}), tmp_path)[-1]["rung"]["objective"]
        for number, weight in enumerate((0.1, 0.9))
    )
    assert low != high


@pytest.mark.parametrize("name", ["tkd-demo", "frames-demo"])
def test_the_weight_of_an_edge_that_carries_something_in_time_is_searched(name: str, tmp_path: Path) -> None:
    steps = ("schedule.teacher_steps=2", "schedule.steps=4")
    short = load_recipe(name, [*small.SIZES, *steps, "data.val_share=0.2", f"data.cache={tmp_path}/clips"])
    models = {model: value for model, value in short.models.items() if not value.control_of}
    search_recipe = replace(short, models=models, search=Search(space=SPACE, rungs=1, slices=1))
    objectives = []
    for number, weight in enumerate((0.1, 0.9)):
        task = Task("trial", number, {"edges.0.weight": weight})
        objectives.append(reports_of(search_recipe, task, tmp_path)[-1]["rung"]["objective"])
        (edge,) = build_trial_recipe(search_plan(search_recipe), task.settings).edges
        assert (edge.carries, edge.weight) == (search_recipe.edges[0].carries, weight)
        assert edge.carries in ("temporal", "frames")
    assert objectives[0] != objectives[1]


def test_a_committed_trial_is_reported_again_and_not_run_again(recipe, tmp_path) -> None:
    search_recipe, task = recipe(), Task("trial", 5, {"edges.0.weight": 0.5})
    first = reports_of(search_recipe, task, tmp_path)
    result = (tmp_path / "trials" / "0005" / "result.json").read_text()
    again = reports_of(search_recipe, task, tmp_path)
    assert [report["rung"] for report in again] == [report["rung"] for report in first]
    assert all(report["records"] == [] for report in again)
    assert (tmp_path / "trials" / "0005" / "result.json").read_text() == result
    ((known, committed),) = SearchStore(str(tmp_path)).known_trials()
    assert known.settings == task.settings
    assert committed is not None
    assert committed["objective"] == first[-1]["rung"]["objective"]
    assert 0 < committed["loop_seconds"] < committed["ended"] - committed["began"]


def reported_weights(reports: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """The edge's weights, each with the first step that used it, from the reported records."""
    records = [
        record for report in reports for record in report["records"] if "set/edges.0.weight" in record.get("values", ())
    ]
    return [(record["step"] - 1, record["values"]["set/edges.0.weight"]) for record in records]


def test_a_winner_repeats_the_settings_history_of_its_trial(recipe, tmp_path) -> None:
    """A member resumes from a checkpoint with another value; the winner repeats that history from the start."""
    search_recipe = recipe(searcher="pbt")
    other, member = Task("trial", 0, {"edges.0.weight": 0.2}), Task("trial", 1, {"edges.0.weight": 0.8})
    first = reports_of(search_recipe, other, tmp_path)
    reports_of(search_recipe, member, tmp_path, start=first[1]["checkpoint_uri"])
    result = result_of(member, tmp_path)
    assert result["course"] == [[0, {"edges.0.weight": 0.2}], [8, {"edges.0.weight": 0.8}]]
    winner = Task("winner", 1, member.settings, hyperparameter_history=result["course"])
    reports = reports_of(search_recipe, winner, tmp_path)
    assert reported_weights(reports) == [(0, 0.2), (8, 0.8)]
    assert [report["rung"]["objective"] for report in reports] == [rung["objective"] for rung in result["history"]]
    constant = reports_of(search_recipe, Task("winner", 2, member.settings), tmp_path)
    assert constant[-1]["rung"]["objective"] != reports[-1]["rung"]["objective"]


def test_an_interrupted_winner_resumes_with_the_values_of_its_step(recipe, tmp_path) -> None:
    search_recipe = recipe(searcher="pbt")
    history = [(0, {"edges.0.weight": 0.2}), (4, {"edges.0.weight": 0.5}), (8, {"edges.0.weight": 0.8})]
    task = Task("winner", 0, {"edges.0.weight": 0.8}, hyperparameter_history=history)
    uninterrupted = reports_of(search_recipe, task, tmp_path / "whole")

    class Interrupted(Exception):
        pass

    def interrupt(report: dict[str, Any]) -> None:
        if report["rung_number"] == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_trial(search_plan(search_recipe), task, SearchStore(str(tmp_path / "cut")), interrupt)
    reports = reports_of(search_recipe, task, tmp_path / "cut")
    assert [report["rung_number"] for report in reports] == [2, 3], "rungs before the loss are not reported again"
    assert reported_weights(reports) == [(4, 0.5), (8, 0.8)]
    assert [report["rung"] for report in reports] == [report["rung"] for report in uninterrupted[1:]]
    assert not any(report["checkpoint_uri"] for report in reports), "Tune gives a retry no checkpoint of a final"


def test_only_a_winner_and_its_control_score_the_test_fold(recipe, tmp_path) -> None:
    search_recipe = recipe(rungs=1)
    results = {}
    for kind in ("trial", "winner", "control"):
        task = Task(kind, 0, {"edges.0.weight": 0.5}, seed=0)
        reports = reports_of(search_recipe, task, tmp_path)
        results[kind] = result_of(task, tmp_path)
        assert any(record["kind"] == "result" for record in reports[-1]["records"]) is (kind != "trial")
    assert "test" not in results["trial"]
    assert not any("/test/" in key for key in results["trial"]["history"][-1]["values"])
    assert set(results["winner"]["test"]) == {"cnn", "vit"}
    assert results["winner"]["objective"] == results["trial"]["objective"], "the same seed and settings"
    assert results["winner"]["objective"] != results["control"]["objective"], "the control has no teachers"


def test_the_control_does_not_depend_on_the_teachers_weight(recipe, tmp_path) -> None:
    search_recipe = recipe(rungs=1)
    objectives = []
    for number, weight in enumerate((0.1, 0.9)):
        task = Task("control", number, {"edges.0.weight": weight}, seed=0)
        reports_of(search_recipe, task, tmp_path)
        objectives.append(result_of(task, tmp_path)["objective"])
    assert objectives[0] == objectives[1]


def test_slices_are_trained_separately_and_judged_by_their_mean(recipe, tmp_path) -> None:
    task = Task("trial", 0, {"edges.0.weight": 0.5})
    both = reports_of(recipe(rungs=1, slices=2), task, tmp_path / "both")[-1]["rung"]["values"]
    alone = [
        reports_of(recipe(f"data.val_slice={number}", rungs=1), task, tmp_path / str(number))[-1]["rung"]["values"]
        for number in range(2)
    ]
    assert alone[0] != alone[1]
    assert both == pytest.approx({key: (alone[0][key] + alone[1][key]) / 2 for key in alone[0]})
    with pytest.raises(ValueError, match=r"search\.slices = 11: data\.val_share = 0\.1 makes 10 slices"):
        build_trial_recipe(search_plan(recipe(rungs=1, slices=11)), {})


def test_a_data_set_that_names_its_validation_clips_has_one_slice(recipe) -> None:
    own = recipe("data.format=speechcommands", "data.root=x", rungs=1, slices=1)
    assert build_trial_recipe(search_plan(own), {}, slice_=3).data.val_slice == 0
    two = recipe("data.format=speechcommands", "data.root=x", rungs=1, slices=2)
    message = r"search.slices = 2: data.format = 'speechcommands' names its val.*one slice; --set search.slices=1$"
    with pytest.raises(ValueError, match=message):
        build_trial_recipe(search_plan(two), {})


def test_a_trial_takes_its_share_of_the_schedule(recipe, tmp_path) -> None:
    plan = ("schedule.burn_in=8", "schedule.period=2", "schedule.turns=8")  # 24 steps
    search_recipe = recipe(*plan, rungs=3, share=0.5)
    assert reports_of(search_recipe, Task("trial", 0, {}), tmp_path)[-1]["rung"]["step"] == 12
    assert reports_of(search_recipe, Task("full", 0, {}), tmp_path)[-1]["rung"]["step"] == 24
    short = build_trial_recipe(search_plan(search_recipe), {}).schedule
    assert (short.burn_in, short.period, short.turns) == (4, 2, 4), "a turn keeps its length"
    uneven = recipe("schedule.burn_in=10", "schedule.turns=8", rungs=1, share=0.3)
    with pytest.raises(ValueError, match=r"schedule\.turns = 8: search\.share = 0\.3 of it is no whole number"):
        build_trial_recipe(search_plan(uneven), {})


def test_rungs_are_written_while_the_trial_runs(recipe, tmp_path) -> None:
    written = []

    def report(_: dict[str, Any]) -> None:
        written.append(json.loads((tmp_path / "trials" / "0000" / "rungs.json").read_text()))

    run_trial(search_plan(recipe()), Task("trial", 0, {}), SearchStore(str(tmp_path)), report)
    assert [[rung["step"] for rung in rungs["history"]] for rungs in written] == [[4], [4, 8], [4, 8]], (
        "the last is in the result"
    )


def test_a_repeat_is_judged_on_the_slice_it_is_given(recipe, tmp_path) -> None:
    search_recipe = recipe(rungs=1, slices=2)
    repeat = reports_of(search_recipe, Task("winner", 0, {}, seed=0, slice=3), tmp_path)[-1]["rung"]["values"]
    alone = reports_of(recipe("data.val_slice=3", rungs=1), Task("trial", 0, {}), tmp_path / "a")[-1]["rung"]["values"]
    assert repeat == alone


def test_what_can_never_succeed_is_a_result_with_its_reason(recipe, tmp_path) -> None:
    search_recipe = recipe("models.cnn.optimizer.lr=1e30", rungs=1)
    task = Task("trial", 1, {"edges.0.weight": 0.5})
    reports = reports_of(search_recipe, task, tmp_path)
    result = result_of(task, tmp_path)
    assert reports[-1]["rung"] is None
    assert result["status"] == "failed"
    assert result["objective"] is None
    assert result["reason"].startswith("BadNumbers: ")


def test_rungs_that_judge_unequal_turns_are_refused(recipe) -> None:
    uneven = recipe("schedule.burn_in=4", "schedule.period=3", "schedule.turns=4", rungs=2)
    with pytest.raises(ValueError, match=r"schedule.period = 3: at step 8, .* different numbers of turns"):
        build_trial_recipe(search_plan(uneven), {})
    with pytest.raises(ValueError, match=r"search.rungs = 5: must divide the schedule's 12 steps"):
        build_trial_recipe(search_plan(recipe(rungs=5)), {})
    assert rung_steps(recipe(rungs=1), recipe(rungs=1).search) == [12]


def test_an_invalid_setting_is_refused(recipe) -> None:
    with pytest.raises(ValueError, match=r"edges\.0\.weight = 2\.0: must be between 0 and 1"):
        build_trial_recipe(search_plan(recipe()), {"edges.0.weight": 2})


def test_accuracy_needs_one_tag_per_clip(recipe) -> None:
    with pytest.raises(ValueError, match=r"needs data\.labels = 'single'"):
        recipe(metric="accuracy")


def test_objectives_are_minimised_whatever_the_metric(recipe) -> None:
    values = {"cnn/val/log_loss": 0.5, "vit/val/log_loss": 0.7, "cnn/val/mAP": 0.8, "vit/val/mAP": 0.4}
    assert objective(Search(space=SPACE), recipe(), values) == pytest.approx(0.6)
    assert objective(Search(space=SPACE, metric="mAP"), recipe(), values) == pytest.approx(0.4)
    assert objective(Search(space=SPACE, metric="mAP", models=("vit",)), recipe(), values) == pytest.approx(0.6)


FROZEN = ('schedule={kind="one_way", teachers=["cnn"], teacher_steps=0, steps=12}', "models.cnn.init=somewhere")
FROM_CNN = 'edges=[{teacher="cnn", student="vit"}]'


def test_a_teacher_that_is_never_trained_is_not_judged_and_not_in_the_control() -> None:
    search_recipe = load_recipe("demo", [*FROZEN, FROM_CNN, "compare=false"])
    assert judged_models(Search(space=SPACE), search_recipe) == ("vit",)
    assert objective(Search(space=SPACE), search_recipe, {"vit/val/log_loss": 0.7}) == pytest.approx(0.7)
    control = without_teachers(search_recipe)
    assert (tuple(control.models), control.edges) == (("vit",), ())
    assert own_steps(plan_phases(control)) == {"vit": 12}
    with pytest.raises(ValueError, match=r"first judged, cnn has not been trained yet"):
        judged_models(Search(space=SPACE, models=("cnn",)), search_recipe)


def test_a_student_that_starts_late_cannot_be_judged_before() -> None:
    late = load_recipe("demo", [FROZEN[0].replace("teacher_steps=0", "teacher_steps=12"), FROM_CNN, "compare=false"])
    assert judged_models(Search(space=SPACE), late) == ("cnn", "vit")
    with pytest.raises(ValueError, match=r"search\.rungs = 2: at step 12, .* vit has not been trained yet"):
        judged_models(Search(space=SPACE, rungs=2), late)


def test_the_interval_is_students_over_pairs_whose_training_sets_overlap() -> None:
    difference = mean_difference([-0.03, -0.01, -0.02], val_share=0.2)
    # mean -0.02, standard deviation 0.01, t(0.975, 2) = 4.302653; a quarter as many are tested as are trained
    assert difference["difference"] == pytest.approx(-0.02)
    assert difference["high"] == pytest.approx(-0.02 + 4.302653 * 0.01 * (1 / 3 + 1 / 4) ** 0.5, abs=1e-6)
    assert difference["excludes_control"] is False
    assert mean_difference([-0.03, -0.031, -0.029], val_share=0.2)["excludes_control"] is True
    assert mean_difference([-0.03], val_share=0.2)["excludes_control"] is None
