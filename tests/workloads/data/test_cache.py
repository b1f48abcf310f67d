"""The clip cache: clips are decoded once, stored atomically, evicted above the limit, quarantined with a reason."""

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import soundfile
import torch

from workloads.config.data import Data
from workloads.data import cache as cache_module
from workloads.data.cache import ClipCache
from workloads.data.clips import Clip
from workloads.data.manifest import read_dataset
from workloads.runtime.opener import LocalFiles


class CountingFiles(LocalFiles):
    """Logs every opened file; several processes may share the log."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def open(self, uri: str) -> BinaryIO:
        with self.log.open("a") as log:
            log.write(f"{Path(uri).name}\n")
        return super().open(uri)

    def opened(self) -> Counter[str]:
        return Counter(self.log.read_text().split() if self.log.exists() else [])


def tones(folder: Path, count: int, *, seconds: float = 0.5, rate: int = 16_000) -> list[Clip]:
    """`count` WAV files, each a tone of another pitch."""
    clips = []
    for number in range(count):
        time_T = np.arange(round(seconds * rate)) / rate
        soundfile.write(folder / f"{number}.wav", 0.5 * np.sin(2 * np.pi * (200 + 50 * number) * time_T), rate)
        clips.append(Clip(f"c{number}", f"{number}.wav", ("t",), 1, f"c{number}"))
    return clips


def data_at(folder: Path) -> Data:
    return Data(format="manifest", root=str(folder), manifest="unused.csv")


def make_cache(folder: Path, *, rate: int = 16_000, limit_gb: float = 1.0) -> ClipCache:
    return ClipCache(folder / "cache", rate=rate, limit_gb=limit_gb)


def test_the_length_of_every_usable_clip_is_that_of_its_file(tmp_path: Path) -> None:
    clips = [*tones(tmp_path, 2, seconds=0.5), Clip("broken", "broken.wav", ("t",), 1, "broken")]
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    for _ in ("decoded", "stored"):
        cache = make_cache(tmp_path, rate=8000)
        cache.prepare(clips, data_at(tmp_path), LocalFiles())
        assert [decoded.seconds for decoded in cache.decoded().values()] == [0.5, 0.5]


def test_clips_are_loaded_with_all_16_bits_unchanged(tmp_path: Path) -> None:
    clips, cache = tones(tmp_path, 3), make_cache(tmp_path)
    assert cache.prepare(clips, data_at(tmp_path), LocalFiles()) == []
    for clip in clips:
        samples, _ = soundfile.read(tmp_path / clip.path, dtype="float32")
        assert torch.equal(cache.load(clip.clip_id), torch.from_numpy(samples))


def test_a_second_cache_over_the_same_folder_decodes_nothing(tmp_path: Path) -> None:
    clips, opener = tones(tmp_path, 5), CountingFiles(tmp_path / "log")
    for _ in range(2):
        make_cache(tmp_path).prepare(clips, data_at(tmp_path), opener)
    assert set(opener.opened().values()) == {1}


def test_a_changed_file_and_another_rate_are_decoded_again(tmp_path: Path) -> None:
    clips, opener, cache = tones(tmp_path, 1), CountingFiles(tmp_path / "log"), make_cache(tmp_path)
    cache.prepare(clips, data_at(tmp_path), opener)
    soundfile.write(tmp_path / "0.wav", np.zeros(100), 16_000)
    cache.prepare(clips, data_at(tmp_path), opener)
    assert len(cache.load("c0")) == 100
    at_8k = make_cache(tmp_path, rate=8_000)
    at_8k.prepare(clips, data_at(tmp_path), opener)
    assert len(at_8k.load("c0")) == 50
    assert opener.opened() == {"0.wav": 3}


PREPARE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_cache import CountingFiles, data_at, make_cache
from workloads.data.clips import Clip
folder = Path(sys.argv[1])
clips = [Clip(f"c{n}", f"{n}.wav", ("t",), 1, f"c{n}") for n in range(40)]
print("ready", flush=True)
sys.stdin.readline()
cache = make_cache(folder)
assert cache.prepare(clips, data_at(folder), CountingFiles(folder / "log")) == []
assert len(cache.load("c39")) == 8000
"""


def test_two_processes_at_once_decode_each_clip_once(tmp_path: Path) -> None:
    tones(tmp_path, 40)
    command = [sys.executable, "-c", PREPARE, str(tmp_path), str(Path(__file__).parent)]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for process in both:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in both:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.wait(timeout=60) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert CountingFiles(tmp_path / "log").opened() == {f"{number}.wav": 1 for number in range(40)}


