"""Reading metadata, and splitting it so that no recording is in two splits."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.datasets import make_dataset
from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.manifest import read_dataset
from workloads.data.splits import require_scorable, split
from workloads.runtime.opener import LocalFiles

ROWS = "clip_id,path,tags,fold,source\nb,b.wav,dog;rain,1,s1\na,a.wav,rain,2,s2\n"


def manifest(folder: Path, text: str, *, labels: str = "multi") -> Data:
    file = folder / "clips.csv"
    file.write_text(text)
    return Data(format="manifest", root=str(folder), manifest=str(file), labels=labels)


def test_esc50_layout_maps_the_categories_that_occur(esc10: Path) -> None:
    dataset = read_dataset(Data(format="esc50", root=str(esc10)), LocalFiles())
    assert len(dataset.clips) == 400
    assert len(dataset.tags) == 10
    assert list(dataset.tags) == sorted(dataset.tags)
    dog = next(clip for clip in dataset.clips if clip.clip_id == "1-100032-A")
    assert dog == Clip("1-100032-A", "audio/1-100032-A.ogg", ("dog",), 1, "100032")
    y_NC = dataset.targets(dataset.clips)
    assert y_NC.dtype == np.float32
    assert y_NC.sum(axis=0).tolist() == [40] * 10
    assert y_NC[dataset.clips.index(dog)].tolist() == [float(tag == "dog") for tag in dataset.tags]


@pytest.mark.parametrize("test_fold", [1, 5])
def test_esc10_splits_keep_recordings_whole_and_slices_partition_the_training_folds(
    esc10: Path, test_fold: int
) -> None:
    data = Data(format="esc50", root=str(esc10), test_fold=test_fold)
    dataset = read_dataset(data, LocalFiles())
    validated: Counter[str] = Counter()
    for val_slice in range(10):
        parts = split(dataset, replace(data, val_slice=val_slice))
        sources = [{clip.source for clip in part} for part in (parts.train, parts.val, parts.test)]
        assert sum(map(len, sources)) == len(set().union(*sources))
        assert {clip.fold for clip in parts.test} == {test_fold}
        assert len(parts.test) == 80
        assert len(parts.train) + len(parts.val) == 320
        assert {tag for clip in parts.val for tag in clip.tags} == set(dataset.tags), (
            "the validation slice has every class"
        )
        validated.update(clip.clip_id for clip in parts.val)
    assert len(validated) == 320
    assert set(validated.values()) == {1}


def test_a_teacher_and_its_student_train_on_different_folds(esc10: Path) -> None:
    """With data.train_folds no clip and no recording of one is heard by the other, and both are tested on the same."""
    data = Data(format="esc50", root=str(esc10), test_fold=2)
    dataset = read_dataset(data, LocalFiles())
    teacher, student = (split(dataset, replace(data, train_folds=folds)) for folds in ((3, 4), (5, 1)))
    assert teacher.test == student.test == split(dataset, data).test
    for parts, folds in ((teacher, {3, 4}), (student, {5, 1})):
        assert {clip.fold for clip in (*parts.train, *parts.val)} == folds
        assert len(parts.train) + len(parts.val) == 160
    heard = [{clip.source for clip in (*parts.train, *parts.val)} for parts in (teacher, student)]
    assert not heard[0] & heard[1]
    unlabelled = replace(dataset, clips=tuple(replace(c, tags=(), labelled=False) for c in dataset.clips))
    assert {clip.fold for clip in split(unlabelled, replace(data, train_folds=(3, 4))).train} == {3, 4}


def test_training_folds_that_cannot_be_are_refused() -> None:
    dataset = make_dataset(labels="single")
    assert Data(train_folds=(3, 2)) == Data(train_folds=(2, 3))
    with pytest.raises(ValueError, match=r"test_fold = 9: no such fold; the folds are 1, 2, 3, 4, 5"):
        split(dataset, Data(test_fold=9, train_folds=(2, 3)))
    with pytest.raises(ValueError, match=r"data.train_folds: no fold 7; the folds are 1, 2, 3, 4, 5"):
        split(dataset, Data(train_folds=(2, 7)))
    shared = replace(dataset, clips=tuple(replace(c, source="s") if c.fold in (2, 3) else c for c in dataset.clips))
    with pytest.raises(ValueError, match=r"source s is in data.train_folds and in other folds \(1 such sources\)"):
        split(shared, Data(train_folds=(2, 4)))
    with pytest.raises(ValueError, match=r"train_folds = .*has the test fold 1"):
        Data(train_folds=(1, 2))
    with pytest.raises(ValueError, match=r"train_folds = .*names a fold twice"):
        Data(train_folds=(2, 2))
    with pytest.raises(ValueError, match=r"train_folds = .*format fsd50k names its training clips"):
        Data(format="fsd50k", root="DIR", labels="multi", train_folds=(2,))


def test_split_seed_changes_the_slices_and_nothing_else_does(esc10: Path) -> None:
    data = Data(format="esc50", root=str(esc10))
    dataset = read_dataset(data, LocalFiles())
    assert split(dataset, data) == split(dataset, replace(data, sampling="balanced"))
    assert split(dataset, data).val != split(dataset, replace(data, split_seed=1)).val
    assert split(dataset, data).test == split(dataset, replace(data, split_seed=1)).test


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_slices_of_many_clips_per_recording_partition_too(labels: str) -> None:
    dataset, data = make_dataset(labels=labels), Data(labels=labels, val_share=0.25)
    slices = [split(dataset, replace(data, val_slice=val_slice)) for val_slice in range(4)]
    seen = [clip.clip_id for parts in slices for clip in parts.val]
    assert sorted(seen) == sorted(clip.clip_id for clip in dataset.clips if clip.fold != 1)
    for parts in slices:
        assert not {clip.source for clip in parts.train} & {clip.source for clip in parts.val}
        assert len(parts.val) == 36, "12 of the 48 recordings"


def test_a_rare_tag_makes_no_noise(recwarn: pytest.WarningsRecorder) -> None:
    """`antiphon data check` says what is wrong with it; scikit-learn's warning would name a file of its own."""
    dataset = make_dataset(labels="single")
    rare = next(clip for clip in dataset.clips if clip.fold != 1)
    clips = tuple(replace(clip, tags=("rare",)) if clip is rare else clip for clip in dataset.clips)
    assert split(replace(dataset, clips=clips, tags=(*dataset.tags, "rare")), Data()).val
    assert [str(warning.message) for warning in recwarn] == []


