"""Speech Commands' layout, version 2, and its own split."""

from pathlib import Path

import pytest

from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.manifest import read_dataset
from workloads.data.splits import split
from workloads.runtime.opener import LocalFiles

FILES = (
    *("bed/00176480_nohash_0.wav", "bed/00176480_nohash_1.wav", "bed/026290a7_nohash_0.wav"),
    *("cat/00176480_nohash_0.wav", "cat/0a7c2a8d_nohash_0.wav", "cat/026290a7_nohash_0.wav"),
    *("_background_noise_/doing_the_dishes.wav", "_background_noise_/README.md"),
    *("README.md", "LICENSE", ".DS_Store"),
)
VALIDATION, TESTING = "bed/026290a7_nohash_0.wav\ncat/026290a7_nohash_0.wav\n", "cat/0a7c2a8d_nohash_0.wav\n"


def speechcommands(folder: Path, validation: str = VALIDATION, testing: str = TESTING, *more: str) -> Data:
    for path in (*FILES, *more):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")
    (folder / "validation_list.txt").write_text(validation)
    (folder / "testing_list.txt").write_text(testing)
    return Data(format="speechcommands", root=str(folder))


def test_the_lists_split_the_clips_and_the_speaker_is_the_source(tmp_path: Path) -> None:
    data = speechcommands(tmp_path)
    dataset = read_dataset(data, LocalFiles())
    assert dataset.tags == ("bed", "cat")
    assert dataset.warnings == ()
    splits = split(dataset, data)
    assert [clip.clip_id for clip in splits.train] == [FILES[0], FILES[1], FILES[3]]
    assert [clip.clip_id for clip in splits.val] == VALIDATION.split()
    assert splits.test == (Clip(FILES[4], FILES[4], ("cat",), 1, "0a7c2a8d"),)


def test_a_listed_clip_without_a_file_stays_and_a_word_without_a_folder_is_left_out(tmp_path: Path) -> None:
    testing = TESTING + "bed/0a7c2a8d_nohash_3.wav\nzero/0a7c2a8d_nohash_0.wav\nyes/0a7c2a8d_nohash_0.wav\n"
    data = speechcommands(tmp_path, VALIDATION, testing)
    dataset = read_dataset(data, LocalFiles())
    assert [clip.clip_id for clip in split(dataset, data).test] == ["bed/0a7c2a8d_nohash_3.wav", FILES[4]]
    assert dataset.warnings == (
        f"data.root = {str(tmp_path)!r}: 2 words of the lists have no folder (yes, zero) and are left out",
    )


@pytest.mark.parametrize(
    ("validation", "testing", "more", "message"),
    [
        (VALIDATION + "bed.wav\n", TESTING, [], r"validation_list.txt, row 3: 'bed.wav': must be a path such as"),
        (VALIDATION, TESTING + "bed/1.wav,x\n", [], r"testing_list.txt, line 2: 2 cells"),
        (VALIDATION, TESTING, ["cat/mine.wav"], r"the name of cat/mine.wav has no speaker before _nohash_; remove"),
    ],
)
def test_lists_and_names_unlike_the_published_ones_are_refused(
    tmp_path: Path, validation: str, testing: str, more: list[str], message: str
) -> None:
    data = speechcommands(tmp_path, validation, testing, *more)
    with pytest.raises(ValueError, match=message):
        read_dataset(data, LocalFiles())


def test_a_missing_list_and_a_speaker_on_both_sides_are_refused(tmp_path: Path) -> None:
    data = speechcommands(tmp_path, validation=FILES[0] + "\n")
    with pytest.raises(ValueError, match=r"source 00176480 is in the validation fold 3 and in others"):
        split(read_dataset(data, LocalFiles()), data)
    (tmp_path / "testing_list.txt").unlink()
    with pytest.raises(ValueError, match=r"testing_list.txt: no such file; check data.root"):
        read_dataset(data, LocalFiles())