def test_a_partial_file_of_a_killed_writer_is_ignored_and_removed(tmp_path: Path) -> None:
    clips, opener, cache = tones(tmp_path, 1), CountingFiles(tmp_path / "log"), make_cache(tmp_path)
    cache.prepare(clips, data_at(tmp_path), opener)
    (stored,) = cache.folder.glob("*.npy")
    half = stored.with_name(stored.name + ".part")
    stored.rename(half)
    half.write_bytes(half.read_bytes()[:1000])
    again = make_cache(tmp_path)
    assert again.prepare(clips, data_at(tmp_path), opener) == []
    assert len(again.load("c0")) == 8000
    assert list(again.folder.glob("*.part")) == []
    assert opener.opened() == {"0.wav": 2}


def usable_and_broken_files(folder: Path) -> list[Clip]:
    """Eight files as they occur in practice: three usable, five not."""
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal(22_050)
    soundfile.write(folder / "stereo.flac", np.stack([noise, noise], axis=1), 44_100)
    soundfile.write(folder / "low.mp3", noise, 8_000)
    soundfile.write(folder / "short.wav", noise[:1600], 16_000)
    soundfile.write(folder / "whole.wav", noise, 16_000)
    (folder / "truncated.wav").write_bytes((folder / "whole.wav").read_bytes()[:5000])
    (folder / "whole.wav").unlink()
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.ogg").write_text("not a sound\n" * 100)
    soundfile.write(folder / "nan.wav", np.array([0.0, np.nan]), 16_000, subtype="FLOAT")
    names = ["stereo.flac", "low.mp3", "short.wav", "truncated.wav", "empty.wav", "text.ogg", "nan.wav", "gone.wav"]
    return [Clip(name.split(".")[0], name, ("t",), 1, name) for name in names]


def test_broken_files_are_quarantined_with_their_reasons_and_the_others_are_loaded(tmp_path: Path) -> None:
    clips, cache = usable_and_broken_files(tmp_path), make_cache(tmp_path)
    quarantined = cache.prepare(clips, data_at(tmp_path), LocalFiles())
    reasons = {clip.clip_id: clip.reason for clip in quarantined}
    assert list(reasons) == ["truncated", "empty", "text", "nan", "gone"]
    assert reasons["truncated"].startswith("cut short: 2478 of 22050")
    assert reasons["empty"] == "is empty"
    assert reasons["text"].startswith("cannot be decoded")
    assert reasons["nan"] == "holds samples that are NaN or infinite"
    assert reasons["gone"] == "not found"
    assert len(cache.load("stereo")) == 8000
    assert len(cache.load("low")) == pytest.approx(44_100, rel=0.05)
    assert len(cache.load("short")) == 1600
    with pytest.raises(AssertionError, match="quarantined"):
        cache.load("nan")


def test_a_broken_file_is_not_decoded_again_until_it_changes(tmp_path: Path) -> None:
    clips, opener = usable_and_broken_files(tmp_path), CountingFiles(tmp_path / "log")
    first = make_cache(tmp_path).prepare(clips, data_at(tmp_path), opener)
    assert make_cache(tmp_path).prepare(clips, data_at(tmp_path), opener) == first
    assert opener.opened()["text.ogg"] == 1
    soundfile.write(tmp_path / "text.ogg", np.zeros(1600), 16_000)
    soundfile.write(tmp_path / "gone.wav", np.zeros(1600), 16_000)
    still_broken = make_cache(tmp_path).prepare(clips, data_at(tmp_path), opener)
    assert [clip.clip_id for clip in still_broken] == ["truncated", "empty", "nan"]


def test_folders_pipes_and_loops_are_quarantined(tmp_path: Path) -> None:
    clips = tones(tmp_path, 1)
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    os.symlink("loop.wav", tmp_path / "loop.wav")
    clips += [Clip(name, f"{name}.wav", ("t",), 1, name) for name in ("folder", "pipe", "loop")]
    quarantined = make_cache(tmp_path).prepare(clips, data_at(tmp_path), LocalFiles())
    reasons = {clip.clip_id: clip.reason for clip in quarantined}
    assert list(reasons) == ["folder", "pipe", "loop"]
    assert reasons["folder"] == "is a folder"
    assert reasons["pipe"] == "is a pipe or a device"


