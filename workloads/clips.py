"""Which clips there are, what they are tagged, and how they are cut into train, validation and test. Opens no audio.

Axes: N clips, C tags.
"""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workloads import synthetic
from workloads.config.recipe import Data
from workloads.runtime.opener import Opener
from workloads.runtime.rng import keyed_generator

FOLDS = 5  # into which the sources of a manifest without folds are dealt


@dataclass(frozen=True)
class Clip:
    """One clip: `path` is relative to the data set's root, `source` the recording that it was cut from.

    `absent` are the tags that were listened for and not heard, of the others it is unknown; None: all others.
    """

    clip_id: str
    path: str
    tags: tuple[str, ...]
    fold: int
    source: str
    absent: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Corpus:
    """All clips by clip_id, and the sorted tags, whose order is that of a model's outputs."""

    clips: tuple[Clip, ...]
    tags: tuple[str, ...]
    labels: str  # "single" or "multi"

    def targets(self, clips: Sequence[Clip]) -> NDArray[np.float32]:
        """y_NC float32, 1 where clip n has tag c, NaN where that is unknown."""
        column = {tag: index for index, tag in enumerate(self.tags)}
        y_NC = np.zeros((len(clips), len(self.tags)), dtype=np.float32)
        for row, clip in enumerate(clips):
            if clip.absent is not None:
                y_NC[row] = np.nan
                y_NC[row, [column[tag] for tag in clip.absent]] = 0
            y_NC[row, [column[tag] for tag in clip.tags]] = 1
        return y_NC

    def fingerprint(self) -> str:
        """SHA-256 over ids, tags, folds, sources and relative paths: the same data set wherever its root lies."""
        digest = hashlib.sha256()
        for clip in self.clips:
            said = [clip.clip_id, clip.tags, clip.fold, clip.source, clip.path, clip.absent]
            digest.update(json.dumps(said).encode() + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True)
class Splits:
    """Clips to learn from, clips that steer, clips that only the final score sees."""

    train: tuple[Clip, ...]
    val: tuple[Clip, ...]
    test: tuple[Clip, ...]


def read_corpus(data: Data, opener: Opener) -> Corpus:
    """The clips that `data` describes, whatever the order of its rows.

    Raises ValueError, naming row and fix, for missing columns, repeated clip_ids, clips without tags, folds that are no
    numbers, more than one tag where data.labels is "single", and tags that are absent everywhere or where they are.
    """
    if data.format == "synthetic":
        found = synthetic.clips(data)
    elif data.format == "esc50":
        found = _read_esc50(data, opener)
    else:
        found = _read_manifest(data, opener)
    found.sort(key=lambda clip: clip.clip_id)
    tags = sorted({tag for clip in found for tag in clip.tags})
    if not tags:
        raise ValueError(f"{data.manifest}: no clip has a tag (column tags); training and scoring need them")
    nowhere = sorted({tag for clip in found for tag in clip.absent or ()} - set(tags))
    if nowhere:
        raise ValueError(
            f"{data.manifest}: column absent names {nowhere[0]!r}, which no clip has as a tag; the tags are "
            f"{', '.join(tags)}"
        )
    return Corpus(tuple(found), tuple(tags), data.labels)


def _read_esc50(data: Data, opener: Opener) -> list[Clip]:
    """ESC-50's layout: `meta/esc50.csv` and `audio/`. Its target numbers may have gaps, so the category is the tag."""
    uri = opener.join(data.root, "meta/esc50.csv")
    rows = _checked_rows(_csv_rows(uri, opener), uri, required=("filename", "fold", "category", "src_file"))
    clips = []
    for where, row in rows:
        name = _cell(row, "filename", where)
        clip_id, fold = name.rsplit(".", 1)[0], _fold(_cell(row, "fold", where), where)
        tags, source = _tags(row, "category", where, data), _cell(row, "src_file", where)
        clips.append(Clip(clip_id, f"audio/{name}", tags, fold, source))
    return _unique(clips, uri)


def _read_manifest(data: Data, opener: Opener) -> list[Clip]:
    """A table with clip_id, path, tags, and if it likes fold, source and absent, as CSV or Parquet."""
    uri = data.manifest
    if uri.endswith(".parquet"):
        rows = _parquet_rows(uri, opener)
    elif uri.endswith(".csv"):
        rows = _csv_rows(uri, opener)
    else:
        raise ValueError(f"data.manifest = {uri!r}: must end in .csv or .parquet")
    clips = []
    for where, row in _checked_rows(rows, uri, required=("clip_id", "path")):
        clip_id, path = _cell(row, "clip_id", where), _cell(row, "path", where)
        source = row.get("source") or clip_id
        fold = _fold(row["fold"], where) if row.get("fold") else _dealt_fold(source)
        tags = _tags(row, "tags", where, data)
        clips.append(Clip(clip_id, path, tags, fold, source, _absent(row, tags, where, data)))
    return _unique(clips, uri)


def _content(uri: str, opener: Opener) -> bytes:
    try:
        with opener.open(uri) as file:
            return file.read()
    except FileNotFoundError:
        raise ValueError(f"{uri}: no such file; check data.root and data.manifest") from None
    except OSError as error:
        raise ValueError(f"{uri}: cannot be read ({error}); check the address and the credentials") from None


def _csv_rows(uri: str, opener: Opener) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(_content(uri, opener).decode("utf-8-sig"), newline="")))


