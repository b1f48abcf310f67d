"""FSD50K's layout, as it is published, and its own split."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.manifest import read_dataset
from workloads.data.splits import require_scorable, split
from workloads.runtime.opener import LocalFiles

DEV = """fname,labels,mids,split
64760,"Electric_guitar,Guitar,Plucked_string_instrument,Musical_instrument,Music","/m/02sgy,/m/0342h,/m/0fx80y",train
16399,"Electric_guitar,Guitar","/m/02sgy,/m/0342h",val
21914,Rain,/m/06mb1,train
"""
EVAL = """fname,labels,mids
37199,"Electric_guitar,Rain","/m/02sgy,/m/06mb1"
175151,Rain,/m/06mb1
"""


def fsd50k(folder: Path, dev: str = DEV, evaluation: str = EVAL) -> Data:
    (folder / "FSD50K.ground_truth").mkdir()
    (folder / "FSD50K.ground_truth" / "dev.csv").write_text(dev)
    (folder / "FSD50K.ground_truth" / "eval.csv").write_text(evaluation)
    return Data(format="fsd50k", root=str(folder), labels="multi")


def test_the_published_split_is_used_as_it_is(tmp_path: Path) -> None:
    data = fsd50k(tmp_path)
    dataset = read_dataset(data, LocalFiles())
    assert dataset.tags == (
        *("Electric_guitar", "Guitar", "Music", "Musical_instrument"),
        *("Plucked_string_instrument", "Rain"),
    )
    assert dataset.clips[0] == Clip(
        "16399", "FSD50K.dev_audio/16399.wav", ("Electric_guitar", "Guitar"), 3, source="16399"
    )
    assert dataset.clips[1].path == "FSD50K.eval_audio/175151.wav"
    for changed in (data, replace(data, split_seed=1)):
        splits = split(dataset, changed)
        ids = [[clip.clip_id for clip in part] for part in (splits.train, splits.val, splits.test)]
        assert ids == [["21914", "64760"], ["16399"], ["175151", "37199"]]
    assert len(split(dataset, replace(data, labelled_share=0.5)).val) == 1, "validation keeps its labels"


def test_what_the_published_split_decides_is_no_setting(tmp_path: Path) -> None:
    for settings, message in (
        ({"test_fold": 2}, "test_fold = 2: format fsd50k names its test clips, they are fold 1"),
        ({"val_share": 0.2}, r"val_share = 0.2: format fsd50k names its validation clips: --set data.val_share=0.1"),
        ({"val_slice": 1}, r"val_slice = 1: format fsd50k names its validation clips: --set data.val_slice=0"),
        ({"labels": "single"}, "labels = 'single': clips of fsd50k have several tags: --set data.labels=multi"),
    ):
        with pytest.raises(ValueError, match=message):
            Data(**{"format": "fsd50k", "root": str(tmp_path), "labels": "multi"} | settings)


def test_parts_without_scores_are_seen_before_training(tmp_path: Path) -> None:
    data = fsd50k(tmp_path, evaluation="fname,labels,mids\n37199,Rain,/m/06mb1\n")
    dataset = read_dataset(data, LocalFiles())
    with pytest.raises(ValueError, match=r"the val part .*; these are the clips that format fsd50k names: add their f"):
        require_scorable(dataset, split(dataset, data), data, test=True)
    pack: Any = SimpleNamespace(manifest={"format": "fsd50k"})
    in_archives = replace(data, format="packed")
    with pytest.raises(ValueError, match="these are the clips that format fsd50k names"):
        require_scorable(replace(dataset, packed=pack), split(dataset, data), in_archives, test=True)


@pytest.mark.parametrize(
    ("dev", "evaluation", "message"),
    [
        (DEV.replace("mb1,train", "mb1,test"), EVAL, r"dev.csv, row 3: split = 'test': must be train or val"),
        (DEV.replace(",split", ",part"), EVAL, r"dev.csv: no column split; it has fname, labels, mids, part and"),
        (DEV, EVAL.replace('"Electric_guitar,Rain"', "Electric_guitar,Rain"), r"eval.csv, line 2: 4 cells"),
        (DEV, EVAL.replace("37199", "../37199"), r"eval.csv, row 1: fname = .*leads out of data.root"),
        (DEV.replace("16399", "64760"), EVAL, r"dev.csv, row 2: clip_id '64760' is that of row 1"),
    ],
)
def test_a_damaged_table_is_refused_with_its_row(tmp_path: Path, dev: str, evaluation: str, message: str) -> None:
    data = fsd50k(tmp_path, dev, evaluation)
    with pytest.raises(ValueError, match=message):
        read_dataset(data, LocalFiles())


def test_a_clip_in_both_tables_and_a_table_without_validation_clips_are_refused(tmp_path: Path) -> None:
    for name, dev, message in (
        ("both", DEV.replace("21914", "37199"), r"source 37199 is in the test fold 1 and in others \(1 such sources\)"),
        ("no val", DEV.replace(",val", ",train"), r"the validation fold = 3: no such fold; the folds are 2"),
    ):
        (tmp_path / name).mkdir()
        data = fsd50k(tmp_path / name, dev)
        with pytest.raises(ValueError, match=message):
            split(read_dataset(data, LocalFiles()), data)