class FailingFiles(LocalFiles):
    """A store that is unavailable for one file."""

    def open(self, uri: str) -> BinaryIO:
        if uri.endswith("1.wav"):
            raise OSError("s3://bucket/1.wav: no connection")
        return super().open(uri)


def test_a_store_that_cannot_be_read_is_no_fault_of_its_clips(tmp_path: Path) -> None:
    """Quarantined, they would change the data set's fingerprint, and no run on it could be resumed."""
    clips, cache = tones(tmp_path, 3), make_cache(tmp_path)
    with pytest.raises(OSError, match=f"no connection: {tmp_path}/1.wav"):
        cache.prepare(clips, data_at(tmp_path), FailingFiles())
    assert cache.prepare(clips, data_at(tmp_path), LocalFiles()) == []


def test_a_full_disk_names_the_setting_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module, "replace_bytes", full)
    cache = make_cache(tmp_path)
    with pytest.raises(OSError, match=f"No space left on device: data.cache = '{cache.folder}'; free space there"):
        cache.prepare(tones(tmp_path, 1), data_at(tmp_path), LocalFiles())


def test_a_cache_that_is_no_folder_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        cache = ClipCache(folder, rate=16_000, limit_gb=1.0)
        with pytest.raises(ValueError, match=f"data.cache = '{folder}': .*; choose another folder"):
            cache.prepare(tones(tmp_path, 1), data_at(tmp_path), LocalFiles())


def test_clips_whose_files_were_mended_are_listed_also_when_they_are_stored_already(tmp_path: Path) -> None:
    clips = tones(tmp_path, 2)
    samples, _ = soundfile.read(tmp_path / "1.wav")
    soundfile.write(tmp_path / "1.wav", 8 * samples, 16_000, subtype="FLOAT")
    for _ in range(2):
        cache = make_cache(tmp_path)
        assert cache.prepare(clips, data_at(tmp_path), LocalFiles()) == []
        (mended,) = cache.mended()
        assert (mended.clip_id, mended.notes) == ("c1", ("goes beyond full scale (peak 4): scaled down",))
        assert cache.load("c1").abs().max() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("content", [b"", b"not numpy", b"half"])
def test_a_damaged_stored_clip_is_decoded_again(tmp_path: Path, content: bytes) -> None:
    clips, cache = tones(tmp_path, 1), make_cache(tmp_path)
    cache.prepare(clips, data_at(tmp_path), LocalFiles())
    (stored,) = cache.folder.glob("*.npy")
    expected, whole = cache.load("c0"), stored.read_bytes()
    stored.write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
    assert torch.equal(cache.load("c0"), expected)
    assert stored.read_bytes() == whole


def test_a_damaged_failure_record_is_made_again(tmp_path: Path) -> None:
    clips = tones(tmp_path, 1)
    (tmp_path / "0.wav").write_text("no sound")
    quarantined = make_cache(tmp_path).prepare(clips, data_at(tmp_path), LocalFiles())
    (failure,) = (tmp_path / "cache").glob("*.json")
    failure.write_bytes(b"\xff{half")
    assert make_cache(tmp_path).prepare(clips, data_at(tmp_path), LocalFiles()) == quarantined
    assert failure.read_bytes().startswith(b"{")


def test_lengths_and_own_rates_are_known_without_decoding_again(tmp_path: Path) -> None:
    clips, opener = usable_and_broken_files(tmp_path), CountingFiles(tmp_path / "log")
    first = make_cache(tmp_path)
    assert first.decoded_before(clips, data_at(tmp_path), opener) == {}
    first.prepare(clips, data_at(tmp_path), opener)
    again = make_cache(tmp_path)
    again.prepare(clips, data_at(tmp_path), opener)
    before = make_cache(tmp_path).decoded_before(clips, data_at(tmp_path), opener)
    for decoded in (first.decoded(), again.decoded(), before):
        assert {name: (one.own_rate, one.seconds) for name, one in decoded.items()} == {
            "stereo": (44_100, 0.5),
            "low": (8_000, 2.75625),
            "short": (16_000, 0.1),
        }
    assert opener.opened()["stereo.flac"] == 1


