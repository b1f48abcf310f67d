"""`antiphon compare`: finished runs of two test folds and two seeds, pooled."""

import json
import math
import shutil
from pathlib import Path

import pytest

from orchestrator.runs.comparison import compare_predictions, joined_predictions
from tests.trained_runs import run_once
from workloads.evaluate import deliver

TURNS = ("schedule.burn_in=1", "schedule.period=1", "schedule.turns=2")


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def trained(tiny, storage):
    """A finished run of a fold and seed, trained once for all tests of this file; returns its folder."""

    def train(kind, fold, seed, *settings):
        run_id = f"{kind}-{fold}-{seed}"
        recipe = tiny("demo", *TURNS, f"data.test_fold={fold}", f"train.seed={seed}", *settings)
        return str(run_once(recipe, storage, run_id))

    return train


@pytest.fixture
def compared(trained):
    return [trained("compared", fold, seed, "compare=true") for fold in (1, 2) for seed in (0, 1)]


@pytest.fixture
def alone(trained):
    return [trained("alone", fold, seed, "compare=false", "edges=[]") for fold in (1, 2) for seed in (0, 1)]


def log_loss_of(folder, model):
    return json.loads((folder / "outcome.json").read_text())["models"][model]["test"]["log_loss"]


def train_clips(folder):
    return json.loads(next(folder.glob("models/cnn/**/state.json")).read_text())["data"]["clips"]["train"]


def bootstrapped(runs, student, score):
    """The interval before it is widened, of the published test logits of two folds and two seeds."""
    sides = []
    for seed in (0, 1):
        folders = [
            [str(next(Path(run).glob(f"models/{name}/**/state.json")).parent) for run in runs[seed::2]]
            for name in (student, f"{student}_untaught")
        ]
        sides.append(tuple(joined_predictions(each) for each in folders))
    row = compare_predictions(student, sides, "multi")
    return (row if score == row["metric"] else row["log_loss"])["interval"]


