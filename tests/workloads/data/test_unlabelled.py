"""Clips without labels: read from a manifest, split so that they only train, and made of labelled ones by a share."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.datasets import make_dataset
from workloads.config.data import Data
from workloads.data.clips import Clip, Dataset
from workloads.data.manifest import read_dataset
from workloads.data.splits import require_labels, split
from workloads.runtime.opener import LocalFiles

LABELS = ["single", "multi"]


def read_rows(folder: Path, rows: str, *, labels: str = "single", header: str = "tags,labelled") -> Dataset:
    file = folder / "clips.csv"
    file.write_text(f"clip_id,path,{header}\n{rows}")
    return read_dataset(Data(format="manifest", root=str(folder), manifest=str(file), labels=labels), LocalFiles())


@pytest.mark.parametrize("labels", LABELS)
def test_nothing_is_known_of_a_clip_that_is_not_labelled(tmp_path: Path, labels: str) -> None:
    dataset = read_rows(tmp_path, "a,a.wav,dog,\nb,b.wav,,no\nc,c.wav,rain,1\n", labels=labels)
    assert [clip.labelled for clip in dataset.clips] == [True, False, True]
    assert dataset.tags == ("dog", "rain")
    np.testing.assert_array_equal(dataset.targets(dataset.clips), [[1, 0], [np.nan, np.nan], [0, 1]])
    assert dataset.clips_per_tag(dataset.clips) == ([1, 1], [2, 2])


@pytest.mark.parametrize(
    ("spelling", "labelled"),
    [(text, True) for text in ("", " ", "true", "True", "TRUE", "1", "1.0", "yes", " Yes ")]
    + [(text, False) for text in ("false", "False", "FALSE", "0", "0.0", "no", " NO")],
)
def test_labelled_is_written_in_many_ways(tmp_path: Path, spelling: str, labelled: bool) -> None:
    dataset = read_rows(tmp_path, f"a,a.wav,dog,\nb,b.wav,{'dog' if labelled else ''},{spelling}\n")
    assert dataset.clips[1].labelled is labelled


def test_parquet_has_truth_values(tmp_path: Path) -> None:
    columns = {"clip_id": ["a", "b"], "path": ["a.wav", "b.wav"], "tags": [["dog"], []], "labelled": [None, False]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "clips.parquet")
    data = Data(format="manifest", root=str(tmp_path), manifest=str(tmp_path / "clips.parquet"))
    from_csv = read_rows(tmp_path, "a,a.wav,dog,\nb,b.wav,,false\n")
    assert read_dataset(data, LocalFiles()) == from_csv


@pytest.mark.parametrize(
    ("rows", "labels", "header", "message"),
    [
        ("a,a.wav,dog,\nb,b.wav,,maybe\n", "single", "tags,labelled", "row 2: labelled = 'maybe': must be true or"),
        ("a,a.wav,dog,False\n", "single", "tags,labelled", "row 1: labelled = 'False', but tags = 'dog': empty that"),
        ("a,a.wav,,dog,0\n", "multi", "tags,absent,labelled", "row 1: labelled = '0', but absent = 'dog': empty that"),
        ("a,a.wav,dog,\nb,b.wav,,true\n", "single", "tags,labelled", "row 2: the clip has no tag; .* column labelled"),
        ("a,a.wav,,no\nb,b.wav,,no\n", "multi", "tags,labelled", "no clip has a tag"),
    ],
)
def test_mistakes_name_row_and_fix(tmp_path: Path, rows: str, labels: str, header: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path, rows, labels=labels, header=header)


def test_the_fingerprint_tells_unlabelled_from_untagged_and_is_the_old_one_where_all_are_labelled(
    tmp_path: Path,
) -> None:
    untagged = read_rows(tmp_path, "a,a.wav,dog,\nb,b.wav,,\n", labels="multi")
    unlabelled = read_rows(tmp_path, "a,a.wav,dog,\nb,b.wav,,false\n", labels="multi")
    without_column = read_rows(tmp_path, "a,a.wav,dog\nb,b.wav,\n", labels="multi", header="tags")
    assert untagged.fingerprint() == without_column.fingerprint() != unlabelled.fingerprint()
    old = Dataset((Clip("a", "a.wav", ("dog",), 1, "s"),), ("dog",), "single").fingerprint()
    assert old == "6000b2e1c47ab171b085838576db93ed3c611728af890066542b98af11f594e0"


def ids(clips: tuple[Clip, ...]) -> set[str]:
    return {clip.clip_id for clip in clips}


@pytest.mark.parametrize("labels", LABELS)
def test_unlabelled_clips_only_train(labels: str) -> None:
    """The fourth clip of each source has no label, and some sources have no other: splits are those without them."""
    dataset, data = make_dataset(labels=labels, per_source=3), Data(labels=labels, val_share=0.25)
    expected = split(dataset, data)
    fourth = [Clip(f"{n:02}-x", f"{n}-x.wav", (), 1 + n % 5, f"s{n:02}", labelled=False) for n in range(70)]
    clips = sorted((*dataset.clips, *fourth), key=lambda clip: clip.clip_id)
    splits = split(replace(dataset, clips=tuple(clips)), data)
    assert (splits.val, splits.test) == (expected.val, expected.test)
    assert tuple(clip for clip in splits.train if clip.labelled) == expected.train
    held_out = {clip.source for clip in (*expected.val, *expected.test)}
    in_test_fold = {clip.clip_id for clip in fourth if clip.fold == 1}
    assert ids(splits.left_out) == {clip.clip_id for clip in fourth if clip.source in held_out} | in_test_fold
    unlabelled = {clip.clip_id for clip in splits.train if not clip.labelled}
    assert unlabelled == ids(tuple(fourth)) - ids(splits.left_out)
    assert {"61-x", "62-x"} <= unlabelled, "of recordings without labelled clips"
    without = split(replace(dataset, clips=tuple(clips)), replace(data, unlabelled="leave_out"))
    assert (without.train, without.val, without.test) == (expected.train, expected.val, expected.test)
    assert ids(without.left_out) == ids(tuple(fourth))


@pytest.mark.parametrize("labels", LABELS)
def test_shares_of_labels_are_nested_and_of_whole_recordings(labels: str) -> None:
    dataset, data = make_dataset(labels=labels), Data(labels=labels, val_share=0.25)
    whole, smaller = split(dataset, data), set[str]()
    for share, clips in ((0.1, 12), (0.25, 24 if labels == "single" else 27), (0.5, 48 if labels == "single" else 54)):
        splits = split(dataset, replace(data, labelled_share=share))
        labelled = tuple(clip for clip in splits.train if clip.labelled)
        sources = {clip.source for clip in labelled}
        assert smaller <= ids(labelled)
        assert set(labelled) <= set(whole.train)
        assert {clip.source for clip in splits.train if not clip.labelled}.isdisjoint(sources)
        assert [clip.clip_id for clip in splits.train] == [clip.clip_id for clip in whole.train]
        assert (splits.val, splits.test, splits.left_out) == (whole.val, whole.test, ())
        assert len(labelled) == clips, "of 108 clips in recordings of 3, with one tag a clip 27 of each tag"
        without = split(dataset, replace(data, labelled_share=share, unlabelled="leave_out"))
        assert without.train == labelled
        smaller = ids(labelled)
    assert split(dataset, replace(data, labelled_share=1.0)) == whole


def test_labels_are_kept_of_every_tag_in_equal_shares_in_another_order_by_seed() -> None:
    dataset, data = make_dataset(labels="single", per_source=1, sources=400), Data(labelled_share=0.25)
    train = split(dataset, data).train
    have, kept = Counter[str](), Counter[str]()
    for clip in train:
        kept.update(clip.tags)
    by_id = {clip.clip_id: clip for clip in dataset.clips}
    for clip in train:
        have.update(by_id[clip.clip_id].tags)
    assert kept == {tag: math.ceil(count / 4 - 0.5) for tag, count in have.items()}, "a quarter of each, rounded"
    chosen = {clip.source for clip in train if clip.labelled}
    other = {clip.source for clip in split(dataset, replace(data, split_seed=1)).train if clip.labelled}
    assert chosen != other


def test_which_recordings_keep_labels_does_not_depend_on_others() -> None:
    """A recording's place follows from its name, so another validation slice changes only a few of them."""
    dataset, data = make_dataset(labels="multi", per_source=1, sources=200), Data(labels="multi", labelled_share=0.5)
    first, second = (split(dataset, replace(data, val_slice=number)) for number in (0, 1))
    both = ids(first.train) & ids(second.train)
    kept = [{clip.clip_id for clip in parts.train if clip.labelled} & both for parts in (first, second)]
    assert len(kept[0] ^ kept[1]) <= 16, "at most one for each that left or came"


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_a_tag_that_would_lose_all_its_labels_is_named_with_a_share_that_keeps_it() -> None:
    """A tag that is never a recording's commonest keeps labels only as far as these recordings do."""
    dataset = make_dataset(labels="single", sources=40, tags=2)
    last = max(range(40), key=lambda n: n if (n % 5) else -1)
    rare = tuple(replace(clip, tags=("bell",)) if clip.clip_id == f"{last}-2" else clip for clip in dataset.clips)
    dataset = Dataset(rare, ("bell", "tag0", "tag1"), "single")
    data = Data(val_share=0.5, labelled_share=0.01)
    val_slice = next(n for n in (0, 1) if f"{last}-2" in ids(split(dataset, Data(val_share=0.5, val_slice=n)).train))
    data = replace(data, val_slice=val_slice)
    with pytest.raises(ValueError, match=r"labelled_share = 0.01: no labelled .* tags bell; --set") as refused:
        split(dataset, data)
    enough = float(str(refused.value).rsplit("=", 1)[1])
    kept = {tag for clip in split(dataset, replace(data, labelled_share=enough)).train for tag in clip.tags}
    assert kept == {"bell", "tag0", "tag1"}
    with pytest.raises(ValueError, match="no labelled training clip is left"):
        split(dataset, replace(data, labelled_share=round(enough - 0.01, 2)))


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"labelled_share = .*: must be above 0 and at most 1"):
        Data(labelled_share=share)


def test_models_that_learn_from_labels_need_some() -> None:
    dataset = make_dataset(labels="multi")
    data = Data(labels="multi", val_share=0.25)
    train = ids(split(dataset, data).train)
    clips = (replace(clip, tags=(), absent=()) if clip.clip_id in train else clip for clip in dataset.clips)
    unknown = replace(dataset, clips=tuple(clips))
    require_labels(dataset, split(dataset, data), ["cnn"])
    require_labels(unknown, split(unknown, data), [])
    with pytest.raises(
        ValueError, match="no label of the 108 training clips is known, and cnn would learn from labels"
    ):
        require_labels(unknown, split(unknown, data), ["cnn"])
