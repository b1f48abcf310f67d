"""UrbanSound8K's layout, as it is published."""

from pathlib import Path

import pytest

from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.manifest import read_dataset
from workloads.data.splits import split
from workloads.runtime.opener import LocalFiles

HEADER = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
ROWS = (
    "100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark\n",
    "100263-2-0-117.wav,100263,58.5,62.5,1,5,2,children_playing\n",
    "100648-1-0-0.wav,100648,4.823402,5.471927,2,10,1,car_horn\n",
    "99812-1-2-0.wav,99812,159.522205,163.522205,2,7,1,car_horn\n",
)


def urbansound(folder: Path, text: str) -> Data:
    (folder / "metadata").mkdir()
    (folder / "metadata" / "UrbanSound8K.csv").write_text(text)
    return Data(format="urbansound8k", root=str(folder), test_fold=10, val_share=0.5)


def test_the_published_table_gives_ten_folds_and_the_freesound_recording_as_source(tmp_path: Path) -> None:
    data = urbansound(tmp_path, HEADER + "".join(ROWS))
    dataset = read_dataset(data, LocalFiles())
    assert dataset.clips == (
        Clip("100032-3-0-0", "audio/fold5/100032-3-0-0.wav", ("dog_bark",), 5, "100032"),
        Clip("100263-2-0-117", "audio/fold5/100263-2-0-117.wav", ("children_playing",), 5, "100263"),
        Clip("100648-1-0-0", "audio/fold10/100648-1-0-0.wav", ("car_horn",), 10, "100648"),
        Clip("99812-1-2-0", "audio/fold7/99812-1-2-0.wav", ("car_horn",), 7, "99812"),
    )
    assert dataset.tags == ("car_horn", "children_playing", "dog_bark")
    multi = read_dataset(Data(**vars(data) | {"labels": "multi"}), LocalFiles())
    assert [clip.clip_id for clip in split(multi, data).test] == ["100648-1-0-0"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slice_file_name,fold,class\na.wav,1,x\n", r"no column fsID; it has slice_file_name, fold, class and needs"),
        (HEADER + "a.wav,1,0,4,1,x,3,dog_bark\n", r"UrbanSound8K.csv, row 1: fold = 'x'"),
        (HEADER + ROWS[0] + "a.wav,1,0,4,1,2,3,\n", r"row 2: the clip has no tag; name one in column class"),
        (HEADER + "../a.wav,1,0,4,1,2,3,dog_bark\n", r"row 1: .*leads out of data.root"),
        (HEADER + ROWS[0] * 2, r"row 2: clip_id '100032-3-0-0' is that of row 1"),
    ],
)
def test_a_damaged_table_is_refused_with_its_row(tmp_path: Path, text: str, message: str) -> None:
    data = urbansound(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        read_dataset(data, LocalFiles())


def test_a_root_without_the_table_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metadata/UrbanSound8K.csv: no such file; check data.root"):
        read_dataset(Data(format="urbansound8k", root=str(tmp_path)), LocalFiles())