def test_folds_are_one_test_set_and_seeds_repeat_it(compared, storage, antiphon, tmp_path):
    done = antiphon("compare", *compared, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert (result["folds"], result["seeds"]) == ([1, 2], [0, 1])
    for student in ("cnn", "vit"):
        row = result["compare"][student]
        assert (row["seeds"], row["clips"]) == (2, 40)
        for side, name in (("taught", student), ("untaught", f"{student}_untaught")):
            losses = [log_loss_of(storage / f"compared-{fold}-{seed}", name) for fold in (1, 2) for seed in (0, 1)]
            assert row["log_loss"][side] == pytest.approx(sum(losses) / 4), "folds of equal size"
        one_fold = json.loads(antiphon("compare", *compared[:2], "--json").out)["compare"][student]
        assert "overlap_factor" not in one_fold
        factor = math.sqrt(1 + 2 * 20 / train_clips(storage / "compared-1-0"))
        assert row["overlap_factor"] == pytest.approx(factor)
        for score, name in ((row, "mAP"), (row["log_loss"], "log loss")):
            low, high = bootstrapped(compared, student, name)
            assert score["interval"] == pytest.approx(
                [score["difference"] + factor * (end - score["difference"]) for end in (low, high)]
            )
    assert result["differs"] == {}
    moved = [str(shutil.copytree(run, tmp_path / Path(run).name)) for run in compared]
    shutil.rmtree(tmp_path / "compared-1-0" / "checkpoints", ignore_errors=True)
    assert json.loads(antiphon("compare", *moved, "--json").out) == result, (
        "runs that were moved are read where they are"
    )
    assert "what teaching did, on 40 test clips, 2 seeds" in antiphon("compare", *compared).out


def test_frames_that_a_run_was_too_large_to_store_are_named(trained, storage, antiphon, monkeypatch):
    """Of one fold the frames are compared, of two only where both have them."""
    frames = ("data.labels='multi'", "models.cnn.arch={family='frame_mn', width=0.1, bn_momentum=0.1}")
    first = trained("frames", 1, 0, "compare=true", *frames)
    monkeypatch.setattr(deliver, "MAX_COMPARED", 10)
    second = trained("frames", 2, 0, "compare=true", *frames)
    reason = "not all of these models were published with their test frames; of a model and a test fold up to 10 logits"
    whole, part, none = (antiphon("compare", *runs, "--json") for runs in ([first], [first, second], [second]))
    assert "frame_mAP" in json.loads(whole.out)["compare"]["cnn"]
    assert "not_compared" not in json.loads(whole.out)["compare"]["cnn"]
    for done in (part, none):
        assert done.code == 0
        compared = json.loads(done.out)["compare"]
        assert "frame_mAP" not in compared["cnn"]
        assert compared["cnn"]["not_compared"]["frame_mAP"].startswith(reason)
        assert "not_compared" not in compared["vit"], "it has no frames"
        assert f"cnn: frame_mAP is not compared: {reason}" in done.err
    outcome = json.loads((Path(second) / "outcome.json").read_text())
    assert list(outcome["compare"]["cnn"]["not_compared"]) == ["frame_mAP"]


def test_the_controls_may_be_models_of_other_runs(compared, alone, trained, antiphon):
    """The untaught models of a run without edges are those that a comparison trains beside the students."""
    controls = [word for run in reversed(alone) for word in ("--control", run)]
    done = antiphon("compare", *compared, *controls, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == json.loads(antiphon("compare", *compared, "--json").out)
    other = trained("slow", 1, 0, "compare=false", "edges=[]", "models.cnn.optimizer.lr=1e-4")
    done = antiphon("compare", compared[0], "--control", other, "--json")
    differs = json.loads(done.out)["differs"]
    assert differs == {"models.cnn.optimizer.lr": ["0.005", "0.0001"]}
    note = "not only the edges differ: models.cnn.optimizer.lr is 0.005 of the taught models, 0.0001 of the controls"
    assert note in done.err


def test_runs_that_cannot_be_paired_are_refused(compared, alone, trained, antiphon):
    def mistake(*words):
        done = antiphon("compare", *words)
        assert (done.code, done.out) == (2, "")
        return done.err

    assert "test fold 2: no run of seed 1; every fold needs the same seeds" in mistake(*compared[:3])
    assert "both have test fold 1 and seed 0; name one" in mistake(compared[0], compared[0])
    assert "test fold 1, seed 1: no control" in mistake(*compared[:2], "--control", alone[0])
    assert "there is no run that is done" in mistake("runs/nowhere")
    assert "no model of this run has a control; run the recipe with --compare" in mistake(alone[0])
    assert "its model cnn is taught, so it is no control" in mistake(compared[0], "--control", compared[0])
    assert "its recipe has no edges" in mistake(alone[0], "--control", alone[0])
    silent = trained("silent", 1, 0, "compare=false", "edges=[]", "train.score_test=false")
    assert "train.score_test was false" in mistake(compared[0], "--control", silent)
    other = trained("other", 2, 0, "compare=true", "data.synthetic_seed=9")
    assert "trained on other clips" in mistake(compared[0], other)


def test_runs_that_learn_in_different_ways_are_not_one_comparison(compared, alone, trained, antiphon, tmp_path):
    """Folds may have their own initial weights and batches; the version that wrote a recipe may know fewer settings."""

    def changed(run, change):
        copy = shutil.copytree(run, tmp_path / f"changed-{len(list(tmp_path.iterdir()))}")
        recipe = json.loads((copy / "recipe.json").read_text())
        change(recipe)
        (copy / "recipe.json").write_text(json.dumps(recipe))
        return str(copy)

    first, second = compared[0], compared[2]  # two folds
    for change, said in (
        (lambda recipe: recipe["schedule"].update(period=7), "has schedule.period = 7, and"),
        (lambda recipe: recipe["models"]["vit"]["optimizer"].update(lr=0.5), "has models.vit.optimizer.lr = 0.5"),
        (lambda recipe: recipe["edges"][0].update(weight=0.25), "has edges.0.weight = 0.25"),
        (lambda recipe: recipe["edges"].pop(), "has edges = 1"),
        (lambda recipe: recipe["data"].update(clip_seconds=3.5), "has data.clip_seconds = 3.5"),
    ):
        done = antiphon("compare", first, changed(second, change))
        assert (done.code, done.out) == (2, "")
        assert said in done.err
    longer = changed(alone[2], lambda recipe: recipe["models"]["vit"]["optimizer"].update(lr=0.5))
    done = antiphon("compare", first, second, "--control", alone[0], "--control", longer)
    assert "has models.vit.optimizer.lr = 0.5" in done.err

    def without_controls(recipe):
        recipe["models"] = {name: model for name, model in recipe["models"].items() if not model["control_of"]}

    mixed = first, changed(second, without_controls), "--control", alone[0], "--control", alone[2]
    assert antiphon("compare", *mixed).code == 0, "the controls are those of other runs"

    def of_a_fold(recipe):
        recipe["models"]["vit"]["init"] = "elsewhere"
        recipe["train"]["shard_size"] = 12
        del recipe["models"]["vit"]["optimizer"]["warmup_curve"]

    done = antiphon("compare", first, changed(second, of_a_fold), "--json")
    assert json.loads(done.out) == json.loads(antiphon("compare", first, second, "--json").out)
