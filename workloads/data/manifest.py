"""The clips of a data set, their tags and folds, read from its metadata. Opens no audio.

Axes: N clips of a set, C tags.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from workloads.config.recipe import Data
from workloads.data.clips import Clip, Dataset
from workloads.data.synthetic import synthetic_clips
from workloads.runtime.opener import Opener
from workloads.runtime.rng import keyed_generator

FOLDS = 5  # number of folds to which the sources of a manifest without folds are assigned


def read_dataset(data: Data, opener: Opener) -> Dataset:
    """The clips that `data` describes; does not depend on the order of the rows.

    Raises ValueError, with row and fix, for missing columns, repeated clip_ids, clips without tags where data.labels is
    "single", folds that are not numbers, more than one tag where data.labels is "single", and absent tags that no clip
    has or that are also among the clip's tags.
    """
    if data.format == "synthetic":
        clips = synthetic_clips(data)
    elif data.format == "esc50":
        clips = _read_esc50(data, opener)
    else:
        clips = _read_manifest(data, opener)
    clips.sort(key=lambda clip: clip.clip_id)
    return Dataset(tuple(clips), _all_tags(clips, data), data.labels)


def _all_tags(clips: list[Clip], data: Data) -> tuple[str, ...]:
    """The sorted tags of all clips."""
    tags = sorted({tag for clip in clips for tag in clip.tags})
    if not tags:
        raise ValueError(f"{data.manifest}: no clip has a tag (column tags); training and scoring need them")
    unknown = sorted({tag for clip in clips for tag in clip.absent or ()} - set(tags))
    if unknown:
        raise ValueError(
            f"{data.manifest}: column absent names {unknown[0]!r}, which no clip has as a tag; the tags are "
            f"{', '.join(tags)}"
        )
    return tuple(tags)


@dataclass(frozen=True)
class _Row:
    """One row of the metadata; every method raises ValueError with the row's location."""

    location: str  # file and row number, for messages; the first row after the header is row 1
    cells: Mapping[str, str]
    single: bool  # whether a clip has exactly one tag

    def required(self, column: str) -> str:
        if not self.cells[column]:
            raise ValueError(f"{self.location}: {column} is empty; every clip needs one")
        return self.cells[column]

    def optional(self, column: str) -> str:
        """Empty where the cell is empty or the table has no such column."""
        return self.cells.get(column) or ""

    def fold(self) -> int:
        text = self.required("fold")
        try:
            return int(text)
        except ValueError:
            raise ValueError(
                f"{self.location}: fold = {text!r}: must be a whole number, or leave all folds empty"
            ) from None

    def tags(self, column: str) -> tuple[str, ...]:
        tags = _parse_tags(self.optional(column))
        if self.single and not tags:
            raise ValueError(f"{self.location}: the clip has no tag; name one in column {column}, or leave the row out")
        if self.single and len(tags) > 1:
            raise ValueError(
                f"{self.location}: {len(tags)} tags ({'; '.join(tags)}), but data.labels = 'single'; set it to 'multi'"
            )
        return tags

    def absent(self, tags: tuple[str, ...]) -> tuple[str, ...] | None:
        """The tags that the clip is known to lack; None where the table has no such column: it lacks all others."""
        if "absent" not in self.cells:
            return None
        if self.single:
            raise ValueError(
                f"{self.location}: column absent is for several tags a clip; set data.labels = 'multi', or leave it out"
            )
        absent = _parse_tags(self.optional("absent"))
        both = sorted(set(absent) & set(tags))
        if both:
            raise ValueError(f"{self.location}: {both[0]!r} is among its tags and among the absent ones; keep one")
        return absent


