"""Keywords in noise: the same bits on every worker, the stated place and signal-to-noise ratio, split by speaker."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from sklearn.linear_model import LogisticRegression

from workloads.config.data import Data
from workloads.data import espeak
from workloads.data.cache import ClipCache
from workloads.data.clips import Clip
from workloads.data.computed import compute
from workloads.data.decode import BrokenClip
from workloads.data.formant_words import FORMANT_WORDS, draw_voice, say, seconds_of
from workloads.data.manifest import read_dataset
from workloads.data.packing import Packing
from workloads.data.samples import to_integers
from workloads.data.splits import split
from workloads.runtime.opener import LocalFiles

RATE = 16_000
DATA = Data(format="keywords", clip_seconds=4.0, synthetic_clips=100)
needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def clips_of(data: Data) -> tuple[Clip, ...]:
    return read_dataset(data, LocalFiles()).clips


def sound(clip: Clip, data: Data, rate: int = RATE) -> torch.Tensor:
    return compute(clip, data, rate, LocalFiles()).x_T


def recordings(folder: Path, *, words: tuple[str, ...] = ("bed", "cat"), speakers: int = 30) -> Path:
    """A folder in Speech Commands' layout: tones of half a second, and noise of three seconds."""
    time_T = np.arange(RATE // 2) / RATE
    for number, word in enumerate(words):
        (folder / word).mkdir(parents=True)
        for speaker in range(speakers):
            tone_T = 0.3 * np.sin(2 * np.pi * (300 + 200 * number + 5 * speaker) * time_T)
            soundfile.write(folder / word / f"{speaker:08x}_nohash_0.wav", tone_T, RATE)
    (folder / "_background_noise_").mkdir()
    noise_T = 0.1 * np.random.default_rng(0).standard_normal(3 * RATE)
    soundfile.write(folder / "_background_noise_" / "rain.wav", noise_T, RATE)
    return folder


def test_a_clip_is_the_same_whenever_and_wherever_it_is_computed(tmp_path: Path) -> None:
    """Alone, after others, decoded into the cache by another process's settings, or packed."""
    clips = clips_of(DATA)
    first_T = sound(clips[12], DATA)
    sound(clips[13], DATA)
    assert torch.equal(first_T, sound(clips[12], DATA))
    assert not torch.equal(first_T, sound(clips[13], DATA))
    assert first_T.dtype == torch.float32
    assert first_T.shape == (4 * RATE,)
    assert sound(clips[12], DATA, 32_000).shape == (8 * RATE,)
    cache = ClipCache(tmp_path, rate=RATE, limit_gb=1.0)
    assert cache.prepare(clips[10:14], DATA, LocalFiles()) == []
    stored_T = to_integers(first_T)
    assert np.array_equal(to_integers(cache.load(clips[12].clip_id)), stored_T)
    _, _, packed = Packing(DATA, LocalFiles(), "flac", RATE).content(clips[12])
    assert torch.equal(packed.x_T, first_T)
    reseeded = replace(DATA, synthetic_seed=1)
    assert not torch.equal(first_T, sound(clips_of(reseeded)[12], reseeded))


def test_the_path_holds_what_the_sound_depends_on() -> None:
    """So that caches and fingerprints of data sets differ where the sounds do."""
    assert len({clip.path for clip in clips_of(DATA)}) == len(clips_of(DATA))
    paths = {clips_of(DATA)[0].path}
    for changed in (
        {"clip_seconds": 2.0},
        {"synthetic_seed": 1},
        {"snr_db": (0.0, 10.0)},
        {"words": ("no", "yes")},
    ):
        paths.add(clips_of(replace(DATA, **changed))[0].path)
    assert len(paths) == 5


@pytest.mark.parametrize("seconds", [2.0, 4.0, 6.0, 8.0])
def test_the_keyword_is_between_onset_and_offset_at_the_drawn_ratio(seconds: float) -> None:
    """The same clips with the keyword 200 dB lower differ by the keyword alone."""
    loud, silent = (replace(DATA, clip_seconds=seconds, snr_db=(ratio, ratio)) for ratio in (6.0, -100.0))
    onsets = []
    for clip, quiet in zip(clips_of(loud)[:12], clips_of(silent)[:12], strict=True):
        assert clip.events is not None
        (event,) = clip.events
        assert (event,) == quiet.events
        assert (event.tag,) == clip.tags
        assert 0 <= event.onset < event.offset <= seconds
        noise_T = sound(quiet, silent)
        keyword_T = sound(clip, loud) - noise_T
        part = slice(round(event.onset * RATE), round(event.offset * RATE))
        outside_T = keyword_T.clone()
        outside_T[part.start - 1 : part.stop + 1] = 0
        assert outside_T.abs().max() < 1e-6
        ratio = 10 * torch.log10(keyword_T[part].square().mean() / noise_T[part].square().mean())
        assert float(ratio) == pytest.approx(6.0, abs=0.02)
        onsets.append(event.onset / (seconds - (event.offset - event.onset)))
    assert max(onsets) - min(onsets) > 0.5


def test_places_are_anywhere_in_the_clip_and_ratios_anywhere_in_the_range() -> None:
    data = replace(DATA, synthetic_clips=2000)
    places = [
        event.onset / (4.0 - (event.offset - event.onset)) for clip in clips_of(data) for event in clip.events or ()
    ]
    counts, _ = np.histogram(places, bins=5, range=(0, 1))
    assert counts.sum() == 2000
    assert counts.min() > 350


def test_words_are_in_equal_shares_in_every_fold() -> None:
    for fold in range(1, 6):
        words = Counter(clip.tags[0] for clip in clips_of(DATA) if clip.fold == fold)
        assert words == dict.fromkeys(FORMANT_WORDS, 2)
    assert {clip.source for clip in clips_of(DATA)} == {clip.clip_id for clip in clips_of(DATA)}


def test_formant_words_can_be_told_apart_in_other_voices() -> None:
    """From their spectra over time, by a linear model that has heard other voices."""
    features, words = [], []
    for number, word in enumerate(FORMANT_WORDS):
        for take in range(8):
            generator = np.random.default_rng([number, take])
            voice = draw_voice(generator)
            x_T = say(word, voice, generator)
            assert len(x_T) == round(seconds_of(word, voice) * RATE) <= RATE
            assert np.abs(x_T).max() == 1
            parts = [np.abs(np.fft.rfft(part, 1024))[:480] for part in np.array_split(x_T, 6)]
            bands = [np.log(band.mean() + 1e-3) for part in parts for band in np.array_split(part, 16)]
            features.append(bands)
            words.append(word)
    known = np.arange(len(words)) % 8 < 5
    x_NK, y_N = np.array(features), np.array(words)
    model = LogisticRegression(C=0.1, max_iter=500).fit(x_NK[known], y_N[known])
    assert model.score(x_NK[~known], y_N[~known]) > 0.8


def test_recorded_keywords_are_split_by_speaker_or_by_their_lists(tmp_path: Path) -> None:
    root = recordings(tmp_path / "plain")
    data = Data(format="keywords", keywords="folder", root=str(root), clip_seconds=2.0)
    dataset = read_dataset(data, LocalFiles())
    assert len(dataset.clips) == 60
    assert dataset.warnings == ()
    folds = {
        clip.source: {other.fold for other in dataset.clips if other.source == clip.source} for clip in dataset.clips
    }
    assert len(folds) == 30
    assert all(len(own) == 1 for own in folds.values())
    fewer = read_dataset(replace(data, synthetic_clips=51), LocalFiles())
    assert Counter(clip.tags[0] for clip in fewer.clips) == {"bed": 26, "cat": 25}
    assert fewer.warnings == ("data.synthetic_clips = 51: 51 of 60 recordings are used",)

    (root / "testing_list.txt").write_text("bed/00000000_nohash_0.wav\ncat/00000000_nohash_0.wav\n")
    with pytest.raises(ValueError, match=r"has no validation_list.txt, only the other list"):
        read_dataset(data, LocalFiles())
    (root / "validation_list.txt").write_text("bed/00000001_nohash_0.wav\ncat/00000001_nohash_0.wav\n")
    listed = read_dataset(data, LocalFiles())
    splits = split(listed, data)
    assert [clip.clip_id for clip in splits.test] == ["bed/00000000_nohash_0.wav", "cat/00000000_nohash_0.wav"]
    assert [clip.clip_id for clip in splits.val] == ["bed/00000001_nohash_0.wav", "cat/00000001_nohash_0.wav"]
    with pytest.raises(ValueError, match=r"test_fold = 2: format speechcommands names its test clips"):
        read_dataset(replace(data, test_fold=2), LocalFiles())


def test_a_recording_lies_in_the_middle_of_its_second_in_recorded_noise(tmp_path: Path) -> None:
    root = recordings(tmp_path)
    data = Data(
        format="keywords", keywords="folder", noise="recorded", root=str(root), clip_seconds=4.0, snr_db=(20.0, 20.0)
    )
    clip = clips_of(data)[0]
    assert clip.events is not None
    (event,) = clip.events
    assert event.offset - event.onset == pytest.approx(1.0)
    x_T = sound(clip, data)
    middle = slice(round((event.onset + 0.25) * RATE), round((event.offset - 0.25) * RATE))
    outside_T = torch.cat([x_T[: middle.start], x_T[middle.stop :]])
    assert x_T[middle].square().mean() > 50 * outside_T.square().mean()
    assert torch.equal(x_T, sound(clip, data))
    cache = ClipCache(tmp_path / "cache", rate=RATE, limit_gb=1.0)
    assert cache.prepare([clip], data, LocalFiles()) == []
    before = cache.entry(clip.clip_id).target
    soundfile.write(
        root / "_background_noise_" / "rain.wav", np.random.default_rng(1).standard_normal(90_000) / 9, RATE
    )
    cache.prepare([clip], data, LocalFiles())
    assert cache.entry(clip.clip_id).target != before, "other noise, another sound"
    soundfile.write(root / clip.clip_id, np.zeros(RATE), RATE)
    (silent,) = cache.prepare([clip], data, LocalFiles())
    assert silent.reason == f"{clip.clip_id}: nothing but silence"


def test_of_noise_with_a_long_pause_the_part_that_was_taken_is_named(tmp_path: Path) -> None:
    root = recordings(tmp_path)
    rain_T = np.concatenate([np.random.default_rng(0).standard_normal(RATE) / 9, np.zeros(60 * RATE)])
    soundfile.write(root / "_background_noise_" / "rain.wav", rain_T, RATE)
    data = Data(format="keywords", keywords="folder", noise="recorded", root=str(root), clip_seconds=4.0)
    with pytest.raises(
        BrokenClip, match=r"^the 4 s that are taken of _background_noise_/rain\.wav: nothing but silence$"
    ):
        sound(clips_of(data)[0], data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": "multi"}, "labels = 'multi': a clip of keywords has one"),
        ({"clip_seconds": 0.5}, "clip_seconds = 0.5: a keyword of 1 second must fit into the clip"),
        ({"snr_db": (3.0, -3.0)}, r"snr_db = \(3.0, -3.0\): must be a range"),
        ({"words": ("yes", "yes")}, "words = .*: names a word twice"),
        ({"words": ("yes", " ")}, "words = .*: names a blank word"),
        ({"keywords": "folder"}, "root = '': keywords = 'folder' needs a folder"),
        ({"noise": "recorded"}, "root = '': noise = 'recorded' needs a folder"),
        ({"events": "x.csv"}, "events = 'x.csv': clips of keywords know when they sound"),
        ({"words": ("yes", "zebra")}, "data.words: zebra cannot be synthesised, only yes, no"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_dataset(replace(DATA, **settings), LocalFiles())


def test_a_folder_without_what_is_asked_for_is_refused(tmp_path: Path) -> None:
    root = recordings(tmp_path)
    data = Data(format="keywords", keywords="folder", root=str(root))
    with pytest.raises(ValueError, match=r"data\.words: no recordings of zebra below"):
        read_dataset(replace(data, words=("bed", "zebra")), LocalFiles())
    (root / "_background_noise_" / "rain.wav").unlink()
    with pytest.raises(ValueError, match=r"no audio in _background_noise_, which data\.noise = 'recorded' takes"):
        read_dataset(replace(data, noise="recorded"), LocalFiles())


def test_without_the_program_spoken_keywords_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    espeak.espeak_version.cache_clear()
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ValueError, match=r"espeak-ng is not on the PATH; .*--set data.keywords=formant"):
        clips_of(replace(DATA, keywords="espeak"))


@needs_espeak
def test_spoken_keywords_have_their_own_voices_in_every_fold_and_the_version_in_their_path() -> None:
    espeak.espeak_version.cache_clear()
    data = replace(DATA, keywords="espeak", words=("marvin", "sheila"), snr_db=(20.0, 20.0))
    clips = clips_of(data)
    folds: dict[str, set[int]] = {}
    for clip in clips:
        folds.setdefault(clip.source, set()).add(clip.fold)
    assert len(folds) > 25, "4 accents, 2 timbres in each fold"
    assert all(len(own) == 1 for own in folds.values())
    assert all(espeak.espeak_version() in clip.path for clip in clips)
    for clip in clips[:6]:
        x_T = sound(clip, data)
        assert torch.equal(x_T, sound(clip, data))
        assert clip.events is not None
        (event,) = clip.events
        inside_T = x_T[round(event.onset * RATE) : round(event.offset * RATE)]
        assert inside_T.square().sum() > 0.8 * x_T.square().sum()
    assert len(split(read_dataset(data, LocalFiles()), data).val) > 0
