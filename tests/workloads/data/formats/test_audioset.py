"""AudioSet's tables, as they are published, and sounds under the names that people give them, most of them missing."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.recipes.loader import load_recipe
from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.manifest import read_dataset
from workloads.data.splits import split
from workloads.data.warnings import data_warnings
from workloads.runtime.opener import LocalFiles

NAMES = """index,mid,display_name
0,/m/09x0r,"Speech"
1,/m/05zppz,"Male speech, man speaking"
2,/m/0bt9lr,"Dog"
3,/m/068hy,"Domestic animals, pets"
"""
BALANCED = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=3, num_segs=3, num_unique_labels=4, num_positive_labels=6
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/0bt9lr"
--BfvyPmVMo, 20.000, 30.000, "/m/09x0r"
-0RWZT-miFs, 420.000, 430.000, "/m/09x0r,/m/05zppz"
"""
UNBALANCED = """# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=2, num_segs=2, num_unique_labels=2, num_positive_labels=3
# YTID, start_seconds, end_seconds, positive_labels
---1_cCGK4M, 0.000, 10.000, "/m/09x0r,/m/0bt9lr"
Y--2_BBVHAA, 30.000, 40.000, "/m/09x0r"
"""
EVAL = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=2, num_segs=2, num_unique_labels=2, num_positive_labels=2
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJF, 1.500, 11.500, "/m/0bt9lr"
__2MwJ2uHu0, 30.000, 40.000, "/m/09x0r"
"""
SOUNDS = (
    *("audio/balanced_train/Y--4gqARaEJE.wav", "audio/balanced_train/-0RWZT-miFs_420.flac"),
    *("audio/unbalanced/part00/---1_cCGK4M.mp3", "audio/unbalanced/part00/Y--2_BBVHAA.wav"),
    *("audio/eval/Y--4gqARaEJF_1.500_11.500.wav", "audio/eval/__2MwJ2uHu0_0.wav"),
    "audio/eval/__2MwJ2uHu0_30000.wav",
)
DOG = ("Dog", "Domestic animals, pets")


def audioset(folder: Path, *, sounds: tuple[str, ...] = SOUNDS, balanced: str = BALANCED, names: str = NAMES) -> Data:
    tables = {"balanced_train": balanced, "unbalanced_train": UNBALANCED, "eval": EVAL}
    for name, text in tables.items():
        (folder / f"{name}_segments.csv").write_text(text)
    (folder / "metadata").mkdir(parents=True)
    (folder / "metadata" / "class_labels_indices.csv").write_text(names)
    for path in sounds:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")
    return Data(format="audioset", root=str(folder), labels="multi", val_share=0.5)


def test_segments_with_a_sound_are_clips_and_missing_ones_are_counted(tmp_path: Path) -> None:
    data = audioset(tmp_path)
    dataset = read_dataset(data, LocalFiles())
    assert dataset.clips == (
        Clip("--4gqARaEJE", SOUNDS[0], DOG, 2, "--4gqARaEJE"),
        Clip("--4gqARaEJF", SOUNDS[4], ("Dog",), 1, "--4gqARaEJF"),
        Clip("-0RWZT-miFs", SOUNDS[1], ("Male speech, man speaking", "Speech"), 2, "-0RWZT-miFs"),
        Clip("__2MwJ2uHu0", SOUNDS[6], ("Speech",), 1, "__2MwJ2uHu0"),
    )
    (missing,) = dataset.warnings
    assert missing == (
        f"{tmp_path}/balanced_train_segments.csv: 1 of 3 segments have no sound below data.root and are left out"
    )
    splits = split(dataset, data)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [1, 1, 2]
    recipe = replace(load_recipe("demo"), data=data)
    assert not [line for line in data_warnings(dataset, splits, {}, recipe) if "holds a comma" in line]


def test_sounds_as_they_are_downloaded_are_found_and_those_that_need_no_package_come_first(tmp_path: Path) -> None:
    downloaded = ("audio/--BfvyPmVMo.webm", "audio/balanced_train/Y--4gqARaEJE.m4a", "audio/balanced_train/1.mp4")
    dataset = read_dataset(audioset(tmp_path, sounds=(*SOUNDS, *downloaded)), LocalFiles())
    paths = {clip.clip_id: clip.path for clip in dataset.clips}
    assert (paths["--BfvyPmVMo"], paths["--4gqARaEJE"]) == (downloaded[0], SOUNDS[0])
    assert dataset.warnings == ()


@pytest.mark.parametrize(("part", "training"), [("unbalanced", 2), ("both", 4)])
def test_the_training_tables_are_a_setting(tmp_path: Path, part: str, training: int) -> None:
    dataset = read_dataset(replace(audioset(tmp_path), audioset_train=part), LocalFiles())
    assert sum(clip.fold == 2 for clip in dataset.clips) == training
    by_id = {clip.clip_id: clip.path for clip in dataset.clips}
    assert by_id["---1_cCGK4M"] == SOUNDS[2]
    assert by_id["Y--2_BBVHAA"] == SOUNDS[3], "an id may begin with Y"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sounds": SOUNDS[2:]},
            r"balanced_train_segments.csv: none of its 3 segments .* files of 4 videos are.*YID.wav",
        ),
        ({"sounds": SOUNDS[:2]}, r"eval_segments.csv: none of its 2 segments has a sound below data.root"),
        ({"balanced": BALANCED.replace("/m/068hy", "/m/0")}, r"row 1: label '/m/0' has no name in class_labels_ind"),
        ({"balanced": BALANCED.replace(' "/m/09x0r,', " /m/09x0r,")}, r"line 6"),
        ({"balanced": BALANCED.replace("420.000", "x")}, r"row 3: start_seconds = 'x': must be a number"),
        ({"balanced": BALANCED + BALANCED}, r"row 4: YTID '--4gqARaEJE' is in an earlier row"),
        ({"names": NAMES.replace("mid", "id")}, r"class_labels_indices.csv: no column mid; it has"),
        ({"sounds": (*SOUNDS, "old/eval_segments.csv")}, r"eval_segments.csv: 2 files of this name"),
    ],
)
def test_damaged_tables_and_a_table_without_sounds_are_refused(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_dataset(audioset(tmp_path, **change), LocalFiles())


def test_sounds_as_they_were_downloaded_are_clips_and_converted_ones_come_first(tmp_path: Path) -> None:
    """yt-dlp leaves m4a and webm files."""
    sounds = ("train/--4gqARaEJE.m4a", "train/--4gqARaEJE.wav", "eval/Y--4gqARaEJF.webm", "x/__2MwJ2uHu0_30.m4a")
    dataset = read_dataset(audioset(tmp_path, sounds=sounds), LocalFiles())
    assert [clip.path for clip in dataset.clips] == [sounds[1], sounds[2], sounds[3]]


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    data = audioset(tmp_path)
    (tmp_path / "metadata" / "class_labels_indices.csv").unlink()
    with pytest.raises(ValueError, match=r"class_labels_indices.csv: no such file there; put Google's table below"):
        read_dataset(data, LocalFiles())