def test_an_unknown_fold_lists_the_folds() -> None:
    with pytest.raises(ValueError, match=r"test_fold = 7.*1, 2, 3, 4, 5"):
        split(make_dataset(labels="single"), Data(test_fold=7))


def test_a_recording_in_the_test_fold_and_outside_is_refused() -> None:
    dataset = make_dataset(labels="single")
    shared = replace(dataset, clips=(replace(dataset.clips[0], fold=2), *dataset.clips[1:]))
    with pytest.raises(ValueError, match=r"source s00 is in the test fold 1 and in others"):
        split(shared, Data())


def test_more_slices_than_recordings_is_refused() -> None:
    with pytest.raises(ValueError, match=r"val_share = 0.02: that makes 50 slices"):
        split(make_dataset(labels="multi"), Data(labels="multi", val_share=0.02))


def test_a_part_that_cannot_be_scored_is_seen_from_the_labels_alone() -> None:
    """With several tags per clip a part needs a tag that is on a clip and known to be absent from another."""
    dataset = make_dataset(labels="multi")
    data = Data(labels="multi", val_share=0.25)
    require_scorable(dataset, split(dataset, data), data, test=True)
    for part, test_fold, fix in (
        ("test", 1, "choose another data.test_fold"),
        ("val", 2, "choose another data.val_slice"),
    ):
        parts = split(dataset, replace(data, test_fold=test_fold))
        chosen = {clip.clip_id for clip in getattr(parts, part)}
        for change in ({"tags": ()}, {"tags": ("tag0",), "absent": ()}):  # no tag anywhere; nothing known to be absent
            clips = tuple(replace(clip, **change) if clip.clip_id in chosen else clip for clip in dataset.clips)
            without = replace(dataset, clips=clips)
            splits = split(without, replace(data, test_fold=test_fold))
            with pytest.raises(
                ValueError, match=rf"the {part} part \(data.test_fold = {test_fold}\) cannot be .*{fix}"
            ):
                require_scorable(without, splits, replace(data, test_fold=test_fold), test=True)
            if part == "test":
                require_scorable(without, splits, data, test=False)


