"""One trial: what it learns, how it is judged, that it never sees the test fold, and that it happens once."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.recipes.loader import load_recipe
from orchestrator.search.rungs import judge, judged_models, rung_steps
from orchestrator.search.store import known_trials, read_result
from orchestrator.search.summary import compared
from orchestrator.search.trial_runner import learn
from orchestrator.search.trial_spec import Task, trial_recipe, without_teachers
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


def learned(recipe: Recipe, task: Task, search_uri: Path) -> list[dict[str, Any]]:
    news: list[dict[str, Any]] = []
    learn(recipe, task, str(search_uri), news.append)
    return news


def test_a_trial_is_judged_at_every_rung_as_a_run_would_be(recipe, start, tmp_path) -> None:
    made = recipe()
    news = learned(made, Task("trial", 0, {"edges.0.weight": 0.3}), tmp_path)
    assert [heard["rung"]["step"] for heard in news] == [4, 8, 12]
    run = start(trial_recipe(made, {"edges.0.weight": 0.3}))
    list(advance(run))
    records = [json.loads(line) for line in run.history.path.read_text().splitlines()]
    last: dict[str, float] = {}
    for record in records:
        if record["kind"] == "metrics":
            last |= {key: value for key, value in record["values"].items() if "/val/" in key}
    assert news[-1]["rung"]["values"] == last
    assert news[-1]["rung"]["objective"] == (last["cnn/val/log_loss"] + last["vit/val/log_loss"]) / 2


@pytest.mark.parametrize("second", ["macs", "latency_ms"])
def test_the_second_objective_is_the_cost_of_a_clip_over_the_judged_models(recipe, tmp_path, second) -> None:
    made = recipe(rungs=1, second=second)
    learned(made, Task("trial", 0, {"edges.0.weight": 0.3}), tmp_path)
    found = read_result(str(tmp_path), Task("trial", 0))
    assert found is not None
    shape: dict[str, Any] = {"num_classes": 10, "clip_seconds": made.data.clip_seconds, "clip_rate": made.rate}
    models = [made.models[name] for name in ("cnn", "vit")]
    if second == "macs":
        assert found["second"] == sum(model_size(model, **shape).macs for model in models)
    else:  # the unit, on a machine as busy as it likes
        assert 0.1 < found["second"] / sum(1000 * seconds_per_clip(model, **shape) for model in models) < 10


def test_settings_change_what_is_learned(recipe, tmp_path) -> None:
    made = recipe(rungs=1)
    low, high = (
        learned(made, Task("trial", number, {"edges.0.weight": weight}), tmp_path)[-1]["rung"]["objective"]
        for number, weight in enumerate((0.1, 0.9))
    )
    assert low != high


def test_a_committed_trial_is_told_again_and_not_learned_again(recipe, tmp_path) -> None:
    made, task = recipe(), Task("trial", 5, {"edges.0.weight": 0.5})
    first = learned(made, task, tmp_path)
    result = (tmp_path / "trials" / "0005" / "result.json").read_text()
    again = learned(made, task, tmp_path)
    assert [heard["rung"] for heard in again] == [heard["rung"] for heard in first]
    assert all(heard["records"] == [] for heard in again)
    assert (tmp_path / "trials" / "0005" / "result.json").read_text() == result
    ((known, found),) = known_trials(str(tmp_path))
    assert known.settings == task.settings
    assert found is not None
    assert found["objective"] == first[-1]["rung"]["objective"]
    assert 0 < found["loop_seconds"] < found["ended"] - found["began"]


def steered(news: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """From which step on a weight held, as it is told."""
    records = [
        record for heard in news for record in heard["records"] if "set/edges.0.weight" in record.get("values", ())
    ]
    return [(record["step"] - 1, record["values"]["set/edges.0.weight"]) for record in records]


def test_a_winner_learns_by_the_course_that_led_its_trial_there(recipe, tmp_path) -> None:
    """A member that takes up a checkpoint with another value, and the same course from the start."""
    made = recipe(searcher="pbt")
    other, member = Task("trial", 0, {"edges.0.weight": 0.2}), Task("trial", 1, {"edges.0.weight": 0.8})
    first = learned(made, other, tmp_path)
    learn(made, member, str(tmp_path), lambda news: None, start=first[1]["kept"])
    found = read_result(str(tmp_path), member)
    assert found is not None
    assert found["course"] == [[0, {"edges.0.weight": 0.2}], [8, {"edges.0.weight": 0.8}]]
    winner = Task("winner", 1, member.settings, course=found["course"])
    news = learned(made, winner, tmp_path)
    assert steered(news) == [(0, 0.2), (8, 0.8)]
    assert [heard["rung"]["objective"] for heard in news] == [rung["objective"] for rung in found["history"]]
    constant = learned(made, Task("winner", 2, member.settings), tmp_path)
    assert constant[-1]["rung"]["objective"] != news[-1]["rung"]["objective"]


def test_an_interrupted_winner_goes_on_with_the_values_that_held_there(recipe, tmp_path) -> None:
    made = recipe(searcher="pbt")
    course = [(0, {"edges.0.weight": 0.2}), (4, {"edges.0.weight": 0.5}), (8, {"edges.0.weight": 0.8})]
    task = Task("winner", 0, {"edges.0.weight": 0.8}, course=course)
    whole = learned(made, task, tmp_path / "whole")

    class Lost(Exception):
        pass

    def lose(news: dict[str, Any]) -> None:
        if news["height"] == 1:
            raise Lost

    with pytest.raises(Lost):
        learn(made, task, str(tmp_path / "cut"), lose)
    news = learned(made, task, tmp_path / "cut")
    assert [heard["height"] for heard in news] == [2, 3], "rungs before the loss are not told again"
    assert steered(news) == [(4, 0.5), (8, 0.8)]
    assert [heard["rung"] for heard in news] == [heard["rung"] for heard in whole[1:]]
    assert not any(heard["kept"] for heard in news), "Tune hands nothing of a final's to a retry"


def test_only_a_winner_and_its_control_hear_the_test_fold(recipe, tmp_path) -> None:
    made = recipe(rungs=1)
    results = {}
    for kind in ("trial", "winner", "control"):
        task = Task(kind, 0, {"edges.0.weight": 0.5}, seed=0)
        news = learned(made, task, tmp_path)
        results[kind] = read_result(str(tmp_path), task)
        assert any(record["kind"] == "result" for record in news[-1]["records"]) is (kind != "trial")
    assert "test" not in results["trial"]
    assert not any("/test/" in key for key in results["trial"]["history"][-1]["values"])
    assert set(results["winner"]["test"]) == {"cnn", "vit"}
    assert results["winner"]["objective"] == results["trial"]["objective"], "the same seed and settings"
    assert results["winner"]["objective"] != results["control"]["objective"], "the control has no teachers"


def test_the_control_does_not_depend_on_what_teaches(recipe, tmp_path) -> None:
    made = recipe(rungs=1)
    objectives = []
    for number, weight in enumerate((0.1, 0.9)):
        task = Task("control", number, {"edges.0.weight": weight}, seed=0)
        learned(made, task, tmp_path)
        objectives.append(read_result(str(tmp_path), task)["objective"])
    assert objectives[0] == objectives[1]


def test_slices_are_learned_apart_and_judged_by_their_mean(recipe, tmp_path) -> None:
    task = Task("trial", 0, {"edges.0.weight": 0.5})
    both = learned(recipe(rungs=1, slices=2), task, tmp_path / "both")[-1]["rung"]["values"]
    alone = [
        learned(recipe(f"data.val_slice={number}", rungs=1), task, tmp_path / str(number))[-1]["rung"]["values"]
        for number in range(2)
    ]
    assert alone[0] != alone[1]
    assert both == pytest.approx({key: (alone[0][key] + alone[1][key]) / 2 for key in alone[0]})
    with pytest.raises(ValueError, match=r"search\.slices = 11: data\.val_share = 0\.1 makes 10 slices"):
        trial_recipe(recipe(rungs=1, slices=11), {})


def test_a_trial_takes_its_share_of_the_schedule(recipe, tmp_path) -> None:
    plan = ("schedule.burn_in=8", "schedule.period=2", "schedule.turns=8")  # 24 steps
    made = recipe(*plan, rungs=3, share=0.5)
    assert learned(made, Task("trial", 0, {}), tmp_path)[-1]["rung"]["step"] == 12
    assert learned(made, Task("full", 0, {}), tmp_path)[-1]["rung"]["step"] == 24
    short = trial_recipe(made, {}).schedule
    assert (short.burn_in, short.period, short.turns) == (4, 2, 4), "a turn stays as long as it is"
    with pytest.raises(ValueError, match=r"schedule\.turns = 8: search\.share = 0\.3 of it is no whole number"):
        trial_recipe(recipe("schedule.burn_in=10", "schedule.turns=8", rungs=1, share=0.3), {})


def test_rungs_are_told_while_the_trial_goes_on(recipe, tmp_path) -> None:
    told = []

    def report(news: dict[str, Any]) -> None:
        told.append(json.loads((tmp_path / "trials" / "0000" / "rungs.json").read_text()))

    learn(recipe(), Task("trial", 0, {}), str(tmp_path), report)
    assert [[rung["step"] for rung in rungs["history"]] for rungs in told] == [[4], [4, 8], [4, 8]], (
        "the last is in the result"
    )


def test_a_repeat_is_judged_on_the_slice_it_is_given(recipe, tmp_path) -> None:
    made = recipe(rungs=1, slices=2)
    repeat = learned(made, Task("winner", 0, {}, seed=0, slice=3), tmp_path)[-1]["rung"]["values"]
    alone = learned(recipe("data.val_slice=3", rungs=1), Task("trial", 0, {}), tmp_path / "a")[-1]["rung"]["values"]
    assert repeat == alone


def test_what_can_never_work_is_a_result_with_its_reason(recipe, tmp_path) -> None:
    made = recipe("models.cnn.optimizer.lr=1e30", rungs=1)
    task = Task("trial", 1, {"edges.0.weight": 0.5})
    news = learned(made, task, tmp_path)
    result = read_result(str(tmp_path), task)
    assert news[-1]["rung"] is None
    assert result["status"] == "failed"
    assert result["objective"] is None
    assert result["reason"].startswith("BadNumbers: ")


def test_rungs_that_judge_unequal_turns_are_refused(recipe) -> None:
    uneven = recipe("schedule.burn_in=4", "schedule.period=3", "schedule.turns=4", rungs=2)
    with pytest.raises(ValueError, match=r"schedule.period = 3: at step 8, .* different numbers of turns"):
        trial_recipe(uneven, {})
    with pytest.raises(ValueError, match=r"search.rungs = 5: must divide the schedule's 12 steps"):
        trial_recipe(recipe(rungs=5), {})
    assert rung_steps(recipe(rungs=1), recipe(rungs=1).search) == [12]


def test_a_setting_that_makes_no_recipe_is_refused(recipe) -> None:
    with pytest.raises(ValueError, match=r"edges\.0\.weight = 2\.0: must be between 0 and 1"):
        trial_recipe(recipe(), {"edges.0.weight": 2})


def test_accuracy_needs_one_tag_a_clip(recipe) -> None:
    with pytest.raises(ValueError, match=r"needs data\.labels = 'single'"):
        recipe(metric="accuracy")


def test_objectives_are_turned_so_that_less_is_better(recipe) -> None:
    values = {"cnn/val/log_loss": 0.5, "vit/val/log_loss": 0.7, "cnn/val/mAP": 0.8, "vit/val/mAP": 0.4}
    assert judge(Search(space=SPACE), recipe(), values) == pytest.approx(0.6)
    assert judge(Search(space=SPACE, metric="mAP"), recipe(), values) == pytest.approx(0.4)
    assert judge(Search(space=SPACE, metric="mAP", models=("vit",)), recipe(), values) == pytest.approx(0.6)


FROZEN = ('schedule={kind="one_way", teachers=["cnn"], teacher_steps=0, steps=12}', "models.cnn.init=somewhere")
FROM_CNN = 'edges=[{teacher="cnn", student="vit"}]'


def test_a_teacher_that_never_learns_is_not_judged_and_stays_away_from_the_control() -> None:
    made = load_recipe("demo", [*FROZEN, FROM_CNN])
    assert judged_models(Search(space=SPACE), made) == ("vit",)
    assert judge(Search(space=SPACE), made, {"vit/val/log_loss": 0.7}) == pytest.approx(0.7)
    control = without_teachers(made)
    assert (tuple(control.models), control.edges) == (("vit",), ())
    assert own_steps(plan_phases(control)) == {"vit": 12}
    with pytest.raises(ValueError, match=r"first judged, cnn has not learned yet"):
        judged_models(Search(space=SPACE, models=("cnn",)), made)


def test_a_student_that_begins_late_cannot_be_judged_before() -> None:
    late = load_recipe("demo", [FROZEN[0].replace("teacher_steps=0", "teacher_steps=12"), FROM_CNN])
    assert judged_models(Search(space=SPACE), late) == ("cnn", "vit")
    with pytest.raises(ValueError, match=r"search\.rungs = 2: at step 12, .* vit has not learned yet"):
        judged_models(Search(space=SPACE, rungs=2), late)


def test_the_interval_is_students_over_pairs_whose_training_sets_overlap() -> None:
    found = compared([-0.03, -0.01, -0.02], val_share=0.2)
    # mean -0.02, standard deviation 0.01, t(0.975, 2) = 4.302653; a quarter as many are tested as are trained
    assert found["difference"] == pytest.approx(-0.02)
    assert found["high"] == pytest.approx(-0.02 + 4.302653 * 0.01 * (1 / 3 + 1 / 4) ** 0.5, abs=1e-6)
    assert found["excludes_control"] is False
    assert compared([-0.03, -0.031, -0.029], val_share=0.2)["excludes_control"] is True
    assert compared([-0.03], val_share=0.2)["excludes_control"] is None
