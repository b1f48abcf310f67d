"""Recipes that teach keyword spotters when to listen, made small: control and student are measured alike."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.recipes.loader import load_recipe

SMALL = ("data.synthetic_clips=60", "data.clip_seconds=1.0", "data.val_share=0.25", "train.shard_size=8")
STEPS = ("schedule.teacher_steps=2", "schedule.steps=2", "train.eval_every=2", "train.log_every=1")


def as_options(settings: tuple[str, ...]) -> list[str]:
    return [word for value in settings for word in ("--set", value)]


def test_student_and_control_differ_by_the_temporal_edge_alone() -> None:
    recipe = load_recipe("tkd-demo")
    assert [*recipe.models] == ["teacher", "student", "control"]
    assert recipe.models["control"].control_of == "student"
    assert recipe.models["control"].arch == recipe.models["student"].arch
    assert [(edge.teacher, edge.student, edge.carries) for edge in recipe.edges] == [("teacher", "student", "temporal")]
    assert (recipe.data.format, recipe.data.keywords) == ("keywords", "formant")


def test_the_run_gives_the_attention_mass_of_both_in_both_test_results(antiphon: Any, tmp_path: Path) -> None:
    cache = (f"data.cache={tmp_path}/clips",)
    options = as_options((*SMALL, *STEPS, *cache))
    run = ("--local", "--tracking", "none", "--storage", tmp_path, "--run-id", "k", "--json")
    done = antiphon("run", "tkd-demo", *run, *options)
    assert done.code == 0, done.err
    assert "attention mass" in done.err
    outcome = json.loads(done.out)
    masses = {name: row["test"]["attention_mass"] for name, row in outcome["models"].items()}
    assert set(masses) == {"teacher", "student", "control"}
    assert all(0 < mass < 1 for mass in masses.values())
    compared = outcome["compare"]["student"]["attention_mass"]
    assert abs(compared["taught"] - masses["student"]) < 1e-9
    assert abs(compared["untaught"] - masses["control"]) < 1e-9
    low, high = compared["interval"]
    assert low <= compared["difference"] <= high
    assert "<td>attention mass</td>" in (tmp_path / "k" / "report.html").read_text()
    scored = antiphon(
        *("evaluate", outcome["models"]["control"]["checkpoint"], "--data", "tkd-demo", "--json"),
        *as_options((*SMALL, *cache)),
    )
    assert scored.code == 0, scored.err
    result = json.loads(scored.out)
    assert abs(result["scores"]["attention_mass"] - masses["control"]) < 1e-6
    assert 0.3 < result["chance"]["attention_mass"] < 0.9, "a word lasts half a second of the clip's one"


def test_all_five_students_are_taught_with_each_weight_beside_a_control() -> None:
    two, tenth, quarter = (load_recipe(name) for name in ("tkd-kws-two", "tkd-kws", "tkd-kws-25"))
    variants = {model.arch.variant for name, model in tenth.models.items() if name != "teacher"}
    assert variants == {"att_rnn", "mhatt_rnn", "crnn", "lstm_p", "tc_resnet"}
    for recipe, weight in ((two, 0.1), (tenth, 0.1), (quarter, 0.25)):
        assert {(edge.teacher, edge.carries, edge.weight) for edge in recipe.edges} == {("teacher", "temporal", weight)}
        students = {edge.student for edge in recipe.edges}
        assert set(recipe.models) == {"teacher", *students, *(f"{name}_untaught" for name in students)}
    assert replace(quarter, name="tkd-kws", edges=tenth.edges) == tenth
    assert {name: tenth.models[name] for name in two.models} == two.models


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_spoken_keywords_teach_two_seeds_which_are_compared_together(antiphon: Any, tmp_path: Path) -> None:
    options = as_options((*SMALL, *STEPS, "train.threads=1", "data.clip_seconds=2", f"data.cache={tmp_path}/clips"))
    run = ("--local", "--tracking", "none", "--storage", tmp_path, "--run-id", "k", "--seeds", "2")
    done = antiphon("run", "tkd-kws-two", *run, *options)
    assert done.code == 0, done.err
    compared = json.loads((tmp_path / "k" / "outcome.json").read_text())["compare"]
    assert set(compared) == {"att_rnn", "tc_resnet"}
    for student in compared.values():
        assert student["seeds"] == 2
        assert 0 < student["attention_mass"]["taught"] < 1
    again = antiphon("run", "tkd-kws-two", *run[:-4], "--resume", "k", "--seeds", "2", *options)
    assert again.code == 0, again.err