def test_a_manifest_is_read_whatever_the_order_of_its_rows(tmp_path: Path) -> None:
    dataset = read_dataset(manifest(tmp_path, ROWS), LocalFiles())
    assert dataset.clips == (
        Clip("a", "a.wav", ("rain",), 2, "s2"),
        Clip("b", "b.wav", ("dog", "rain"), 1, "s1"),
    )
    assert dataset.tags == ("dog", "rain")
    assert dataset.targets(dataset.clips).tolist() == [[0, 1], [1, 1]]
    header, first, second, _ = ROWS.split("\n")
    reordered = read_dataset(manifest(tmp_path, "\n".join([header, second, first])), LocalFiles())
    assert reordered == dataset
    assert reordered.fingerprint() == dataset.fingerprint()


def test_parquet_and_csv_give_the_same_data_set(tmp_path: Path) -> None:
    from_csv = read_dataset(manifest(tmp_path, ROWS), LocalFiles())
    table = pyarrow.table(
        {
            "clip_id": ["b", "a"],
            "path": ["b.wav", "a.wav"],
            "tags": [["dog", "rain"], ["rain"]],
            "fold": [1, 2],
            "source": ["s1", "s2"],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "clips.parquet")
    data = Data(format="manifest", root=str(tmp_path), manifest=str(tmp_path / "clips.parquet"), labels="multi")
    assert read_dataset(data, LocalFiles()) == from_csv


def read_parquet(tmp_path: Path, tags: list[Any], **columns: list[Any]) -> Any:
    names = [f"c{number}" for number in range(len(tags))]
    table = pyarrow.table({"clip_id": names, "path": [f"{name}.wav" for name in names], "tags": tags, **columns})
    pyarrow.parquet.write_table(table, tmp_path / "clips.parquet")
    data = Data(format="manifest", root=str(tmp_path), manifest=str(tmp_path / "clips.parquet"), labels="multi")
    return read_dataset(data, LocalFiles())


@pytest.mark.parametrize("tags", [[["dog", None], None], [["dog"], []], [[1.5, float("nan")], [float("nan")]]])
def test_a_parquet_value_that_is_missing_is_no_tag(tmp_path: Path, tags: list[Any]) -> None:
    dataset = read_parquet(tmp_path, tags)
    assert dataset.tags == (str(tags[0][0]),)
    assert [clip.tags for clip in dataset.clips] == [dataset.tags, ()]


@pytest.mark.parametrize(("tags", "kind"), [([b"dog"], "bytes"), ([{"name": "dog"}], "records"), ([[b"dog"]], "bytes")])
def test_a_parquet_value_that_is_no_text_is_refused(tmp_path: Path, tags: list[Any], kind: str) -> None:
    with pytest.raises(ValueError, match=rf"clips.parquet: column tags holds {kind}; write text, numbers, or lists"):
        read_parquet(tmp_path, tags)


@pytest.mark.parametrize("character", ["\n", "\r", "\0"])
def test_a_parquet_cell_that_no_csv_could_hold_is_refused(tmp_path: Path, character: str) -> None:
    with pytest.raises(ValueError, match=r"clips.parquet: column tags holds a line break or a zero byte \('dog"):
        read_parquet(tmp_path, [f"dog{character}", "cat"])


def test_a_parquet_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    columns = [pyarrow.array([value]) for value in ("a", "a.wav", "dog", "cat")]
    table = pyarrow.Table.from_arrays(columns, names=["clip_id", "path", "tags", "tags"])
    pyarrow.parquet.write_table(table, tmp_path / "clips.parquet")
    with pytest.raises(ValueError, match="column 'tags' is there twice"):
        read_dataset(Data(format="manifest", manifest=str(tmp_path / "clips.parquet"), labels="multi"), LocalFiles())


def test_a_column_that_is_nearly_one_that_is_read_is_named(tmp_path: Path) -> None:
    rows = "clip_id,path,tags,labeled,Sources,length\na,a.wav,dog,true,s,1\n"
    assert read_dataset(manifest(tmp_path, rows), LocalFiles()).warnings == (
        "column labeled is not read; is it labelled?",
        "column Sources is not read; is it source?",
    )


def test_without_folds_the_fold_of_a_source_follows_from_its_name(tmp_path: Path) -> None:
    rows = [f"c{number},c{number}.wav,t,s{number // 2}" for number in range(400)]
    header = "clip_id,path,tags,source"
    clips = read_dataset(manifest(tmp_path, "\n".join([header, *rows])), LocalFiles()).clips
    fold_of = {clip.source: clip.fold for clip in clips}
    assert all(clip.fold == fold_of[clip.source] for clip in clips)
    assert set(fold_of.values()) == {1, 2, 3, 4, 5}
    assert min(Counter(fold_of.values()).values()) > 20, "of 200 sources in 5 folds"
    fewer = read_dataset(manifest(tmp_path, "\n".join([header, *rows[:100]])), LocalFiles()).clips
    assert all(clip.fold == fold_of[clip.source] for clip in fewer), "new rows do not move old ones"
    assert [fold_of[f"s{number}"] for number in range(6)] == [3, 3, 4, 2, 3, 5]


def test_a_missing_source_is_the_clip_itself(tmp_path: Path) -> None:
    (clip,) = read_dataset(manifest(tmp_path, "clip_id,path,tags\na,a.wav,t\n"), LocalFiles()).clips
    assert clip.source == "a"


@pytest.mark.parametrize(
    ("text", "labels", "message"),
    [
        ("clip_id,tags\na,t\n", "multi", "no column path; it has clip_id, tags"),
        ("clip_id,path,tags\n", "multi", "holds no clips"),
        ("clip_id,path,tags\na,a.wav,t\na,b.wav,t\n", "multi", "row 2: clip_id 'a' is that of row 1"),
        ("clip_id,path,tags\na,a.wav,t\nb,b.wav, ;\n", "single", "row 2: the clip has no tag"),
        ("clip_id,path\na,a.wav\n", "multi", "no clip has a tag"),
        ("clip_id,path,tags\na,,t\n", "multi", "row 1: path is empty"),
        ("clip_id,path,tags\na,a.wav,t;u\n", "single", "row 1: 2 tags .*labels = 'single'; set it to 'multi'"),
        ("clip_id,path,tags,fold\na,a.wav,t,one\n", "multi", "row 1: fold = 'one': must be a whole number"),
        ("clip_id,path,tags,fold\na,a.wav,t,1e300\n", "multi", "row 1: fold = '1e300': must be a whole number below 2"),
        (f"clip_id,path,tags\n{'a' * 1000},a.wav,t\nb,b\0.wav,t\n", "multi", "line 3: a cell holds a zero byte"),
        ("clip_id,path,tags,fold\na,a.wav,t,1.5\n", "multi", "row 1: fold = '1.5': must be a whole number"),
        ("clip_id,path,tags,fold\na,a.wav,t,1\nb,b.wav,t,\n", "multi", "row 1 has a fold, row 2 has none; give every"),
        ("clip_id,path,tags\na,a.wav,dog, barking\n", "multi", "line 2: 4 cells, the header has 3; put quotes"),
        ("clip_id,path,tags\na,a.wav\n", "multi", "line 2: 2 cells, the header has 3"),
        ('clip_id,path,tags\na,a.wav,"dog\nb,b.wav,cat\n', "multi", "line 2: unexpected end of data; check its quotes"),
        ('clip_id,path,tags\na,a.wav,"dog\nb,b.wav,"\n', "multi", "line 2: a cell goes on to line 3: close its quote"),
        ('clip_id,path,tags\na,a.wav,"dog" cat\n', "multi", "line 2: .* check its quotes"),
        ("clip_id,path,tags,tags\na,a.wav,t,u\n", "multi", "column 'tags' is there twice"),
        (
            "# made by hand\n# YTID, start\na,0\n",
            "multi",
            "begins with a comment .'# made by hand'.; its first line must",
        ),
        ("clip_id;path;tags\na;a.wav;t\n", "multi", "separated by semicolons; separate them by commas"),
        (f"clip_id,path,tags\na,a.wav,{'x' * 200_000}\n", "multi", "line 2: field larger than field limit"),
        ("clip_id,path,tags\na,/etc/passwd,t\n", "multi", "path = '/etc/passwd': leads out of data.root"),
        ("clip_id,path,tags\na,~/a.wav,t\n", "multi", "leads out of data.root"),
        ("clip_id,path,tags\na,b/../../a.wav,t\n", "multi", "leads out of data.root"),
        ("clip_id,path,tags\na,s3://other/a.wav,t\n", "multi", "must be a plain path"),
        ("clip_id,path,tags\na,reference://x::http://h/r.json,t\n", "multi", "must be a plain path"),
        ("clip_id,path,tags\na,zip://a.wav::x.zip,t\n", "multi", "must be a plain path"),
    ],
)
def test_mistakes_in_a_manifest_name_row_and_fix(tmp_path: Path, text: str, labels: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_dataset(manifest(tmp_path, text, labels=labels), LocalFiles())


def test_a_table_that_is_trusted_may_lead_anywhere_but_chooses_no_protocol(tmp_path: Path) -> None:
    data = manifest(tmp_path, "clip_id,path,tags\na,/elsewhere/a.wav,t\nb,../b.wav,t\n")
    clips = read_dataset(replace(data, anywhere=True), LocalFiles()).clips
    assert [clip.path for clip in clips] == ["/elsewhere/a.wav", "../b.wav"]
    data = manifest(tmp_path, "clip_id,path,tags\na,artist::song.wav,t\n")
    assert read_dataset(data, LocalFiles()).clips[0].path == "artist::song.wav", "a name on a disk, on a store a chain"
    with pytest.raises(ValueError, match="must be a plain path"):
        read_dataset(replace(data, root="s3://bucket/x"), LocalFiles())
    data = manifest(tmp_path, "clip_id,path,tags\na,http://host/a.wav,t\n")
    with pytest.raises(ValueError, match="must be a plain path"):
        read_dataset(replace(data, anywhere=True), LocalFiles())


def test_a_bucket_may_name_other_buckets_only_if_it_is_trusted(tmp_path: Path) -> None:
    data = replace(manifest(tmp_path, "clip_id,path,tags\na,s3://other/a.wav,t\n"), root="s3://mine/audio")
    with pytest.raises(ValueError, match=r"leads out of data.root = 's3://mine/audio'"):
        read_dataset(data, LocalFiles())
    (clip,) = read_dataset(replace(data, anywhere=True), LocalFiles()).clips
    assert clip.path == "s3://other/a.wav"


@pytest.mark.parametrize("spelling", ["2", "2.0", " 2", "2e0"])
def test_a_fold_is_a_whole_number_in_any_spelling(tmp_path: Path, spelling: str) -> None:
    (clip,) = read_dataset(manifest(tmp_path, f"clip_id,path,tags,fold\na,a.wav,t,{spelling}\n"), LocalFiles()).clips
    assert clip.fold == 2


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16-le", r"clips.csv: holds zero bytes, .*UTF-16 without a byte order mark; .*iconv -f UTF-16LE -t UTF-8"),
        (
            "cp1252",
            r"clips.csv: is not in UTF-8 \(byte 0xe4 in line 3\); save it as UTF-8, for example: iconv -f CP1252",
        ),
        ("utf-16", r"clips.csv: is in UTF-16; save it as UTF-8, for example: iconv -f UTF-16"),
    ],
)
def test_another_encoding_is_named_with_a_conversion(tmp_path: Path, encoding: str, message: str) -> None:
    data = manifest(tmp_path, "")
    Path(data.manifest).write_bytes("clip_id,path,tags\na,a.wav,t\nb,b.wav,kräht\n".encode(encoding))
    with pytest.raises(ValueError, match=message):
        read_dataset(data, LocalFiles())


