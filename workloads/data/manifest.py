"""The clips of a data set, their tags and folds, read from its metadata. Opens no audio.

Axes: N clips of a set, C tags.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from workloads.config.recipe import Data
from workloads.data.clips import Clip, Dataset
from workloads.data.synthetic import synthetic_clips
from workloads.data.table import Row, read_table
from workloads.runtime.opener import Opener
from workloads.runtime.rng import keyed_generator
from workloads.runtime.text import name_some

COLUMNS = ("clip_id", "path", "tags", "fold", "source", "absent", "labelled")  # of a manifest
YES, NO = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")  # pandas writes 1.0 where a column has gaps
FOLDS = 5  # number of folds to which the sources of a manifest without folds are assigned


def read_dataset(data: Data, opener: Opener, *, model_tags: tuple[str, ...] = ()) -> Dataset:
    """The clips that `data` describes; does not depend on the order of the rows.

    With the tags of a model, the dataset's are these, in their order, matched by name; the clips need not have all.

    Raises ValueError, with row and fix, for missing columns, repeated clip_ids, clips without tags where data.labels is
    "single", folds that are not numbers, more than one tag where data.labels is "single", absent tags that no clip has
    or that are also among the clip's tags, tags of a clip that is not labelled, and tags that the model does not know.
    """
    if data.format == "synthetic":
        clips, given = synthetic_clips(data), _LeftOut()
    elif data.format == "esc50":
        clips, given = _read_esc50(data, opener), _LeftOut()
    else:
        clips, given = _read_manifest(data, opener)
    clips.sort(key=lambda clip: clip.clip_id)
    present = {tag for clip in clips for tag in clip.tags}
    tags = model_tags or tuple(sorted(present))
    _check_tags(clips, data, present, tags)
    return Dataset(
        tuple(clips),
        tags,
        data.labels,
        without_source=given.without_source,
        folds_assigned=given.folds_assigned,
        not_in_data=tuple(tag for tag in tags if tag not in present),
    )


def _check_tags(clips: list[Clip], data: Data, present: set[str], tags: tuple[str, ...]) -> None:
    """ValueError where no clip has a tag, and for tags of clips that are not among the dataset's."""
    if not present:
        raise ValueError(f"{data.manifest}: no clip has a tag (column tags); training and scoring need them")
    if strangers := sorted(present - set(tags)):
        raise ValueError(
            f"the data set's tags {name_some(strangers)}: the tagger does not know them, it knows {name_some(tags)}; "
            "leave them out of the data set, or choose a tagger that knows them"
        )
    unknown = sorted({tag for clip in clips for tag in clip.absent or ()} - set(tags))
    if unknown:
        raise ValueError(
            f"{data.manifest}: column absent names {unknown[0]!r}, which no clip has as a tag; the tags are "
            f"{', '.join(tags)}"
        )


@dataclass
class _LeftOut:
    """What a table leaves out, counted while it is read."""

    without_source: int = 0
    folds_assigned: bool = False


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
        """A whole number in any spelling: pandas writes 1.0 where a column has gaps."""
        text = self.required("fold")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not value.is_integer():
            raise ValueError(f"{self.location}: fold = {text!r}: must be a whole number, or leave all folds empty")
        return int(value)

    def path(self, column: str, data: Data, *, below: str = "") -> str:
        """A file's path, below data.root; anywhere else only with data.anywhere.

        A table may come from others: it does not choose which files of this machine are read, nor a protocol.
        """
        path = below + self.required(column)
        if "::" in path or ("://" in path and not (path.startswith("s3://") and data.root.startswith("s3://"))):
            raise ValueError(
                f"{self.location}: {column} = {path!r}: must be a plain path (or an s3:// URI where data.root is one)"
            )
        outside = path.startswith(("/", "~")) or "://" in path or ".." in PurePosixPath(path).parts
        if outside and not data.anywhere:
            raise ValueError(
                f"{self.location}: {column} = {path!r}: leads out of data.root = {data.root!r}; make it relative to "
                "that folder, or trust this table with --set data.anywhere=true"
            )
        return path

    def labelled(self) -> bool:
        """Whether anything is known of the clip's tags; if not, the cells that say it must be empty."""
        text = self.optional("labelled").strip()
        if text.lower() not in ("", *YES, *NO):
            raise ValueError(f"{self.location}: labelled = {text!r}: must be true or false, or empty for true")
        labelled = text.lower() not in NO
        for column in () if labelled else ("tags", "absent"):
            if _parse_tags(self.optional(column)):
                raise ValueError(
                    f"{self.location}: labelled = {text!r}, but {column} = {self.cells[column]!r}: empty that cell, "
                    "since nothing is known of the clip's tags, or set labelled to true"
                )
        return labelled

    def tags(self, column: str) -> tuple[str, ...]:
        tags = _parse_tags(self.optional(column))
        if self.single and not tags:
            raise ValueError(
                f"{self.location}: the clip has no tag; name one in column {column}, or leave the row out"
                + (" (or write false in a column labelled: its tag is unknown)" if column == "tags" else "")
            )
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
        path = row.path("filename", data, below="audio/")
        return Clip(clip_id, path, row.tags("category"), fold, row.required("src_file"))

    uri = opener.join(data.root, "meta/esc50.csv")
    columns = ("filename", "fold", "category", "src_file")
    return _read_clips(read_table(uri, opener, columns=columns), uri, data, columns, to_clip)


