"""AudioSet, as people have it: Google's tables of segments, and those of their sounds that could be downloaded."""

import re
from collections import defaultdict
from collections.abc import Iterator

from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.formats.listing import is_audio, list_files, needs_av
from workloads.data.formats.rows import TEST, TRAIN, Metadata, MetadataRow, read_rows
from workloads.data.table import NoSuchTable, read_table
from workloads.runtime.opener import Opener
from workloads.runtime.text import name_some

COLUMNS = ("YTID", "start_seconds", "end_seconds", "positive_labels")  # a comment names them; there is no header
NAMES, NAME_COLUMNS = "class_labels_indices.csv", ("mid", "display_name")
TRAINING_TABLES = {
    "balanced": ("balanced_train_segments.csv",),
    "unbalanced": ("unbalanced_train_segments.csv",),
    "both": ("balanced_train_segments.csv", "unbalanced_train_segments.csv"),
}
TEST_TABLE = "eval_segments.csv"
# Yabcdefghijk, abcdefghijk, abcdefghijk_30, Yabcdefghijk_30.000_40.000, abcdefghijk_30000 (milliseconds)
FILE_NAME = re.compile(r"Y?(?P<id>[A-Za-z0-9_-]{11})(_(?P<start>[0-9]+(\.[0-9]+)?)(_[0-9]+(\.[0-9]+)?)?)?")


def read_audioset(data: Data, opener: Opener) -> Metadata:
    """A clip for each segment whose sound is below data.root, in whatever folder; its id and source are the video's.

    The tables may lie in any folder below the root too. Tags are the display names. The evaluation table is the test
    fold; a slice of the training tables that data.audioset_train names validates.

    Raises ValueError for a table that is missing or there twice, for labels without a name, and for a table of which no
    sound is there. Sounds that are missing are the rule: they are counted, in a warning.
    """
    files = list_files(data, opener)
    names = _display_names(_find(NAMES, files, data, opener), data, opener)
    sounds = _sounds(files)
    clips: dict[str, Clip] = {}
    warnings = []
    for table in (*TRAINING_TABLES[data.audioset_train], TEST_TABLE):
        uri, found, missing = _find(table, files, data, opener), 0, 0
        for row in _segments(uri, data, opener):
            clip = _to_clip(row, TEST if table == TEST_TABLE else TRAIN, names, sounds)
            if clip is None:
                missing += 1
            elif clip.clip_id in clips:
                raise ValueError(
                    f"{row.location}: YTID {clip.clip_id!r} is in an earlier row or table; keep one of them"
                )
            else:
                found += 1
                clips[clip.clip_id] = clip
        warnings += _missing(missing, found + missing, uri, sounds, data)
    return Metadata(list(clips.values()), warnings=tuple(warnings))


def video_of(name: str) -> str | None:
    """The video, which is the clip's id here, of a sound's name with or without an ending; None for other names."""
    match = FILE_NAME.fullmatch(name.rpartition(".")[0] if is_audio(name) else name)
    return match["id"] if match else None


def _find(table: str, files: list[str], data: Data, opener: Opener) -> str:
    """The URI of a table below the root."""
    found = [path for path in files if f"/{path}".endswith(f"/{table}")]
    if not found:
        raise NoSuchTable(f"data.root = {data.root!r}: {table}: no such file there; put Google's table below data.root")
    if len(found) > 1:
        raise ValueError(
            f"data.root = {data.root!r}: {table}: {len(found)} files of this name ({name_some(found, 3)}); keep one"
        )
    return opener.join(data.root, found[0])


def _display_names(uri: str, data: Data, opener: Opener) -> dict[str, str]:
    """The name of each label, by its machine id."""
    names: dict[str, str] = {}
    for row in read_rows(read_table(uri, opener, columns=NAME_COLUMNS), uri, NAME_COLUMNS, data):
        names[row.required("mid")] = row.required("display_name").strip()
    return names


def _sounds(files: list[str]) -> dict[str, list[tuple[str, str]]]:
    """The files of each video: start as the name gives it, else empty, and path; those that need av come last."""
    sounds: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in sorted(filter(is_audio, files), key=needs_av):
        stem = path.rpartition("/")[2].rpartition(".")[0]  # pathlib takes a minute for two million
        if match := FILE_NAME.fullmatch(stem):
            sounds[match["id"]].append((match["start"] or "", path))
    return sounds


def _segments(uri: str, data: Data, opener: Opener) -> Iterator[MetadataRow]:
    return read_rows(read_table(uri, opener, columns=COLUMNS, header=COLUMNS), uri, COLUMNS, data)


def _to_clip(
    row: MetadataRow, fold: int, names: dict[str, str], sounds: dict[str, list[tuple[str, str]]]
) -> Clip | None:
    """The clip of a segment; None where its sound is missing."""
    video, start = row.required("YTID"), row.number("start_seconds", low=0, high=1e6)
    labels = row.tags("positive_labels", ",")
    if unknown := [label for label in labels if label not in names]:
        raise ValueError(f"{row.location}: label {unknown[0]!r} has no name in {NAMES}; take both files as published")
    path = next((path for text, path in sounds.get(video, ()) if _starts_at(text, start)), None)
    return Clip(video, path, tuple(sorted(names[label] for label in labels)), fold, source=video) if path else None


def _starts_at(text: str, start: float) -> bool:
    """Whether the start in a file's name is the segment's, in seconds, whole ones or milliseconds; none is any."""
    return not text or float(text) in (start, float(int(start)), float(round(1000 * start)))


def _missing(missing: int, count: int, uri: str, sounds: dict[str, list[tuple[str, str]]], data: Data) -> list[str]:
    """The warning about segments without a sound; ValueError where none of them has one."""
    if missing == count:
        raise ValueError(
            f"{uri}: none of its {count} segments has a sound below data.root = {data.root!r}, where files of "
            f"{len(sounds)} videos are; they are looked for in any folder, as YID.wav, ID.wav or ID_START.wav, also "
            "flac or mp3"
        )
    return [f"{uri}: {missing} of {count} segments have no sound below data.root and are left out"] if missing else []