def test_line_ends_of_an_old_mac_are_read_and_counted(tmp_path: Path) -> None:
    data, text = manifest(tmp_path, ""), "clip_id,path,tags\ra,a.wav,t\rb,b.wav,kräht\r"
    Path(data.manifest).write_bytes(text.encode())
    assert [clip.tags for clip in read_dataset(data, LocalFiles()).clips] == [("t",), ("kräht",)]
    Path(data.manifest).write_bytes(text.encode("mac_roman"))
    with pytest.raises(ValueError, match=r"byte 0x8a in line 3\).*iconv -f MACINTOSH"):
        read_dataset(data, LocalFiles())


def test_a_byte_order_mark_and_quoted_commas_are_read(tmp_path: Path) -> None:
    data = manifest(tmp_path, "")
    text = 'clip_id,path,tags\r\n\r\na,"a, b.wav","Hahn, kräht"\r\n'
    Path(data.manifest).write_bytes(text.encode("utf-8-sig"))
    (clip,) = read_dataset(data, LocalFiles()).clips
    assert (clip.path, clip.tags) == ("a, b.wav", ("Hahn, kräht",))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "clips.parquet"
    for content in (b"", b"PAR1 not really PAR1"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"clips.parquet: no readable Parquet file"):
            read_dataset(Data(format="manifest", manifest=str(file), labels="multi"), LocalFiles())
    pyarrow.parquet.write_table(pyarrow.table({"name": ["a"], "file": ["b"]}), file)
    with pytest.raises(ValueError, match="no column clip_id, path; it has name, file and needs clip_id, path"):
        read_dataset(Data(format="manifest", manifest=str(file), labels="multi"), LocalFiles())


