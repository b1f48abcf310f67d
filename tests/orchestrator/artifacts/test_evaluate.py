"""`antiphon evaluate`: a published tagger on a recipe's data set, and what it must not be scored on."""

import json
from pathlib import Path

import pytest

from workloads.runtime import checkpoint
from workloads.train import loop


@pytest.fixture
def published(tiny, start) -> tuple[Path, list[str]]:
    """The small CNN of a short run, and what to set to have the run's data again."""
    recipe = tiny("demo", "schedule.burn_in=2", "schedule.period=1", "schedule.turns=2", "data.test_fold=2")
    run = start(recipe)
    assert loop(run) == "done"
    data = [f"data.{name}={getattr(recipe.data, name)}" for name in ("synthetic_clips", "clip_seconds", "cache")]
    return run.session.work_dir.parent / "models" / "cnn", [word for value in data for word in ("--set", value)]


def test_the_runs_own_test_fold_scores_as_the_run_did(published, antiphon):
    folder, data = published
    own = ("data.test_fold=2", "train.shard_size=8", "train.threads=1")  # on which the order of sums depends
    words = [word for value in own for word in ("--set", value)]
    done = antiphon("evaluate", folder, "--data", "demo", *data, *words, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    state = checkpoint.read_state(folder)
    assert told["clips"] == state["data"]["clips"]["test"] == 20
    assert told["scores"] == pytest.approx(state["test"], abs=1e-6)


@pytest.mark.parametrize("part", ["test", "val"])
def test_another_fold_of_what_it_learned_from_is_refused(published, antiphon, part):
    folder, data = published
    done = antiphon("evaluate", folder, "--data", "demo", "--part", part, *data)
    assert (done.code, done.out) == (2, "")
    told = f"data.test_fold = 1: the checkpoint '{folder}' learned from clips of it; its own is "
    assert done.err.strip() == f"mistake: {told}--set data.test_fold=2"


def test_other_clips_may_be_cut_in_any_way(published, antiphon):
    folder, data = published
    done = antiphon("evaluate", folder, "--data", "demo", *data, "--set", "data.synthetic_seed=1", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["clips"] == 20


def test_eight_bits_are_not_scored_on_clips_that_taught_either(published, antiphon, tmp_path):
    folder, data = published
    words = ("--to", "onnx", "--front-end", "outside", "--int8", "demo", *data)
    done = antiphon("export", folder, tmp_path / "cnn.onnx", *words)
    assert (done.code, done.out) == (2, "")
    assert "its own is --set data.test_fold=2" in done.err
    assert list(tmp_path.glob("cnn*")) == []