def _parquet_rows(uri: str, opener: Opener) -> list[dict[str, str]]:
    """As from a CSV file: text, empty where there is nothing, lists joined by semicolons."""
    import pyarrow.parquet

    def text(cell: object) -> str:
        return ";".join(map(str, cell)) if isinstance(cell, list) else "" if cell is None else str(cell)

    table = pyarrow.parquet.read_table(io.BytesIO(_content(uri, opener)))
    return [{name: text(cell) for name, cell in row.items()} for row in table.to_pylist()]


def _checked_rows(
    rows: list[dict[str, str]], uri: str, *, required: tuple[str, ...]
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Every row with the words that name it in a message; the first one after the header is row 1."""
    if not rows:
        raise ValueError(f"{uri}: holds no clips; it needs a header and one row per clip")
    missing = [name for name in required if name not in rows[0]]
    if missing:
        there = ", ".join(map(str, rows[0]))
        raise ValueError(f"{uri}: no column {', '.join(missing)}; it has {there} and needs {', '.join(required)}")
    for number, row in enumerate(rows, start=1):
        yield f"{uri}, row {number}", row


def _cell(row: Mapping[str, str], column: str, where: str) -> str:
    if not row[column]:
        raise ValueError(f"{where}: {column} is empty; every clip needs one")
    return row[column]


def _fold(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{where}: fold = {text!r}: must be a whole number, or leave all folds empty") from None


def _tags(row: Mapping[str, str], column: str, where: str, data: Data) -> tuple[str, ...]:
    tags = _listed(row.get(column))
    if not tags and data.labels == "single":
        raise ValueError(f"{where}: the clip has no tag; name one in column {column}, or leave the row out")
    if data.labels == "single" and len(tags) > 1:
        raise ValueError(
            f"{where}: {len(tags)} tags ({'; '.join(tags)}), but data.labels = 'single'; set it to 'multi'"
        )
    return tags


def _absent(row: Mapping[str, str], tags: tuple[str, ...], where: str, data: Data) -> tuple[str, ...] | None:
    """The tags that this clip is known to lack; None where the table has no such column: it lacks all others."""
    if "absent" not in row:
        return None
    if data.labels == "single":
        raise ValueError(
            f"{where}: column absent is for several tags a clip; set data.labels = 'multi', or leave it out"
        )
    absent = _listed(row["absent"])
    both = sorted(set(absent) & set(tags))
    if both:
        raise ValueError(f"{where}: {both[0]!r} is among its tags and among the absent ones; keep one")
    return absent


def _listed(cell: str | None) -> tuple[str, ...]:
    return tuple(sorted({tag.strip() for tag in (cell or "").split(";")} - {""}))


def _unique(clips: list[Clip], uri: str) -> list[Clip]:
    first: dict[str, int] = {}
    for number, clip in enumerate(clips, start=1):
        before = first.setdefault(clip.clip_id, number)
        if before != number:
            raise ValueError(f"{uri}, row {number}: clip_id {clip.clip_id!r} is that of row {before}; make it unique")
    return clips


def _dealt_fold(source: str) -> int:
    """The fold of a source in a manifest without folds: by its name, so that new rows move no old ones."""
    return int(keyed_generator("fold", source).integers(1, FOLDS + 1))


def split(corpus: Corpus, data: Data) -> Splits:
    """Cut by data.test_fold, then the other folds by data.val_slice; no recording is on two sides.

    With one tag a clip the slices hold the tags in equal shares as far as whole recordings allow. Raises ValueError for
    a fold that does not exist, for a source on both sides of the test fold, and for more slices than recordings or
    clips of a tag can fill.
    """
    folds = sorted({clip.fold for clip in corpus.clips})
    if data.test_fold not in folds:
        raise ValueError(f"data.test_fold = {data.test_fold}: no such fold; the folds are {', '.join(map(str, folds))}")
    test = tuple(clip for clip in corpus.clips if clip.fold == data.test_fold)
    rest = tuple(clip for clip in corpus.clips if clip.fold != data.test_fold)
    torn = {clip.source for clip in test} & {clip.source for clip in rest}
    if torn:
        raise ValueError(
            f"source {min(torn)} is in the test fold {data.test_fold} and in others ({len(torn)} such sources): "
            "a model would be tested on what it has heard; give all clips of a source one fold"
        )
    slices = round(1 / data.val_share)
    fillable = len({clip.source for clip in rest})
    if corpus.labels == "single" and rest:
        fillable = min(fillable, max(Counter(clip.tags for clip in rest).values()))
    if fillable < slices:
        raise ValueError(
            f"data.val_share = {data.val_share}: that makes {slices} slices, but the training folds fill {fillable}; "
            "raise it, or add recordings"
        )
    val = _validation_sources(rest, data, slices, stratified=corpus.labels == "single")
    return Splits(
        train=tuple(clip for clip in rest if clip.source not in val),
        val=tuple(clip for clip in rest if clip.source in val),
        test=test,
    )


def _validation_sources(clips: tuple[Clip, ...], data: Data, slices: int, *, stratified: bool) -> set[str]:
    if stratified:
        from sklearn.model_selection import StratifiedGroupKFold

        cutter = StratifiedGroupKFold(slices, shuffle=True, random_state=data.split_seed)
        sources = [clip.source for clip in clips]
        cuts = list(cutter.split(sources, [clip.tags[0] for clip in clips], sources))
        return {sources[row] for row in cuts[data.val_slice][1]}
    ordered = sorted({clip.source for clip in clips})
    shuffled = keyed_generator("val", data.split_seed).permutation(len(ordered))
    return {ordered[index] for index in np.array_split(shuffled, slices)[data.val_slice]}