def test_a_missing_data_set_and_an_unknown_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"esc50.csv: no such file; check data.root"):
        read_dataset(Data(format="esc50", root=str(tmp_path)), LocalFiles())
    with pytest.raises(ValueError, match=r"clips.json.*must end in .csv, .tsv or .parquet"):
        read_dataset(Data(format="manifest", manifest="clips.json"), LocalFiles())


@pytest.mark.parametrize(
    "change", [{"clip_id": "z"}, {"path": "z"}, {"tags": ("z",)}, {"fold": 9}, {"source": "z"}, {"absent": ()}]
)
def test_the_fingerprint_changes_with_everything_a_result_depends_on(change: dict) -> None:
    dataset = make_dataset(labels="single")
    changed = replace(dataset, clips=(replace(dataset.clips[0], **change), *dataset.clips[1:]))
    assert changed.fingerprint() != dataset.fingerprint()


def test_the_fingerprint_does_not_depend_on_where_the_root_lies(tmp_path: Path) -> None:
    fingerprints = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        dataset = read_dataset(manifest(tmp_path / name, ROWS), LocalFiles())
        assert dataset.fingerprint() is dataset.fingerprint(), "computed once"
        fingerprints.append(dataset.fingerprint())
    assert fingerprints[0] == fingerprints[1]


