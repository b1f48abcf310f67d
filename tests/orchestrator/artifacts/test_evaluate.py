"""`antiphon evaluate`: a published tagger on a recipe's data set, and what it must not be scored on."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from sklearn.metrics import average_precision_score

from orchestrator.artifacts.predictions import tag_column
from orchestrator.cli.score_tables import print_scores
from tests.orchestrator.artifacts.test_tag import publish
from workloads.config.architectures import ViT
from workloads.config.recipe import Model
from workloads.data.synthetic import SYNTHESIZERS
from workloads.models.tagger import Tagger, build_tagger
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


def test_unlabelled_clips_are_not_scored(published, antiphon):
    folder, data = published
    own = [word for value in ("data.test_fold=2", "data.labelled_share=0.5") for word in ("--set", value)]
    done = antiphon("evaluate", folder, "--data", "demo", "--part", "train", *data, *own, "--json")
    assert done.code == 0, done.err
    result, all_train = json.loads(done.out), checkpoint.read_state(folder)["data"]["clips"]["train"]
    assert result["clips"] == all_train / 2
    assert len(result["most_wrong"]) == 10
    assert all(math.isfinite(value) for value in result["scores"].values())


@pytest.mark.parametrize("part", ["test", "val"])
def test_another_test_fold_of_its_training_data_is_refused(published, antiphon, part):
    folder, data = published
    done = antiphon("evaluate", folder, "--data", "demo", "--part", part, *data)
    assert (done.code, done.out) == (2, "")
    message = f"data.test_fold = 1: the checkpoint '{folder}' was trained on clips of this fold; its test fold is "
    assert done.err.strip() == f"mistake: {message}--set data.test_fold=2"


@pytest.mark.parametrize(
    ("key", "own"),
    [
        ("val_slice", "data.val_slice=0"),
        ("split_seed", "data.split_seed=0"),
        ("val_share", "data.val_share=0.1"),
        ("train_folds", "'data.train_folds=[]'"),
    ],
)
def test_another_validation_slice_of_its_training_data_is_refused(published, antiphon, key, own):
    folder, data = published
    other = {"val_slice": 1, "split_seed": 7, "val_share": 0.2, "train_folds": [1, 3]}[key]
    words = ("--set", "data.test_fold=2", "--set", f"data.{key}={other}")
    done = antiphon("evaluate", folder, "--data", "demo", "--part", "val", *data, *words)
    assert (done.code, done.out) == (2, "")
    assert f"was trained on clips of this validation slice; its own is --set {own}" in done.err


def test_a_tagger_of_some_folds_is_scored_on_others_that_it_never_learned_from(tiny, start, antiphon):
    settings = ("schedule.burn_in=2", "schedule.period=1", "schedule.turns=2", "data.train_folds=[1,3,5]")
    recipe = tiny("demo", *settings, "data.test_fold=2")
    run = start(recipe)
    assert loop(run) == "done"
    folder, clips = run.session.work_dir.parent / "models" / "cnn", ("synthetic_clips", "clip_seconds", "cache")
    data = [word for name in clips for word in ("--set", f"data.{name}={getattr(recipe.data, name)}")]
    done = antiphon("evaluate", folder, "--data", "demo", *data, "--set", "data.test_fold=4", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["clips"] == 20
    done = antiphon("evaluate", folder, "--data", "demo", *data, "--set", "data.test_fold=3")
    assert (done.code, done.out) == (2, "")
    assert "was trained on clips of this fold; its test fold is --set data.test_fold=2" in done.err


def test_another_data_set_may_have_any_test_fold(published, antiphon):
    folder, data = published
    done = antiphon("evaluate", folder, "--data", "demo", *data, "--set", "data.synthetic_seed=1", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["clips"] == 20


def test_computed_clips_of_another_length_are_refused_and_not_scored_as_if_they_had_its_own(published, antiphon):
    folder, data = published
    own = next(word for word in data if word.startswith("data.clip_seconds="))
    for command in (("evaluate", folder), ("embed", folder, "--probe")):
        done = antiphon(*command, "--data", "demo", *data, "--set", "data.clip_seconds=3")
        assert (done.code, done.out) == (2, "")
        assert "data.clip_seconds = 3: clips of synthetic last so long, and this tagger hears" in done.err
        assert done.err.rstrip().endswith(f"--set {own.removesuffix('.0')}")


def test_an_int8_file_is_not_scored_on_training_clips(published, antiphon, tmp_path):
    folder, data = published
    words = ("--to", "onnx", "--front-end", "outside", "--int8", "demo", *data)
    done = antiphon("export", folder, tmp_path / "cnn.onnx", *words)
    assert (done.code, done.out) == (2, "")
    assert "its test fold is --set data.test_fold=2" in done.err
    assert list(tmp_path.glob("cnn*")) == []


def untrained(tags: list[str], labels: str) -> Tagger:
    model = Model(arch=ViT(family="vit", dim=16, depth=1, heads=2, pool="avg"))
    return build_tagger(
        model, name="vit", tags=tuple(tags), labels=labels, clip_seconds=1.0, clip_rate=16_000, seed=0
    ).eval()


def settings(folder: Path, labels: str) -> list[str]:
    values = [f"data.cache={folder}/clips", "data.synthetic_clips=100", "data.val_share=0.2", f"data.labels={labels}"]
    values.append("data.clip_seconds=1.0")
    return [word for value in values for word in ("--set", value)]


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_data_without_one_of_the_tags_is_scored_over_those_that_are_there(tmp_path, antiphon, labels):
    """The model's tags are in another order; every score can be computed again from the table of predictions."""
    tags = ["fold", *sorted(SYNTHESIZERS, reverse=True)]
    tagger = publish(untrained(tags, labels), tmp_path / "vit")
    command = ("evaluate", tagger, "--data", "demo", *settings(tmp_path, labels))
    done = antiphon(*command, "--json", "--out", tmp_path / "p.csv")
    assert done.code == 0, done.err
    result = json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (result["tags"], result["tags_scored"], result["tags_not_in_data"]) == (11, 10, ["fold"])
    assert result["per_tag"]["fold"]["reason"] == "not in the data"
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result["clips"] == 20
    assert list(rows[0]) == ["clip_id", "source", "fold", "true_tags", "tag:fold", *tags[1:]]
    assert {row["fold"] for row in rows} == {"1"}
    precisions = []
    for tag in tags[1:]:
        has = [tag in row["true_tags"].split(";") for row in rows]
        precisions.append(average_precision_score(has, [float(row[tag]) for row in rows]))
        scores = result["per_tag"][tag]
        assert (scores["support"], scores["average_precision"]) == (sum(has), pytest.approx(precisions[-1]))
    assert result["scores"]["mAP"] == pytest.approx(sum(precisions) / 10)
    worst = result["most_wrong"]
    assert len(worst) == 10
    assert [clip["loss"] for clip in worst] == sorted((clip["loss"] for clip in worst), reverse=True)
    row = next(row for row in rows if row["clip_id"] == worst[0]["clip_id"])
    assert worst[0]["tags"] == {tag: float(row[tag]) for tag in row["true_tags"].split(";")}
    said = sorted(tags, key=lambda tag: -float(row[tag_column(tag)]))[:3]
    assert worst[0]["likeliest"] == {tag: float(row[tag_column(tag)]) for tag in said}
    if labels == "single":
        assert worst[0]["loss"] == pytest.approx(-math.log(worst[0]["tags"][row["true_tags"]]), rel=1e-5)
        assert antiphon(*command, "--out", tmp_path / "p.parquet").code == 0
        table = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pylist()
        assert [{name: str(value) for name, value in row.items()} for row in table] == rows


