"""`antiphon evaluate`: a published tagger on a recipe's data set, and what it must not be scored on."""

import json
from pathlib import Path

import pytest

from workloads.runtime import checkpoint
from workloads.train import loop


@pytest.fixture
def published(tiny, start) -> tuple[Path, list[str]]:
    """The small CNN of a short run, and the settings that give the run's data again."""
    recipe = tiny("demo", "schedule.burn_in=2", "schedule.period=1", "schedule.turns=2", "data.test_fold=2")
    run = start(recipe)
    assert loop(run) == "done"
    data = [f"data.{name}={getattr(recipe.data, name)}" for name in ("synthetic_clips", "clip_seconds", "cache")]
    return run.session.work_dir.parent / "models" / "cnn", [word for value in data for word in ("--set", value)]


def test_the_runs_own_test_fold_scores_as_the_run_did(published, antiphon):
    folder, data = published
    own = ("data.test_fold=2", "train.shard_size=8", "train.threads=1")  # the order of sums depends on them
    words = [word for value in own for word in ("--set", value)]
    done = antiphon("evaluate", folder, "--data", "demo", *data, *words, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    state = checkpoint.read_state(folder)
    assert result["clips"] == state["data"]["clips"]["test"] == 20
    assert result["scores"] == pytest.approx(state["test"], abs=1e-6)


@pytest.mark.parametrize("part", ["test", "val"])
def test_another_test_fold_of_its_training_data_is_refused(published, antiphon, part):
    folder, data = published
    done = antiphon("evaluate", folder, "--data", "demo", "--part", part, *data)
    assert (done.code, done.out) == (2, "")
    message = f"data.test_fold = 1: the checkpoint '{folder}' was trained on clips of this fold; its test fold is "
    assert done.err.strip() == f"mistake: {message}--set data.test_fold=2"


def test_another_data_set_may_have_any_test_fold(published, antiphon):
    folder, data = published
    done = antiphon("evaluate", folder, "--data", "demo", *data, "--set", "data.synthetic_seed=1", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["clips"] == 20


def test_an_int8_file_is_not_scored_on_training_clips(published, antiphon, tmp_path):
    folder, data = published
    words = ("--to", "onnx", "--front-end", "outside", "--int8", "demo", *data)
    done = antiphon("export", folder, tmp_path / "cnn.onnx", *words)
    assert (done.code, done.out) == (2, "")
    assert "its test fold is --set data.test_fold=2" in done.err
    assert list(tmp_path.glob("cnn*")) == []