def test_a_clip_with_none_of_the_tags_is_a_negative_where_several_are_allowed(tmp_path: Path) -> None:
    manifest = tmp_path / "clips.csv"
    manifest.write_text("clip_id,path,tags\na,a.wav,t\nb,b.wav,\n")
    dataset = read_dataset(Data(format="manifest", manifest=str(manifest), labels="multi"), LocalFiles())
    assert dataset.targets(dataset.clips).tolist() == [[1.0], [0.0]]


def test_a_models_tags_are_matched_by_name_and_those_that_no_clip_has_are_unknown(tmp_path: Path) -> None:
    data = manifest(tmp_path, "clip_id,path,tags\na,a.wav,rain\nb,b.wav,dog;rain\nc,c.wav,\n")
    dataset = read_dataset(data, LocalFiles(), model_tags=("saw", "rain", "dog"))
    assert (dataset.tags, dataset.not_in_data) == (("saw", "rain", "dog"), ("saw",))
    np.testing.assert_array_equal(dataset.targets(dataset.clips), [[np.nan, 1, 0], [np.nan, 1, 1], [np.nan, 0, 0]])
    assert dataset.clips_per_tag(dataset.clips) == ([0, 2, 1], [0, 3, 3])
    single = replace(dataset, labels="single")
    assert single.targets(dataset.clips[:1]).tolist() == [[0, 1, 0]]
    assert single.clips_per_tag(dataset.clips[:1]) == ([0, 1, 0], [1, 1, 1])


def test_labels_that_are_unknown_are_not_counted_as_known(tmp_path: Path) -> None:
    data = manifest(tmp_path, "clip_id,path,tags,absent\na,a.wav,rain,dog\nb,b.wav,dog,\n")
    dataset = read_dataset(data, LocalFiles())
    assert dataset.tags == ("dog", "rain")
    assert dataset.clips_per_tag(dataset.clips) == ([1, 1], [2, 1])
    no_positive = read_dataset(
        manifest(tmp_path, "clip_id,path,tags,absent\na,a.wav,rain,dog\n"), LocalFiles(), model_tags=("dog", "rain")
    )
    assert no_positive.targets(no_positive.clips).tolist() == [[0, 1]]


def test_tags_that_a_model_does_not_know_are_refused_by_name(tmp_path: Path) -> None:
    rows = "".join(f"{number},{number}.wav,tag{number:02}\n" for number in range(14))
    data = manifest(tmp_path, f"clip_id,path,tags\n{rows}")
    with pytest.raises(ValueError, match=r"tags tag02, tag03, .*, tag11 and 2 more: .* it knows tag00, tag01; leave"):
        read_dataset(data, LocalFiles(), model_tags=("tag00", "tag01"))