def _read_esc50(data: Data, opener: Opener) -> list[Clip]:
    """ESC-50's layout: `meta/esc50.csv` and `audio/`. Its target numbers may have gaps, so the category is the tag."""

    def to_clip(row: _Row) -> Clip:
        name = row.required("filename")
        clip_id, fold = name.rsplit(".", 1)[0], row.fold()
        return Clip(clip_id, f"audio/{name}", row.tags("category"), fold, row.required("src_file"))

    uri = opener.join(data.root, "meta/esc50.csv")
    columns = ("filename", "fold", "category", "src_file")
    return _read_clips(_read_csv(uri, opener), uri, data, columns, to_clip)


def _read_manifest(data: Data, opener: Opener) -> list[Clip]:
    """A table with clip_id, path, tags, and optionally fold, source and absent, as CSV or Parquet."""

    def to_clip(row: _Row) -> Clip:
        clip_id, path = row.required("clip_id"), row.required("path")
        source = row.optional("source") or clip_id
        fold = row.fold() if row.optional("fold") else _assign_fold(source)
        tags = row.tags("tags")
        return Clip(clip_id, path, tags, fold, source, row.absent(tags))

    uri = data.manifest
    if uri.endswith(".parquet"):
        table = _read_parquet(uri, opener)
    elif uri.endswith(".csv"):
        table = _read_csv(uri, opener)
    else:
        raise ValueError(f"data.manifest = {uri!r}: must end in .csv or .parquet")
    return _read_clips(table, uri, data, ("clip_id", "path"), to_clip)


def _read_clips(
    table: list[dict[str, str]], uri: str, data: Data, columns: tuple[str, ...], to_clip: Callable[[_Row], Clip]
) -> list[Clip]:
    """One clip per row of the table at `uri`, which must have these columns."""
    clips = [to_clip(row) for row in _checked_rows(table, uri, columns, single=data.labels == "single")]
    first: dict[str, int] = {}
    for number, clip in enumerate(clips, start=1):
        earlier = first.setdefault(clip.clip_id, number)
        if earlier != number:
            raise ValueError(f"{uri}, row {number}: clip_id {clip.clip_id!r} is that of row {earlier}; make it unique")
    return clips


def _checked_rows(table: list[dict[str, str]], uri: str, columns: tuple[str, ...], *, single: bool) -> Iterator[_Row]:
    if not table:
        raise ValueError(f"{uri}: holds no clips; it needs a header and one row per clip")
    missing = [name for name in columns if name not in table[0]]
    if missing:
        present = ", ".join(map(str, table[0]))
        raise ValueError(f"{uri}: no column {', '.join(missing)}; it has {present} and needs {', '.join(columns)}")
    for number, cells in enumerate(table, start=1):
        yield _Row(f"{uri}, row {number}", cells, single)


def _read_file(uri: str, opener: Opener) -> bytes:
    try:
        with opener.open(uri) as file:
            return file.read()
    except FileNotFoundError:
        raise ValueError(f"{uri}: no such file; check data.root and data.manifest") from None
    except OSError as error:
        raise ValueError(f"{uri}: cannot be read ({error}); check the address and the credentials") from None


def _read_csv(uri: str, opener: Opener) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(_read_file(uri, opener).decode("utf-8-sig"), newline="")))


def _read_parquet(uri: str, opener: Opener) -> list[dict[str, str]]:
    """The same as from a CSV file: text, empty for a missing value, lists joined by semicolons."""
    import pyarrow.parquet

    def text(cell: object) -> str:
        return ";".join(map(str, cell)) if isinstance(cell, list) else "" if cell is None else str(cell)

    table = pyarrow.parquet.read_table(io.BytesIO(_read_file(uri, opener)))
    return [{name: text(cell) for name, cell in row.items()} for row in table.to_pylist()]


def _parse_tags(cell: str) -> tuple[str, ...]:
    """The sorted, distinct tags of a cell, which separates them by semicolons."""
    return tuple(sorted({tag.strip() for tag in cell.split(";")} - {""}))


def _assign_fold(source: str) -> int:
    """The fold of a source in a manifest without folds: depends on its name only, so new rows do not move old ones."""
    return int(keyed_generator("fold", source).integers(1, FOLDS + 1))
