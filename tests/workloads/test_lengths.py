"""Clips of 0.3 to 30 s, as FSD50K has them: trained on in crops, scored and tagged in the same windows."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile

from orchestrator.artifacts.predictions import tag_column
from tests.commands import event_records
from tests.packs import TAGS, write_clips
from workloads.config.recipe import Recipe
from workloads.run import Run
from workloads.runtime import checkpoint
from workloads.train import loop


@pytest.mark.parametrize("long_clips", ["windows", "start"])
def test_a_run_evaluate_and_tag_hear_the_same_of_clips_of_any_length(
    tmp_path: Path, tiny: Callable[..., Recipe], start: Callable[..., Run], antiphon: Any, long_clips: str
) -> None:
    audio = write_clips(tmp_path / "audio", 40, seconds=(0.3, 30.0))
    data = [*audio, "data.clip_seconds=10.0", f"data.long_clips={long_clips}", "train.shard_size=4"]
    run = start(tiny("demo", *data, "schedule.burn_in=2", "schedule.period=1", "schedule.turns=2"))
    assert loop(run) == "done"
    scores = event_records(run)[-1]["models"]["cnn"]["test"]
    folder = run.session.work_dir.parent / "models" / "cnn"
    assert checkpoint.read_state(folder)["long_clips"] == long_clips

    words = [word for value in [*data, f"data.cache={run.recipe.data.cache}"] for word in ("--set", value)]
    done = antiphon("evaluate", folder, "--data", "demo", *words, "--out", tmp_path / "scores.csv", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["scores"] == pytest.approx(scores, abs=1e-6)

    predicted = {row["clip_id"]: row for row in csv.DictReader((tmp_path / "scores.csv").open())}
    paths = {clip.clip_id: f"{tmp_path}/audio/{clip.path}" for clip in run.prepared.splits.test}
    lengths = [soundfile.info(path).duration for path in paths.values()]
    assert min(lengths) < 3
    assert max(lengths) > 25
    done = antiphon("tag", folder, *paths.values(), "--top", "3", "--json")
    tagged = json.loads(done.out)["files"]
    for clip_id, path in paths.items():
        expected = {tag: float(predicted[clip_id][tag_column(tag)]) for tag in TAGS}
        assert dict(tagged[path]) == pytest.approx(expected, abs=1e-5)
