"""Folders named after tags: `TAG/FILE`, without a table."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from orchestrator.recipes.loader import load_recipe
from workloads.config.data import Data
from workloads.data.cache import ClipCache
from workloads.data.clips import Clip
from workloads.data.formats.rows import assign_fold
from workloads.data.manifest import read_dataset
from workloads.data.prepare import prepare
from workloads.runtime.opener import LocalFiles


def touch(root: Path, *paths: str) -> Data:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return Data(format="folders", root=str(root))


def test_a_folder_is_a_tag_and_a_file_is_a_clip_in_the_fold_of_its_name(tmp_path: Path) -> None:
    data = touch(tmp_path, "dog/1.wav", "dog/2.FLAC", "dog/1.flac", "dog/3.m4a", "car horn, far/a.b.mp3")
    dataset = read_dataset(data, LocalFiles())
    paths = ("car horn, far/a.b.mp3", "dog/1.flac", "dog/1.wav", "dog/2.FLAC", "dog/3.m4a")
    assert dataset.clips == tuple(Clip(path, path, (path.split("/")[0],), assign_fold(path), path) for path in paths)
    assert dataset.tags == ("car horn, far", "dog")
    assert dataset.labels == "single"
    (warning,) = dataset.warnings
    assert "recording of its own and gets a fold from 1 to 5 by a hash of its name, and fold 1 is the test" in warning


def test_files_for_the_optional_decoder_are_clips_and_without_it_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = touch(tmp_path, "dog/1.wav", "dog/2.m4a", "dog/3.WebM", "dog/4.aac", "dog/5.amr", "dog/6.wma", "dog/7.mka")
    dataset = read_dataset(data, LocalFiles())
    assert len(dataset.clips) == 7
    assert len(dataset.warnings) == 1, "about sources alone"
    (tmp_path / "dog" / "2.m4a").write_bytes(b"\0\0\0\x18ftypM4A ")
    monkeypatch.setitem(sys.modules, "av", None)
    cache = ClipCache(tmp_path / "cache", rate=16_000, limit_gb=1.0)
    reasons = {broken.path: broken.reason for broken in cache.prepare(dataset.clips, data, LocalFiles())}
    assert reasons["dog/2.m4a"].endswith("pip install 'antiphon[av]', or convert it to FLAC")


def test_hidden_files_and_empty_folders_are_no_tags(tmp_path: Path) -> None:
    data = touch(tmp_path, "dog/1.wav", "dog/.2.wav", ".git/3.wav", "__MACOSX/dog/._1.wav", "cat/.keep", ".DS_Store")
    (tmp_path / "empty").mkdir()
    dataset = read_dataset(data, LocalFiles())
    assert dataset.tags == ("dog",)
    assert len(dataset.clips) == len(dataset.warnings) == 1


def test_files_with_other_endings_are_named_in_one_warning(tmp_path: Path) -> None:
    data = touch(tmp_path, "dog/1.wav", "dog/2.mp4", "dog/3.mp4", "README.txt", "dog/x/LICENSE")
    assert read_dataset(data, LocalFiles()).warnings[1] == (
        f"data.root = {str(tmp_path)!r}: 4 files are left out because of their endings, .mp4 (2), .txt (1), none (1): "
        "README.txt, dog/2.mp4, dog/3.mp4 and 1 more; convert those that are audio to wav or flac"
    )


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["dog/1.wav", "2.wav"], r"1 of 2 audio files are not at TAG/FILE \(2.wav\).*move or remove them"),
        (["dog/1.wav", "dog/far/2.wav"], r"1 of 2 .* \(dog/far/2.wav\)"),
        (["train/dog/1.wav", "test/dog/2.wav"], r"2 of 2 .* --set data.root=DIR"),
        (["1.wav"], r"1 of 1 .* --set data.root=DIR"),
        (["dog/1.mp4"], r"holds no audio; format folders needs files such as TAG/FILE.wav"),
    ],
)
def test_audio_without_a_clear_tag_is_refused(tmp_path: Path, paths: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_dataset(touch(tmp_path, *paths), LocalFiles())


def test_a_root_that_is_no_folder_is_one_line(tmp_path: Path) -> None:
    data = touch(tmp_path, "dog/1.wav")
    for root, reason in ((tmp_path / "nowhere", "not found"), (tmp_path / "dog" / "1.wav", "cannot be read")):
        with pytest.raises(ValueError, match=rf"data.root = '{root}': {reason}.*--set data.root=DIR"):
            read_dataset(Data(format="folders", root=str(root)), LocalFiles())
    with pytest.raises(ValueError, match="format folders needs the data set's folder"):
        Data(format="folders")
    assert read_dataset(data, LocalFiles()).tags == ("dog",)


@pytest.mark.parametrize("name", [b"dog/\xe9t\xe9.wav", b"h\xfcnd/1.wav", b"dog/a\nb.wav"])
def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    os.makedirs(os.path.dirname(path))
    with open(path, "wb"):
        pass
    with pytest.raises(
        ValueError, match=r"the file name '.*\\.*' is not in UTF-8 or holds a control character; rename"
    ):
        read_dataset(Data(format="folders", root=str(tmp_path)), LocalFiles())


def test_a_recipe_runs_on_folders(tmp_path: Path) -> None:
    """Every split has clips, and what is no sound is quarantined."""
    for tag in ("high", "low"):
        (tmp_path / "sounds" / tag).mkdir(parents=True)
        for number in range(30):
            wave = 0.1 * np.random.default_rng(number).standard_normal(1600)
            soundfile.write(tmp_path / "sounds" / tag / f"{number}.wav", wave, 16_000)
    (tmp_path / "sounds" / "low" / "broken.wav").write_bytes(b"RIFF")
    where = {"format": "folders", "root": tmp_path / "sounds", "cache": tmp_path / "cache", "val_share": 0.25}
    prepared = prepare(load_recipe("demo", [f"data.{key}={value}" for key, value in where.items()]), LocalFiles())
    assert [clip.path for clip in prepared.quarantined] == ["low/broken.wav"]
    parts = (prepared.splits.train, prepared.splits.val, prepared.splits.test)
    assert sum(map(len, parts)) == 60
    assert all(parts)
    assert any("gets a fold from 1 to 5" in warning for warning in prepared.summary()["warnings"])
