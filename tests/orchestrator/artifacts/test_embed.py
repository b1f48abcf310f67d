"""`antiphon embed`: what the head reads, of files and data sets, and a linear model on it."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch

from orchestrator.artifacts.tag import load_for_tagging
from tests.official import waveform
from tests.serving import RATE, publish_tagger
from workloads.data.clips import Clip
from workloads.evaluate.embed import ABSENT, probe
from workloads.evaluate.sounds import cut_windows
from workloads.runtime import checkpoint

DATA = ["data.synthetic_clips=60", "data.clip_seconds=1.0", "train.threads=1", "train.shard_size=8"]


def sets(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def test_a_file_s_embedding_is_the_mean_of_its_windows(antiphon: Any, tmp_path: Path) -> None:
    folder, x_T = publish_tagger("vit", tmp_path), waveform(3.0, RATE)[0].numpy()
    for name, samples in (("short.wav", 9000), ("long.wav", 40_000)):
        soundfile.write(tmp_path / name, x_T[:samples], RATE, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no sound")
    names = [str(tmp_path / name) for name in ("long.wav", "text.wav", "short.wav")]
    done = antiphon("embed", folder, *names, "--out", tmp_path / "out.npz", "--json")
    assert done.code == 1
    assert json.loads(done.out)["broken"] == {names[1]: "cannot be decoded (Format not recognised.)"}
    table = np.load(tmp_path / "out.npz")
    assert table["name"].tolist() == [names[0], names[2]]
    assert table["seconds"].tolist() == [2.5, 0.5625]
    loaded = load_for_tagging(str(folder))
    for row, samples in enumerate((40_000, 9000)):
        (piece,) = cut_windows(loaded.tagger, torch.from_numpy(x_T[:samples]), "windows").pieces(16)
        with torch.no_grad():
            mel_BMF = loaded.tagger.front_end(piece.x_BT())
            expected_D = loaded.tagger.outputs(mel_BMF).embedding_BD.mean(0)
        np.testing.assert_allclose(table["embedding"][row], expected_D, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("ending", "name"), [("npz", "\udcff.wav"), ("parquet", "\\udcff.wav")])
def test_any_file_name_that_a_disk_allows_is_in_the_table(
    antiphon: Any, tmp_path: Path, ending: str, name: str
) -> None:
    odd, out = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.wav")), tmp_path / f"out.{ending}"
    soundfile.write(tmp_path / "a.wav", waveform(1.0, RATE)[0].numpy(), RATE)
    (tmp_path / "a.wav").rename(odd)
    done = antiphon("embed", publish_tagger("vit", tmp_path), odd, "--out", out)
    assert done.code == 0, done.err
    table = np.load(out) if ending == "npz" else pyarrow.parquet.read_table(out).to_pydict()
    assert [*table["name"]] == [f"{tmp_path}/{name}"]


@pytest.fixture(scope="module")
def demo_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


def test_a_data_set_is_embedded_and_probed_although_its_tags_are_others(
    antiphon: Any, tmp_path: Path, demo_cache: Path
) -> None:
    folder, out = publish_tagger("vit", tmp_path), tmp_path / "out.parquet"
    words = ["embed", folder, "--data", "demo", *sets(*DATA, f"data.cache={demo_cache}")]
    done = antiphon(*words, "--out", out, "--probe", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    table = pyarrow.parquet.read_table(out).to_pydict()
    assert list(table) == ["clip_id", "source", "fold", "true_tags", "embedding"]
    assert len(table["clip_id"]) == result["clips"] == 60
    assert {len(vector) for vector in table["embedding"]} == {result["features"]} == {16}
    found = result["probe"]
    assert [fold["fold"] for fold in found["folds"]] == sorted({*table["fold"]})
    assert sum(fold["clips"] for fold in found["folds"]) == 60
    assert 0 < found["scores"]["mAP"] <= 1
    assert found["unseen_fold"] is None
    again = antiphon(*words, "--out", out)
    assert again.code == 2
    assert "exists already" in again.err


def test_features_that_are_not_finite_are_refused_and_not_written(
    antiphon: Any, tmp_path: Path, demo_cache: Path
) -> None:
    folder, out = publish_tagger("vit", tmp_path), tmp_path / "out.npz"
    weights = checkpoint.read_tensors(folder, "weights")
    weights["backbone.norm.weight"][0] = torch.nan
    broken = checkpoint.write(tmp_path / "broken", tensors={"weights": weights}, state=checkpoint.read_state(folder))
    done = antiphon(
        "embed", broken, "--data", "demo", *sets(*DATA, f"data.cache={demo_cache}"), "--out", out, "--probe"
    )
    assert done.code == 2
    assert "broken': the features of 60 of 60 clips are not finite (" in done.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["a.wav", "--data", "demo"], "give either audio files or --data RECIPE"),
        ([], "give either audio files or --data RECIPE"),
        (["a.wav", "--probe"], "--probe: is for a data set"),
        (["a.wav", "--set", "x=1"], "--set x=1: changes the recipe of a data set"),
        (["a.wav"], "--out: name a .parquet or .npz file"),
        (["a.wav", "--out", "x.csv"], "must end in .parquet or .npz"),
    ],
)
def test_mistakes_are_named(antiphon: Any, tmp_path: Path, words: list[str], problem: str) -> None:
    done = antiphon("embed", tmp_path, *words)
    assert done.code == 2
    assert problem in done.err


def clips_of(folds: list[int]) -> list[Clip]:
    return [Clip(f"c{row}", "", (), fold, f"recording {row // 2}") for row, fold in enumerate(folds)]


def test_each_fold_is_scored_by_a_model_of_the_others() -> None:
    """In fold 2 the features mean the opposite: a model of folds 1 and 3 is always wrong there, and right in 3 or 1."""
    generator = np.random.default_rng(0)
    tag_N, folds = np.arange(240) % 2, [1 + row // 80 for row in range(240)]
    x_ND = generator.normal(0, 0.1, (240, 3)).astype(np.float32)
    x_ND[:, 1] += np.where(np.array(folds) == 2, 1 - tag_N, tag_N)
    y_NC = torch.eye(2)[tag_N]
    result = probe(x_ND, y_NC, clips_of(folds), "single")
    assert [fold.scores["accuracy"] for fold in result.folds][1] == 0.0
    clean = probe(x_ND[np.array(folds) != 2], y_NC[np.array(folds) != 2], clips_of([1] * 80 + [3] * 80), "single")
    assert [fold.scores["accuracy"] for fold in clean.folds] == [1.0, 1.0]
    assert clean.scores["accuracy"] == 1.0
    shuffled = probe(x_ND, torch.eye(2)[generator.permutation(tag_N)], clips_of(folds), "single")
    assert shuffled.scores["accuracy"] == pytest.approx(0.5, abs=0.15)


def test_unknown_labels_and_tags_that_a_fold_lacks_do_no_harm() -> None:
    generator, folds = np.random.default_rng(1), [1 + row // 60 for row in range(120)]
    y_NC = torch.from_numpy(generator.integers(0, 2, (120, 3))).float()
    x_ND = (y_NC.numpy() + generator.normal(0, 0.1, (120, 3))).astype(np.float32)
    y_NC[:60, 2] = 0  # fold 1 has no clip of the third tag: the model of fold 2's clips never says it
    y_NC[::7, 0] = torch.nan
    result = probe(x_ND, y_NC, clips_of(folds), "multi")
    assert result.folds[0].scores["mAP"] == pytest.approx(1.0, abs=1e-3)
    assert ABSENT < 0


@pytest.mark.parametrize("tags", [2, 3])
def test_a_clip_far_from_all_others_is_scored(tags: int) -> None:
    """Its tag is as clear as that of the others, only more so: probabilities of the other tags are 0 in float32."""
    tag_N, folds = np.arange(240) % tags, [1 + row // 80 for row in range(240)]
    x_ND = (np.eye(tags)[tag_N] + np.random.default_rng(0).normal(0, 0.1, (240, tags))).astype(np.float32)
    x_ND[0, 0] = 1e5
    result = probe(x_ND, torch.eye(tags)[tag_N], clips_of(folds), "single")
    assert result.folds[0].scores["accuracy"] == 1.0  # by a model of the other clips
    assert np.isfinite(result.scores["log_loss"])


def test_a_fold_without_a_score_is_named() -> None:
    y_NC, folds = torch.eye(2)[np.arange(240) % 2], [1 + row // 80 for row in range(240)]
    y_NC[80:160] = 0
    x_ND = (y_NC.numpy() + np.random.default_rng(0).normal(0, 0.1, (240, 2))).astype(np.float32)
    with pytest.raises(ValueError, match=r"--probe: fold 2 gives no score .*; give it clips with and without a tag"):
        probe(x_ND, y_NC, clips_of(folds), "multi")


def test_one_fold_cannot_be_cross_validated() -> None:
    with pytest.raises(ValueError, match="has 1 fold, and is cross-validated over at least two"):
        probe(np.zeros((4, 2), np.float32), torch.zeros(4, 2), clips_of([1] * 4), "multi")