def test_a_clip_whose_line_in_the_index_is_torn_is_decoded_again_and_no_other(tmp_path: Path) -> None:
    clips, opener = tones(tmp_path, 3), CountingFiles(tmp_path / "log")
    cache = make_cache(tmp_path)
    cache.prepare(clips[:2], data_at(tmp_path), opener)
    index = cache.folder / "decoded.jsonl"
    torn = index.read_bytes()[:-20]  # what a kill in the middle of the last line leaves
    index.write_bytes(torn)
    for _ in range(2):
        again = make_cache(tmp_path)
        again.prepare(clips, data_at(tmp_path), opener)
        assert [decoded.samples for decoded in again.decoded().values()] == [8000] * 3
    assert sorted(opener.opened().values()) == [1, 1, 2]


@pytest.mark.parametrize(
    "damage", [{"samples": "5"}, {"samples": -1}, {"samples": 10**400}, {"rate": 0}, {"own_rate": 0.5}, {"notes": "x"}]
)
def test_a_clip_whose_line_holds_no_possible_numbers_is_decoded_again(tmp_path: Path, damage: dict[str, Any]) -> None:
    clips = tones(tmp_path, 1)
    cache = make_cache(tmp_path)
    cache.prepare(clips, data_at(tmp_path), LocalFiles())
    index = cache.folder / "decoded.jsonl"
    index.write_text(json.dumps(json.loads(index.read_text()) | damage))
    again, opener = make_cache(tmp_path), CountingFiles(tmp_path / "log")
    again.prepare(clips, data_at(tmp_path), opener)
    assert [decoded.seconds for decoded in again.decoded().values()] == [0.5]
    assert list(opener.opened().values()) == [1]


def test_above_the_limit_the_least_recently_used_clips_are_evicted_first(tmp_path: Path) -> None:
    clips = tones(tmp_path, 4)  # each 16 128 bytes
    cache = make_cache(tmp_path, limit_gb=50_000 / 1e9)  # room for three
    for age, clip in zip((300, 100, 200), clips[:3], strict=True):
        before = set(cache.folder.glob("*.npy"))
        cache.prepare([clip], data_at(tmp_path), LocalFiles())
        (new,) = set(cache.folder.glob("*.npy")) - before
        os.utime(new, (1e9 - age, 1e9 - age))
    opener = CountingFiles(tmp_path / "log")
    cache.prepare([clips[0]], data_at(tmp_path), opener)  # the oldest file, but used again
    cache.prepare([clips[3]], data_at(tmp_path), opener)
    assert len(list(cache.folder.glob("*.npy"))) == 3
    cache.prepare([clips[0], clips[1]], data_at(tmp_path), opener)
    assert opener.opened() == {"3.wav": 1}, "2 was evicted; 0 and 1 were not"
    assert torch.equal(cache.load("c2"), read_clip(tmp_path, clips[2])), "an evicted clip is decoded again on demand"


def read_clip(folder: Path, clip: Clip) -> torch.Tensor:
    return torch.from_numpy(soundfile.read(folder / clip.path, dtype="float32")[0])


def test_clips_above_the_limit_are_refused_with_the_space_they_need(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, limit_gb=40_000 / 1e9)
    with pytest.raises(ValueError, match=r"data.cache_gb = 4e-05: 3 of 10 clips fill it; all need about 0.000161 GB"):
        cache.prepare(tones(tmp_path, 10), data_at(tmp_path), LocalFiles())


def test_synthetic_clips_are_cached_like_any_other(tmp_path: Path) -> None:
    data = Data(labels="multi", clip_seconds=1.0, synthetic_clips=50)
    dataset, cache = read_dataset(data, LocalFiles()), make_cache(tmp_path)
    assert cache.prepare(dataset.clips, data, LocalFiles()) == []
    other = replace(data, synthetic_seed=1)
    assert cache.prepare(read_dataset(other, LocalFiles()).clips, other, LocalFiles()) == []
    assert len(list(cache.folder.glob("*.npy"))) == 100
    assert cache.load("synthetic-000007").shape == (16_000,)


def test_real_recordings_are_stored_and_loaded(tmp_path: Path, esc10: Path) -> None:
    data = Data(format="esc50", root=str(esc10))
    clips = read_dataset(data, LocalFiles()).clips[::20]
    cache = make_cache(tmp_path)
    assert cache.prepare(clips, data, LocalFiles()) == []
    for clip in clips:
        info = soundfile.info(esc10 / clip.path)
        assert len(cache.load(clip.clip_id)) == pytest.approx(info.duration * 16_000, abs=2)