def _read_manifest(data: Data, opener: Opener) -> tuple[list[Clip], _LeftOut]:
    """A table with clip_id, path, tags, and optionally fold, source, absent and labelled, as CSV or Parquet."""
    given = _LeftOut()

    def to_clip(row: _Row) -> Clip:
        clip_id, path = row.required("clip_id"), row.path("path", data)
        source = row.optional("source") or clip_id
        given.without_source += not row.optional("source")
        given.folds_assigned |= not row.optional("fold")
        fold = row.fold() if row.optional("fold") else _assign_fold(source)
        if not row.labelled():
            return Clip(clip_id, path, (), fold, source, labelled=False)
        tags = row.tags("tags")
        return Clip(clip_id, path, tags, fold, source, row.absent(tags))

    table = _with_or_without_folds(read_table(data.manifest, opener, columns=COLUMNS), data.manifest)
    return _read_clips(table, data.manifest, data, ("clip_id", "path"), to_clip), given


def _with_or_without_folds(table: Iterator[Row], uri: str) -> Iterator[Row]:
    """The same rows; ValueError where one has a fold and another has none."""
    first: dict[bool, int] = {}  # of the rows with a fold, and of those without
    for number, cells in enumerate(table, start=1):
        first.setdefault(bool(cells.get("fold")), number)
        if len(first) == 2:
            raise ValueError(
                f"{uri}: row {first[True]} has a fold, row {first[False]} has none; give every clip a fold, or none"
            )
        yield cells


def _read_clips(
    table: Iterator[Row], uri: str, data: Data, columns: tuple[str, ...], to_clip: Callable[[_Row], Clip]
) -> list[Clip]:
    """One clip per row of the table at `uri`, which must have these columns."""
    clips = [to_clip(row) for row in _checked_rows(table, uri, columns, single=data.labels == "single")]
    if not clips:
        raise ValueError(f"{uri}: holds no clips; it needs a header and one row per clip")
    first: dict[str, int] = {}
    for number, clip in enumerate(clips, start=1):
        earlier = first.setdefault(clip.clip_id, number)
        if earlier != number:
            raise ValueError(f"{uri}, row {number}: clip_id {clip.clip_id!r} is that of row {earlier}; make it unique")
    return clips


def _checked_rows(table: Iterator[Row], uri: str, columns: tuple[str, ...], *, single: bool) -> Iterator[_Row]:
    for number, cells in enumerate(table, start=1):
        missing = [name for name in columns if name not in cells]
        if missing:
            present = ", ".join(cells)
            raise ValueError(f"{uri}: no column {', '.join(missing)}; it has {present} and needs {', '.join(columns)}")
        yield _Row(f"{uri}, row {number}", cells, single)


def _parse_tags(cell: str) -> tuple[str, ...]:
    """The sorted, distinct tags of a cell, which separates them by semicolons."""
    return tuple(sorted({tag.strip() for tag in cell.split(";")} - {""}))


def _assign_fold(source: str) -> int:
    """The fold of a source in a manifest without folds: depends on its name only, so new rows do not move old ones."""
    return int(keyed_generator("fold", source).integers(1, FOLDS + 1))