def test_tags_that_the_tagger_does_not_know_are_refused_before_a_clip_is_decoded(tmp_path, antiphon):
    known = sorted(SYNTHESIZERS)
    tagger = publish(untrained(known[1:], "multi"), tmp_path / "vit")
    done = antiphon("evaluate", tagger, "--data", "demo", *settings(tmp_path, "multi"))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"mistake: the data set's tags {known[0]}: the tagger does not know them")
    assert not (tmp_path / "clips").exists()


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, antiphon):
    (tmp_path / "there.csv").write_text("mine")
    for out, message in {
        "p.xlsx": "must end in .csv or .parquet",
        "there.csv": "exists already; choose another name or remove it",
        "no/p.csv": f"there is no folder {tmp_path}/no; create it first",
    }.items():
        done = antiphon("evaluate", "/nowhere", "--data", "demo", "--out", tmp_path / out)
        assert (done.code, done.out) == (2, "")
        assert done.err == f"mistake: --out '{tmp_path / out}': {message}\n"
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_weights_that_give_no_numbers_are_named(tmp_path, antiphon):
    tagger = untrained(sorted(SYNTHESIZERS), "multi")
    with torch.no_grad():
        tagger.backbone.head.weight[0, 0] = torch.nan
    folder = publish(tagger, tmp_path / "vit")
    done = antiphon("evaluate", folder, "--data", "demo", *settings(tmp_path, "multi"))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"mistake: checkpoint '{folder}': the model's logits of 20 of 20 clips are not finite")


def test_hundreds_of_tags_are_cut_to_the_worst_and_the_best_within_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    row: dict[str, Any] = {"support": 3, "chance": 0.01, "recall": None, "reason": ""}
    per_tag = {f"a tag of AudioSet's, number {at:03}": row | {"average_precision": at / 500} for at in range(500)}
    unscored = row | {"support": 0, "average_precision": None, "chance": None, "reason": "no clip has it"}
    per_tag |= {f"none {at}": unscored for at in range(12)}
    wrong = [{"clip_id": "c" * 40, "loss": 2.5, "tags": {}, "likeliest": dict.fromkeys(list(per_tag)[:3], 0.5)}]
    result = {"model": "cnn", "part": "test", "labels": "multi", "clips": 20_000, "tags": 512, "tags_scored": 500}
    result |= {"scores": {"mAP": 0.25}, "chance": {"mAP": 0.01}, "tags_not_in_data": [], "out": None}
    print_scores(result | {"per_tag": per_tag, "most_wrong": wrong})
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if set(line) & set("┃│━")) <= 80
    assert lines[1] == "mAP        0.2500   without a model 0.0100   mean of 500 of 512 tags"
    shown = [int(line.split("number ")[1][:3]) for line in lines if "number" in line and "0.0100" in line]
    assert shown == [*range(10), *range(490, 500)]
    assert f"not scored, no clip has it: {', '.join(f'none {at}' for at in range(10))} and 2 more" in lines
