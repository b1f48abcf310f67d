"""What `antiphon init` makes of folders as people have them: tables, folders, file names, and their faults."""

import csv
import io
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from orchestrator.scaffold.clips import Clips, make_clips, manifest_text
from orchestrator.scaffold.parts import name_parts
from orchestrator.scaffold.questions import Question, refuse_to_guess
from orchestrator.scaffold.sounds import find_sounds
from workloads.config.data import Data
from workloads.data.manifest import read_dataset
from workloads.data.splits import split
from workloads.runtime.opener import LocalFiles


def sounds(root: Path, paths: Iterable[str], *, rate: int = 8000, seconds: float = 0.1) -> Path:
    """Files of noise at these paths, in the format of their endings."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(round(rate * seconds))
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / path, noise, rate)
    return root


def clips_of(root: Path, ask: Callable[[Question], int] = refuse_to_guess, **options: str) -> Clips:
    """The clips; their manifest must be readable, split and hold what they say."""
    clips = make_clips(find_sounds(str(root)), ask, **options)
    manifest = root.parent / f"{root.name}.csv"
    manifest.write_text(manifest_text(clips), encoding="utf-8")
    data = Data(format="manifest", manifest=str(manifest), root=str(root), labels=clips.labels, val_share=0.5)  # type: ignore[arg-type]
    dataset = read_dataset(data, LocalFiles())
    assert {clip.clip_id: clip.tags for clip in dataset.clips} == {row.path: row.tags for row in clips.rows}
    assert all((root / clip.path).is_file() for clip in dataset.clips)
    return clips


def tags_by_path(clips: Clips) -> dict[str, str]:
    return {row.path: ";".join(row.tags) for row in clips.rows}


def takes(tag: str, count: int = 6, pattern: str = "{tag}/{number}.wav") -> list[str]:
    return [pattern.format(tag=tag, number=number) for number in range(count)]


def first(question: Question) -> int:
    return 0


@pytest.mark.parametrize(
    "pattern",
    [
        "{tag}/{number}.wav",
        "audio files/{tag}/take {number}.wav",
        "{tag}_{number}.wav",
        "{tag}-{number:03d}.flac",
        "{tag} ({number}).ogg",
        "{tag}{number}.wav",
    ],
)
def test_tags_are_folders_or_the_words_of_file_names(tmp_path: Path, pattern: str) -> None:
    root = sounds(tmp_path / "a b", [path for tag in ("dog", "rain") for path in takes(tag, pattern=pattern)])
    clips = clips_of(root)
    assert clips.counts == {"dog": 6, "rain": 6}
    assert clips.labels == "single"
    assert clips.notes == ()
    assert set(Counter(row.fold for row in clips.rows).values()) <= {2, 3, 4}


def test_names_beyond_ascii_are_the_same_however_a_mac_writes_them(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "chörte")
    root = sounds(tmp_path / "töne", [*takes(decomposed), *takes("鸟鸣")])
    (root / "tags.csv").write_text(
        "file,tag\n" + "".join(f"chörte/{n}.wav,Chor é\n鸟鸣/{n}.wav,鸟\n" for n in range(6))
    )
    assert clips_of(root).counts == {"Chor é": 6, "鸟": 6}


def test_names_that_several_folders_have_are_clips_of_their_own(tmp_path: Path) -> None:
    clips = clips_of(sounds(tmp_path / "d", [*takes("a"), *takes("b")]))
    assert len({row.path for row in clips.rows}) == 12


def test_a_table_that_names_a_file_of_several_folders_is_refused(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", [*takes("one"), *takes("two")])
    (root / "tags.csv").write_text("file,tag\n" + "".join(f"{n}.wav,x\n" for n in range(6)))
    with pytest.raises(
        ValueError, match=r"tags.csv: column file names '0.wav', which may be any of one/0.wav, two/0.wav; write paths"
    ):
        clips_of(root)


def test_a_table_of_classes_whose_numbers_are_names_of_files_does_not_hide_the_folders(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", [*takes("dog"), *takes("rain")])
    (root / "classes.csv").write_text("class_id,name\n1,dog\n2,rain\n")
    clips = clips_of(root)
    assert clips.counts == {"dog": 6, "rain": 6}
    (note,) = clips.notes
    assert note.startswith(
        "not read: classes.csv: column class_id names '1', which may be any of dog/1.wav, rain/1.wav"
    )


def test_a_table_without_a_header_is_refused_before_its_first_sound_is_lost(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", [f"{number}.wav" for number in range(8)])
    (root / "t.csv").write_text("".join(f"{number}.wav,{'ab'[number % 2]}\n" for number in range(8)))
    with pytest.raises(
        ValueError, match=r"t.csv: its first line names the sound '0.wav'; put a line before it, such as"
    ):
        clips_of(root)


def test_mixed_formats_and_rates_are_one_data_set(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", ["dog/1.wav", "dog/2.flac", "rain/1.ogg", "rain/2.mp3"], rate=44_100, seconds=0.5)
    sounds(root, ["dog/3.wav", "dog/4.flac", "rain/3.wav", "rain/4.OGG"], rate=8_000)
    assert clips_of(root).counts == {"dog": 4, "rain": 4}
    assert {header.rate for header in find_sounds(str(root)).headers} == {8_000, 44_100}


def test_files_that_cannot_be_heard_are_left_out_and_named(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", [*takes("dog"), *takes("rain")])
    (root / "dog" / "empty.wav").write_bytes(b"")
    (root / "rain" / "text.wav").write_text("no sound at all")
    sounds(root, ["dog/click.wav"], seconds=0.01)
    (note,) = clips_of(root).notes
    assert note.startswith("left out, 3 files that cannot be heard: dog/click.wav (lasts 0.010 s, less than the 0.05 s")
    assert "dog/empty.wav (is empty)" in note
    assert "rain/text.wav (" in note


def test_one_class_only_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"all 6 sounds lie in one folder, 'dog'.*one class cannot be learned"):
        clips_of(sounds(tmp_path / "d", takes("dog")))
    (tmp_path / "d" / "t.csv").write_text("file,tag\n" + "".join(f"dog/{n}.wav,woof\n" for n in range(6)))
    with pytest.raises(ValueError, match=r"one class cannot be learned"):
        clips_of(tmp_path / "d")


def test_a_class_with_one_clip_is_learned_and_said(tmp_path: Path) -> None:
    clips = clips_of(sounds(tmp_path / "d", [*takes("dog"), *takes("rain"), "owl/1.wav"]))
    (owl,) = (row for row in clips.rows if row.tags == ("owl",))
    assert owl.fold != clips.test_fold
    assert clips.notes == ("tags with too few recordings to be tested: owl (1); add some",)


def test_two_recordings_are_too_few(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", ["a/1.wav", "b/1.wav"])
    (root / "t.csv").write_text("file,tag\na/1.wav,x\nb/1.wav,y\n")
    with pytest.raises(ValueError, match="2 recordings: at least 3 are needed"):
        clips_of(root)


@pytest.mark.parametrize(("name", "separator"), [("t.csv", ","), ("t.csv", ";"), ("t.tsv", "\t"), ("t.txt", "|")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_tables_have_any_separator_and_a_byte_order_mark(
    tmp_path: Path, name: str, separator: str, encoding: str, line_end: str
) -> None:
    root = sounds(tmp_path / "d", [f"{number}.wav" for number in range(8)])
    lines = [("file", "class name"), *((f"{number}.wav", "örtlich" if number % 2 else "fern") for number in range(8))]
    text = "".join(separator.join(cells) + line_end for cells in lines)
    (root / name).write_bytes(text.encode(encoding))
    clips = clips_of(root)
    assert clips.tags_from.where == f"column class name of {name}"
    assert clips.counts == {"örtlich": 4, "fern": 4}


@pytest.mark.parametrize("path", ["clips/{n}.wav", "{n}.wav", "{n}", "C:\\data\\clips\\{n}.wav", "./clips/{n}.wav"])
def test_a_table_names_files_in_any_way(tmp_path: Path, path: str) -> None:
    root = sounds(tmp_path / "d", [f"clips/{number}.wav" for number in range(100, 108)])
    rows = "".join(f"{path.format(n=number)},{'ab'[number % 2]},{number // 2 % 4}\n" for number in range(100, 108))
    (root / "meta").mkdir()
    (root / "meta" / "list.csv").write_text("id,label,fold\n" + rows)
    clips = clips_of(root)
    assert clips.counts == {"a": 4, "b": 4}
    assert clips.notes == ("folds: column fold of meta/list.csv",)
    assert {row.path: row.fold for row in clips.rows}["clips/102.wav"] == 3


def test_a_table_in_another_encoding_is_named_with_the_way_to_convert_it(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", [f"{number}.wav" for number in range(8)])
    (root / "t.csv").write_bytes("file,tag\n0.wav,Müll\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"t.csv: is not in UTF-8 \(byte 0xfc in line 2\).*iconv -f CP1252"):
        clips_of(root)


def test_a_table_with_an_unquoted_comma_is_named_with_its_line(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", [f"{number}.wav" for number in range(8)])
    (root / "t.csv").write_text("file,tag\n0.wav,dog\n1.wav,crow, american\n")
    with pytest.raises(ValueError, match="line 3: 3 cells, the header has 2; put quotes around"):
        clips_of(root)


def test_a_table_about_something_else_does_not_hide_the_folders(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", [*takes("dog"), *takes("rain")])
    (root / "weather.csv").write_text("day,degrees\nmonday,3\n")
    (root / "old.csv").write_bytes("Tag,M\xfcll\n".encode("cp1252"))
    clips = clips_of(root)
    assert clips.counts == {"dog": 6, "rain": 6}
    (note,) = clips.notes
    assert note.startswith("not read: ")


def test_sounds_that_a_table_does_not_name_and_rows_without_a_sound_are_counted(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", [f"{number}.wav" for number in range(12)])
    (root / "t.csv").write_text("file,tag\n" + "".join(f"{n}.wav,{'ab'[n % 2]}\n" for n in (*range(10), 20, 21)))
    assert clips_of(root).notes == (
        "t.csv: 2 rows name files that are not there",
        "left out, 2 sounds without a tag: 10.wav, 11.wav",
    )


@pytest.mark.parametrize(
    ("cells", "labels", "tags"),
    [
        (["dog;rain", "dog", "rain", "dog;rain"], "multi", {"dog", "rain"}),
        (["dog|rain", "dog", "rain", "dog"], "multi", {"dog", "rain"}),
        (['"dog,rain"', "dog", "rain", "dog"], "multi", {"dog", "rain"}),  # dog is a tag, so the comma parts tags
        (['"Rain, heavy"', "Dog", '"Rain, heavy"', "Dog"], "single", {"Rain, heavy", "Dog"}),
        (["dog", "", "dog", ""], "single", None),
        (["\"['dog', 'Rain, heavy']\"", "['dog']", "[]", "['dog']"], "multi", {"dog", "Rain, heavy"}),  # as pandas does
        (['"[""dog"", ""rain""]"', '"[""dog""]"', "", '"[""rain""]"'], "multi", {"dog", "rain"}),  # JSON's
        (["['dog']", "['rain']", "[]", "['rain']"], "single", {"dog", "rain"}),  # of [] nothing is said
        (["[laughter]", "[cough]", "[laughter]", "dog"], "single", {"[laughter]", "[cough]", "dog"}),
        (["['dog' 'cat']", "['rain']", "['rain']", "['rain']"], "single", {"['dog' 'cat']", "['rain']"}),  # not dogcat
    ],
)
def test_commas_semicolons_bars_and_lists_part_tags_where_that_is_clear(
    tmp_path: Path, cells: list[str], labels: str, tags: set[str] | None
) -> None:
    root = sounds(tmp_path / "d", [f"{number}.wav" for number in range(12)])
    (root / "t.csv").write_text("file,tags\n" + "".join(f"{number}.wav,{cells[number % 4]}\n" for number in range(12)))
    if tags is None:  # no cell has several, so an empty one says nothing
        with pytest.raises(
            ValueError, match=r"column tags of t.csv: all 6 sounds have 'dog': one class cannot be learned"
        ):
            clips_of(root)
        return
    clips = clips_of(root)
    assert (clips.labels, set(clips.counts)) == (labels, tags)


def test_a_comma_that_may_part_tags_or_not_is_asked_about(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", [f"{number}.wav" for number in range(12)])
    names = ['"Crow, American"', '"Robin, American"']
    (root / "t.csv").write_text(
        "file,species\n" + "".join(f"{number}.wav,{names[number % 2]}\n" for number in range(12))
    )
    with pytest.raises(
        ValueError,
        match=r"Does 'Crow, American' name several tags.*--separator comma.*Crow and American.*--separator none",
    ):
        clips_of(root)
    assert set(clips_of(root, separator="none").counts) == {"Crow, American", "Robin, American"}
    assert set(clips_of(root, separator="comma").counts) == {"Crow", "Robin", "American"}
    with pytest.raises(ValueError, match="--separator 'dot': must be one of"):
        clips_of(root, separator="dot")


def test_a_column_for_each_tag_and_a_row_for_each_tag_are_several_tags(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", [f"{number}.wav" for number in range(8)])
    (root / "t.csv").write_text("file,wren,owl\n" + "".join(f"{n}.wav,{n % 2},{int(n < 4)}\n" for n in range(8)))
    clips = clips_of(root)
    assert (clips.labels, clips.counts) == ("multi", {"wren": 4, "owl": 4})
    assert tags_by_path(clips)["1.wav"] == "owl;wren"
    assert tags_by_path(clips)["6.wav"] == ""  # none of the tags, which is known
    rows = "".join(f"{n}.wav,wren\n" * (n % 2) + f"{n}.wav,owl\n" * (n < 4) for n in range(8))
    (root / "t.csv").write_text("file,species\n" + rows)
    assert tags_by_path(clips_of(root))["1.wav"] == "owl;wren"


def test_columns_of_yes_and_no_hide_neither_speakers_nor_folds(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", [f"{number}.wav" for number in range(16)])
    rows = "".join(f"{n}.wav,{n % 2},{int(n < 8)},s{n % 4},{n % 4 // 2}\n" for n in range(16))
    (root / "t.csv").write_text("file,wren,owl,speaker,fold\n" + rows)
    clips = clips_of(root)
    assert clips.counts == {"wren": 8, "owl": 8}  # the fold is 0 or 1, and no tag
    assert clips.notes == ("folds: column fold of t.csv",)
    assert {(row.path, row.source, row.fold) for row in clips.rows} == {
        (f"{n}.wav", f"s{n % 4}", n % 4 // 2) for n in range(16)
    }


def test_a_column_of_species_is_asked_about_beside_columns_of_yes_and_no(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", [f"{number}.wav" for number in range(8)])
    rows = "".join(f"{n}.wav,{'ab'[n % 2]},{n % 2},{int(n < 4)}\n" for n in range(8))
    (root / "t.csv").write_text("file,species,verified,male\n" + rows)
    with pytest.raises(ValueError, match=r"Where are the tags\?.*--tags-from column:species.*--tags-from columns"):
        clips_of(root)
    assert clips_of(root, first, source_from="none").counts == {"a": 4, "b": 4}


def test_the_number_of_a_class_and_its_name_are_one_answer(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", [f"{number}.wav" for number in range(8)])
    (root / "t.csv").write_text(
        "file,target,category\n" + "".join(f"{n}.wav,{n % 2},{'ab'[n % 2]}\n" for n in range(8))
    )
    assert clips_of(root).counts == {"a": 4, "b": 4}


def test_digits_of_speakers_are_asked_about_and_speakers_stay_together(tmp_path: Path) -> None:
    names = [f"{digit}_{who}_{take}.wav" for digit in range(10) for who in ("ann", "bob", "cy") for take in range(3)]
    root = sounds(tmp_path / "digits", names)
    asked: list[Question] = []

    def ask(question: Question) -> int:
        asked.append(question)
        return 0

    clips = clips_of(root, ask)
    assert [question.option for question in asked] == ["--tags-from", "--source-from"]
    assert [value for value, _ in asked[0].answers] == ["name:1", "name:2"]  # the third part counts the takes
    assert set(clips.counts) == set("0123456789")
    folds = {row.source: row.fold for row in clips.rows}
    assert len(folds) == len(set(folds.values())) == 3
    assert all(folds[row.source] == row.fold for row in clips.rows)
    with pytest.raises(ValueError, match=r"There is no terminal to ask on: give one of --tags-from name:1"):
        clips_of(root)
    assert set(clips_of(root, tags_from="name:2", source_from="none").counts) == {"ann", "bob", "cy"}
    with pytest.raises(ValueError, match="--tags-from 'name:9': must be one of name:1, name:2"):
        clips_of(root, tags_from="name:9")


def test_a_column_with_speakers_is_taken_without_asking(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", [f"{number}.wav" for number in range(24)])
    rows = "".join(f"{n}.wav,{'ab'[n % 2]},speaker {n % 6 // 2}\n" for n in range(24))
    (root / "t.csv").write_text("file,label,Speaker ID\n" + rows)
    clips = clips_of(root)
    assert clips.source_from is not None
    assert len({row.source for row in clips.rows}) == 3


def test_folders_of_a_split_are_folds(tmp_path: Path) -> None:
    paths = [
        path for part in ("Train", "test") for tag in "ab" for path in takes(tag, pattern=part + "/{tag}/{number}.wav")
    ]
    clips = clips_of(sounds(tmp_path / "d", paths))
    assert {row.path.split("/")[0]: row.fold for row in clips.rows} == {"test": 1, "Train": 2}
    assert clips.notes == ("folds: the folders of level 1",)


@pytest.mark.parametrize("column", ["fold", "split"])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "3.wav has none"),
        ("third", "3.wav has 'third'"),
        ("²", "3.wav has '²'"),
        ("9" * 30, f"3.wav has '{'9' * 30}'"),
    ],
)
def test_folds_that_cannot_be_used_are_said(tmp_path: Path, column: str, text: str, problem: str) -> None:
    root = sounds(tmp_path / "d", [f"{number}.wav" for number in range(12)])
    folds = ("1", "2") if column == "fold" else ("train", "test")
    rows = "".join(f"{n}.wav,{'ab'[n % 2]},{text if n == 3 else folds[n // 2 % 2]}\n" for n in range(12))
    (root / "t.csv").write_text(f"file,tag,{column}\n" + rows)
    clips = clips_of(root)
    assert clips.notes == (f"column {column} of t.csv: not used for folds, since {problem}",)
    assert {row.fold for row in clips.rows} == {1, 2, 3, 4, 5}


def test_a_split_of_half_of_the_sounds_does_not_train_on_the_others(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", [*takes("dog"), *takes("rain")])
    (root / "t.csv").write_text(
        "file,split\n"
        + "".join(f"{tag}/{n}.wav,{'train' if n else 'test'}\n" for tag in ("dog", "rain") for n in (0, 1))
    )
    clips = clips_of(root)
    assert clips.notes == ("column split of t.csv: not used for folds, since dog/2.wav has none",)


def test_folders_that_are_called_folds_are_folds(tmp_path: Path) -> None:
    paths = [
        path for n in (1, 2, 10) for tag in "ab" for path in takes(tag, 3, "fold" + str(n) + "/{tag}/{number}.wav")
    ]
    clips = clips_of(sounds(tmp_path / "d", paths))
    assert clips.counts == {"a": 9, "b": 9}
    assert {row.path.split("/")[0]: row.fold for row in clips.rows} == {"fold1": 1, "fold2": 2, "fold10": 10}
    assert clips.notes == ("folds: the folders of level 1",)


def test_a_folder_that_a_mac_has_named_is_the_same_tag(tmp_path: Path) -> None:
    both = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    paths = [f"{part}/{tag}/{n}.wav" for part, tag in zip(("train", "test"), both, strict=True) for n in range(4)]
    clips = clips_of(
        sounds(tmp_path / "d", [*paths, *(f"{part}/x/{n}.wav" for part in ("train", "test") for n in (1, 2))])
    )
    assert clips.counts == {"é": 8, "x": 4}


def test_tags_that_differ_in_capitals_and_names_with_semicolons(tmp_path: Path) -> None:
    clips = clips_of(sounds(tmp_path / "d", [*takes("Dog"), *takes("dog"), *takes("rain")]))
    assert clips.notes == ("tags that differ only in blanks or capitals count as different: Dog, dog",)
    with pytest.raises(ValueError, match="the tag 'a;b' holds a semicolon, which parts tags in a manifest; rename it"):
        clips_of(sounds(tmp_path / "e", [*takes("a;b"), *takes("c")]))
    clips = clips_of(tmp_path / "e", separator="semicolon")  # the user knows better
    assert clips.counts == {"a": 6, "b": 6, "c": 6}


def test_columns_that_say_when_tags_sound_are_named_with_what_reads_them(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", [f"{number}.wav" for number in range(12)])
    rows = [f"{n}.wav\t0.01\t0.05\t{tag}\n" for n in range(12) for tag in ("ab", "a", "b")[n % 3]]
    (root / "events.tsv").write_text("filename\tonset\toffset\tevent_label\n" + "".join(rows))
    clips = clips_of(root)
    assert clips.counts == {"a": 8, "b": 8}
    assert clips.notes == (
        "not used: column onset of events.tsv and column offset of events.tsv; data.events = a table with the columns "
        "filename,onset,offset,event_label says when tags sound",
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"holds no sounds, but no files"),
        (["a.txt", "b.zip"], r"holds no sounds, but 2 files \(.txt, .zip\)"),
        (["a.wav"], r"none of its 1 sounds can be heard; a.wav: is empty"),
    ],
)
def test_folders_without_sound_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        find_sounds(str(tmp_path))


def test_file_names_of_esc_50_say_fold_recording_and_class(tmp_path: Path) -> None:
    """FOLD-RECORDING-TAKE-CLASS, without the table: the last number is the class, the first the fold."""
    names = [
        f"{fold}-{100_000 + 10 * fold + number}-{take}-{target}.wav"
        for fold in (1, 2, 3)
        for number, target in enumerate((0, 14, 38))
        for take in "AB"
    ]
    clips = clips_of(sounds(tmp_path / "audio", names))
    assert tags_by_path(clips) == {name: name.removesuffix(".wav").split("-")[3] for name in names}
    assert {row.path: row.fold for row in clips.rows} == {name: int(name[0]) for name in names}
    assert {row.path: row.source for row in clips.rows} == {name: name.split("-")[1] for name in names}
    assert clips.tags_from.where == "part 4 of the file names, ESC-50's target"


def test_file_names_of_urbansound8k_say_recording_and_class(tmp_path: Path) -> None:
    names = [
        f"fold{fold}/{1000 + fold}{target}-{target}-0-{part}.wav"
        for fold in (1, 2, 10)
        for target in (1, 7)
        for part in (0, 4)
    ]
    clips = clips_of(sounds(tmp_path / "audio", names))
    assert {row.path: row.tags for row in clips.rows} == {name: (name.split("-")[1],) for name in names}
    assert {row.path: row.fold for row in clips.rows} == {name: int(name.split("/")[0][4:]) for name in names}
    assert {row.source for row in clips.rows} == {name.split("/")[1].split("-")[0] for name in names}


def test_one_name_of_another_kind_and_nothing_is_known_of_the_parts() -> None:
    names = [f"{fold}-{fold}{number}-A-{number}.wav" for fold in (1, 2, 3) for number in (0, 1)]
    assert [part.meaning for part in name_parts(names)] == ["fold", "source", "take", "target"]
    assert {part.meaning for part in name_parts([*names, "9-30-A-1.wav"])} == {""}


@pytest.mark.parametrize(
    ("root", "message"), [("s3://bucket/clips", "must be on this machine"), ("/nowhere/at/all", "not found")]
)
def test_folders_that_are_not_here_are_refused(root: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_sounds(root)


def test_names_that_say_nothing_are_refused(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", ["a81f.wav", "77b.wav", "c00.wav", "zz.wav"])
    with pytest.raises(ValueError, match="nothing says what the sounds are: no table names them"):
        clips_of(root)


def test_what_the_manifest_holds_is_read_back(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", ["a, b/1.wav", 'a, b/2 "x".wav', "a, b/3.wav", "~c/1.wav", "~c/2.wav", "~c/3.wav"])
    clips = clips_of(root)
    assert clips.counts == {"a, b": 3, "~c": 3}
    rows = list(csv.DictReader(io.StringIO(manifest_text(clips))))
    assert rows[-1] | {"fold": ""} == {
        "clip_id": "~c/3.wav",
        "path": "./~c/3.wav",
        "tags": "~c",
        "source": "~c/3.wav",
        "fold": "",
    }


def test_folds_hold_each_tag_and_depend_on_names_only(tmp_path: Path) -> None:
    root = sounds(tmp_path / "d", [*takes("a", 20), *takes("b", 10), *takes("c", 5)])
    clips = clips_of(root)
    by_fold = Counter((row.tags[0], row.fold) for row in clips.rows)
    assert by_fold == {(tag, fold): count for tag, count in (("a", 4), ("b", 2), ("c", 1)) for fold in range(1, 6)}
    assert clips_of(root).rows == clips.rows
    data = Data(format="manifest", manifest=str(tmp_path / "d.csv"), root=str(root))
    assert len(split(read_dataset(data, LocalFiles()), data).test) == 7
