"""`tkd-demo`, made small: a student is taught when to listen, its control is not, and both are measured alike."""

import json
from pathlib import Path
from typing import Any

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
