"""OpenMIC-2018's layout, its unknown labels and its split."""

from pathlib import Path

import numpy as np
import pytest

from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.manifest import read_dataset
from workloads.data.splits import split
from workloads.runtime.opener import LocalFiles

LABELS = """sample_key,instrument,relevance,num_responses
000046_3840,clarinet,0.17105,3
000046_3840,flute,0.0,3
000135_483840,synthesizer,0.5,3
000135_483840,clarinet,0.49999,4
000178_3840,flute,1.0,3
000308_61440,clarinet,0.6,5
"""
TRAIN, TEST = "000046_3840\n000178_3840\n000308_61440\n", "000135_483840\n"


def openmic(folder: Path, labels: str = LABELS, train: str = TRAIN, test: str = TEST) -> Data:
    (folder / "partitions").mkdir()
    (folder / "openmic-2018-aggregated-labels.csv").write_text(labels)
    (folder / "partitions" / "split01_train.csv").write_text(train)
    (folder / "partitions" / "split01_test.csv").write_text(test)
    return Data(format="openmic", root=str(folder), labels="multi", val_share=0.5)


def test_relevance_gives_tags_absent_tags_and_unknown_ones(tmp_path: Path) -> None:
    data = openmic(tmp_path)
    dataset = read_dataset(data, LocalFiles())
    assert dataset.tags == ("clarinet", "flute", "synthesizer")
    assert dataset.clips[1] == Clip(
        "000135_483840", "audio/000/000135_483840.ogg", ("synthesizer",), 1, "000135", absent=("clarinet",)
    )
    nan = np.nan
    np.testing.assert_array_equal(
        dataset.targets(dataset.clips), [[0, 0, nan], [0, nan, 1], [nan, 1, nan], [1, nan, nan]]
    )
    splits = split(dataset, data)
    assert [clip.clip_id for clip in splits.test] == ["000135_483840"]
    assert len(splits.train) + len(splits.val) == 3
    assert splits.val != split(dataset, Data(**vars(data) | {"val_slice": 1})).val
    with pytest.raises(ValueError, match="format openmic names its test clips"):
        Data(**vars(data) | {"test_fold": 2})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labels": LABELS.replace("0.0,", "1.2,")},
            r"labels.csv, row 2: relevance = '1.2': must be a number from 0 to",
        ),
        ({"labels": LABELS.replace("0.6,", "nan,")}, r"row 6: relevance = 'nan'"),
        ({"labels": LABELS + "000046_3840,flute,0.3,1\n"}, r"row 7: 'flute' of '000046_3840' is in an earlier row"),
        ({"labels": LABELS + "000999_0,flute,0.3,1\n"}, r"row 7: sample_key '000999_0' is in no list of partitions/"),
        ({"labels": LABELS.replace("000178_3840", "../178")}, r"row 5: sample_key = '../178': must be TRACK_START"),
        ({"labels": LABELS.replace("relevance", "score")}, r"no column relevance; it has"),
        ({"train": TRAIN + "000999_0\n"}, r"no row for sample_key '000999_0' \(1 such samples"),
        ({"test": TEST + "000178_3840\n"}, r"split01_test.csv, row 2: sample_key '000178_3840' is on a list already"),
    ],
)
def test_tables_that_do_not_agree_are_refused(tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_dataset(openmic(tmp_path, **change), LocalFiles())
