"""Which clips there are, what they are tagged, and how they are cut into train, validation and test. Opens no audio.

Axes: N clips, C tags.
"""

import csv
import io
from collections.abc import Iterator, Mapping

from workloads.config.recipe import Data
from workloads.data.clips import Clip, Dataset
from workloads.data.synthetic import synthetic_clips
from workloads.runtime.opener import Opener
from workloads.runtime.rng import keyed_generator

FOLDS = 5  # into which the sources of a manifest without folds are dealt


def read_dataset(data: Data, opener: Opener) -> Dataset:
    """The clips that `data` describes, whatever the order of its rows.

    Raises ValueError, naming row and fix, for missing columns, repeated clip_ids, clips without tags, folds that are no
    numbers, more than one tag where data.labels is "single", and tags that are absent everywhere or where they are.
    """
    if data.format == "synthetic":
        found = synthetic_clips(data)
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
    return Dataset(tuple(found), tuple(tags), data.labels)


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
