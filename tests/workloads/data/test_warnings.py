"""What is doubtful about a data set is said in one line, with numbers and the fix; nothing is said of a sound one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.recipes.loader import load_recipe
from workloads.config.data import Data
from workloads.config.recipe import Recipe
from workloads.data.clips import Clip, Dataset
from workloads.data.decoded import DecodedClip
from workloads.data.events import Event
from workloads.data.manifest import read_dataset
from workloads.data.splits import Splits
from workloads.data.warnings import data_warnings
from workloads.runtime.opener import LocalFiles


def clips(*tags: str, name: str = "c") -> tuple[Clip, ...]:
    return tuple(
        Clip(f"{name}{n}", f"{name}{n}.wav", (tag,) if tag else (), 2, f"{name}-s{n}") for n, tag in enumerate(tags)
    )


def warnings(
    train: Sequence[str] = ("a", "b"),
    *,
    val: Sequence[str] = ("a", "b"),
    seconds: Sequence[float] = (),
    rate: int = 16_000,
    settings: Sequence[str] = (),
) -> list[str]:
    splits = Splits(clips(*train), clips(*val, name="v"), clips("a", "b", name="t"))
    everything = (*splits.train, *splits.val, *splits.test)
    dataset = Dataset(everything, tuple(sorted({tag for clip in everything for tag in clip.tags})), "single")
    decoded = {
        f"clip{number}": DecodedClip(samples=round(16_000 * length), rate=16_000, own_rate=rate)
        for number, length in enumerate(seconds)
    }
    return data_warnings(dataset, splits, decoded, recipe(*settings))


def recipe(*settings: str) -> Recipe:
    return load_recipe("demo", ["data.clip_seconds=2.0", *settings])


def test_nothing_is_said_of_a_sound_data_set() -> None:
    assert warnings(seconds=[1.5, 2.0, 2.5]) == []


def test_a_window_much_longer_than_the_clips_is_named_with_the_one_to_set() -> None:
    (warning,) = warnings(seconds=[0.4] * 4 + [0.3999, 0.5])
    assert warning == (
        "data.clip_seconds = 2: 5 times the median clip (0.4 s), so 79% of what models hear is padding: "
        "--set data.clip_seconds=0.5 holds all clips whole"
    )
    assert warnings(seconds=[1.01] * 3) == [], "less than twice as long"


def test_a_few_long_clips_do_not_decide_the_window() -> None:
    (warning,) = warnings(seconds=[0.4] * 39 + [9.0])
    assert warning.endswith("--set data.clip_seconds=0.4 holds 95% of the clips whole")
    (warning,) = warnings(seconds=[0.61] * 6 + [9.0] * 4)
    assert warning.endswith("--set data.clip_seconds=0.61 holds half of the clips whole")


def test_a_low_rate_is_named_with_its_share_and_the_empty_bands() -> None:
    (warning,) = warnings(seconds=[2.0] * 3, rate=8000)
    assert warning.startswith(
        "sample rates: 100% of the clips are at 8000 Hz, below the 16000 Hz of logmel64: above 40"
    )
    assert "about 24% of the mel bands" in warning  # 2595 log10(1 + f / 700): 2146 mel at 4 kHz, 2840 at 8 kHz
    assert warnings(seconds=[2.0] * 3, rate=14_000) == [], "close enough"
    at_32k = warnings(seconds=[2.0], rate=22_050, settings=["models.cnn.front_end.kind=efficientat128"])
    assert [warning.split(":")[1] for warning in at_32k] == [
        " 100% of the clips are at 22050 Hz, below the 32000 Hz of efficientat128"
    ]


def test_events_after_the_end_of_their_clips_are_counted() -> None:
    """As of a table in milliseconds; the last of the events begins within its clip, of b nobody knows the length."""
    splits = Splits(clips("a", "b"), clips("a", "b", name="v"), clips("a", "b", name="t"))
    events = {"c0": (Event("a", 500.0, 900.0), Event("a", 1200.0, 1500.0)), "v0": (Event("a", 1.9, 2.5),)}
    everything = [*splits.train, *splits.val, *splits.test]
    timed = tuple(replace(clip, events=events.get(clip.clip_id)) for clip in everything)
    decoded = {name: DecodedClip(samples=32_000, rate=16_000, own_rate=16_000) for name in ("c0", "v0", "t0")}
    assert data_warnings(Dataset(timed, ("a", "b"), "multi"), splits, decoded, recipe()) == [
        "data.events: 2 of 3 events begin when their clip is over (of c0, which lasts 2 s, one at 500 s), so nothing "
        "sounds in their place: give onsets and offsets in seconds from the start of the clip"
    ]
    assert data_warnings(Dataset(timed, ("a", "b"), "multi"), splits, {}, recipe()) == []


def test_tags_that_hold_commas_in_nearly_every_clip_are_named() -> None:
    joined = ["Dog,Animal"] * 60
    (warning, *_) = warnings(joined, val=["Dog,Animal"])
    assert warning.startswith(
        "column tags: 61 of 63 clips have a tag that holds a comma, such as 'Dog,Animal': one tag"
    )
    assert "semicolons (Dog;Animal) and set data.labels = 'multi'" in warning
    some = warnings(["Hahn, kräht", "b"], val=["Hahn, kräht", "a", "b"])
    assert not any("comma" in warning for warning in some)
    untagged = tuple(replace(clip, tags=()) for clip in clips("a", "b"))
    splits = Splits(untagged, untagged, untagged)
    assert not any(
        "comma" in warning for warning in data_warnings(Dataset(untagged, ("a",), "multi"), splits, {}, recipe())
    )


def test_tags_without_clips_in_a_part_are_named() -> None:
    assert warnings(["a", "b", "v1", "v2"], val=["a", "b", "t"]) == [
        "column tags: 1 of 5 tags have no clip in the train part (t), so no model learns them: add clips with them, or "
        "remove them",
        "column tags: 2 of 5 tags have no clip in the val part (v1, v2), so the val score does not show them: add "
        "clips with them, or remove them",
        "column tags: 3 of 5 tags have no clip in the test part (t, v1, v2), so the test score does not show them: add "
        "clips with them, or remove them",
    ]


@pytest.mark.parametrize(
    ("columns", "cells", "said"),
    [
        ("", "", ["column source: 4 clips name none", "column fold: there is none"]),
        (",source", ",me", ["column fold: there is none"]),
        (",fold,source", ",1,me", []),
        (",fold", ",1", ["column source: 4 clips name none"]),
    ],
)
def test_sources_and_folds_that_the_table_lacks_are_named(tmp_path: Path, columns: str, cells: str, said: list) -> None:
    table = tmp_path / "clips.csv"
    table.write_text(f"clip_id,path,tags{columns}\n" + "".join(f"c{n},{n}.wav,a{cells}\n" for n in range(4)))
    data = Data(format="manifest", manifest=str(table))
    dataset = read_dataset(data, LocalFiles())
    splits = Splits(dataset.clips, dataset.clips, dataset.clips)
    found = data_warnings(dataset, splits, {}, replace(recipe(), data=data))
    assert [warning[: len(start)] for warning, start in zip(found, said, strict=True)] == said


def test_one_recording_in_several_spellings_is_named() -> None:
    train, test = clips("a", "b", "a"), clips("a", "b", name="t")
    sources = ["s1", "s2", "s3", "s1 ", "S1"]
    respelt = tuple(replace(clip, source=source) for clip, source in zip((*train, *test), sources, strict=True))
    found = data_warnings(Dataset(respelt, ("a", "b"), "single"), Splits(respelt[:3], test, respelt[3:]), {}, recipe())
    assert found == [
        "column source: 1 sources are spelt in several ways ('S1', 's1', 's1 '), which differ only in spaces or "
        "capitals and count as different recordings, so clips of one may be in training and in test: spell each source "
        "in one way"
    ]


@pytest.mark.parametrize(
    ("across", "said"),
    [(True, "1 of them to clips of different parts, so scores are too good"), (False, "of one part each")],
)
def test_a_file_of_several_clips_is_named(across: bool, said: str) -> None:
    train, val, test = clips("a", "b", "a"), clips("a", "b", name="v"), clips("a", "b", name="t")
    again = replace(test[0] if across else train[0], path="c1.wav")
    train, test = (train, (again, *test[1:])) if across else ((again, *train[1:]), test)
    dataset = Dataset((*train, *val, *test), ("a", "b"), "single")
    names = "c1, t0" if across else "c0, c1"
    assert data_warnings(dataset, Splits(train, val, test), {}, recipe()) == [
        f"column path: 1 files belong to several clips ('c1.wav' to {names}), {said}: give each file one row, with all "
        "of its tags"
    ]


def test_unlabelled_clips_that_teach_nothing_are_named() -> None:
    unlabelled = tuple(replace(clip, tags=(), labelled=False) for clip in clips("a", "b", "c", name="u"))
    labelled = clips("a", "b")
    dataset = Dataset((*labelled, *unlabelled), ("a", "b"), "single")
    splits = Splits((*labelled, *unlabelled[:1]), labelled, labelled, left_out=unlabelled[1:])
    left_out = (
        "column labelled: 2 unlabelled clips are used nowhere, because they are in test fold 1 or of recordings that "
        "are validated on: label them, or give those of other recordings another fold or a source of their own"
    )
    assert data_warnings(dataset, splits, {}, recipe("compare=false")) == [left_out]
    (compared,) = data_warnings(dataset, splits, {}, recipe("compare=true"))[1:]
    assert compared.startswith("compare: 1 of 3 training clips have no label, so the control, which hears the student")
    assert data_warnings(dataset, splits, {}, recipe("compare=false", "edges=[]")) == [
        left_out,
        "data.unlabelled = 'hear': 1 of 3 training clips have no label, and the recipe has no edges, so nothing is "
        "learned from them: --set data.unlabelled=leave_out",
    ]
    without = Splits(labelled, labelled, labelled, left_out=unlabelled)
    untaught = recipe("compare=false", "edges=[]", "data.unlabelled=leave_out")
    assert data_warnings(dataset, without, {}, untaught) == [], "as the user said"
