"""`frames-demo`, made small: a student is taught frames, its control is not, and what that did is printed and kept."""

import json
from pathlib import Path
from typing import Any

from orchestrator.recipes.loader import load_recipe
from workloads.config.architectures import gives_frames

SMALL = (
    *("data.synthetic_clips=60", "data.clip_seconds=1.0", "train.threads=1", "train.shard_size=8"),
    *("models.teacher.arch.width=0.1", "models.student.arch.width=0.1"),
    *("schedule.teacher_steps=3", "schedule.steps=3", "train.eval_every=3", "train.log_every=1"),
)


def test_only_the_teacher_is_told_when_tags_sound() -> None:
    recipe = load_recipe("frames-demo")
    assert all(gives_frames(model.arch) for model in recipe.models.values())
    assert [name for name, model in recipe.models.items() if model.frame_labels] == ["teacher"]
    assert [(edge.teacher, edge.student, edge.carries) for edge in recipe.edges] == [("teacher", "student", "frames")]
    assert recipe.models["student_untaught"].control_of == "student"


def test_the_run_prints_both_students_and_compares_their_frames(antiphon: Any, tmp_path: Path) -> None:
    settings = [word for value in (*SMALL, f"data.cache={tmp_path}/clips") for word in ("--set", value)]
    done = antiphon(
        "run", "frames-demo", "--local", "--tracking", "none", "--storage", tmp_path, "--run-id", "f", *settings
    )
    assert done.code == 0, done.err
    assert "frame mAP" in done.err
    outcome = json.loads((tmp_path / "f" / "outcome.json").read_text())
    compared = outcome["compare"]["student"]["frame_mAP"]
    for side, name in (("taught", "student"), ("untaught", "student_untaught")):
        test = outcome["models"][name]["test"]
        assert abs(compared[side] - test["frame_mAP"]) < 1e-9
    low, high = compared["interval"]
    assert low <= compared["difference"] <= high
    assert "<td>frame mAP</td>" in (tmp_path / "f" / "report.html").read_text()
    checkpoint = outcome["models"]["student"]["checkpoint"]
    data = [word for value in (SMALL[0], SMALL[1], f"data.cache={tmp_path}/clips") for word in ("--set", value)]
    scored = antiphon("evaluate", checkpoint, "--data", "frames-demo", *data, "--json")
    assert scored.code == 0, scored.err
    found = json.loads(scored.out)["scores"]["frame_mAP"]
    assert abs(found - outcome["models"]["student"]["test"]["frame_mAP"]) < 1e-3
