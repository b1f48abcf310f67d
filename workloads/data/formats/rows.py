"""The rows of a data set's metadata, checked: a fault is a ValueError in one line, with file, row, rule and fix.

Shared by the readers of this folder. Opens no audio.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.pack import Pack
from workloads.data.table import Row
from workloads.runtime.rng import keyed_generator

YES, NO = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")  # pandas writes 1.0 where a column has gaps
TEST, TRAIN, VALIDATION = 1, 2, 3  # the folds of a data set that comes with a split of its own
MAX_FOLD = 2**53 - 1  # from there on a float stands for several whole numbers
FOLDS = 5  # number of folds to which the sources of a data set without folds are assigned


@dataclass(frozen=True)
class Metadata:
    """What a reader has found: the clips, and what their metadata leaves out.

    `val_fold` is the fold of a data set that names its validation clips itself; None: a slice of the training folds
    validates. `warnings` are printed as those of `workloads/data/warnings.py` are.
    """

    clips: list[Clip]
    without_source: int = 0
    folds_assigned: bool = False
    val_fold: int | None = None
    warnings: tuple[str, ...] = ()
    packed: Pack | None = None


@dataclass(frozen=True)
class MetadataRow:
    """One row of the metadata; every method raises ValueError with the row's location."""

    location: str  # file and row number, for messages; the first row after the header is row 1
    cells: Mapping[str, str]
    single: bool  # whether a clip has exactly one tag

    def required(self, column: str) -> str:
        """The text of a cell that must not be empty."""
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
        if not (value.is_integer() and abs(value) <= MAX_FOLD):
            raise ValueError(
                f"{self.location}: fold = {text!r}: must be a whole number below 2^53, or leave all folds empty"
            )
        return int(value)

    def path(self, column: str, data: Data, *, below: str = "", ending: str = "") -> str:
        """A file's path, below data.root; anywhere else only with data.anywhere.

        A table may come from others: it does not choose which files of this machine are read, nor a protocol.
        """
        path = below + self.required(column) + ending
        chained = "::" in path and data.root.startswith("s3://")  # on a disk it is a name
        if chained or ("://" in path and not (path.startswith("s3://") and data.root.startswith("s3://"))):
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
        """Whether anything is known of the clip's tags; if not, the cells that say it must be empty.

        Where the cell is empty it is, unless the table has no column that says what.
        """
        text = self.optional("labelled").strip()
        if not text and "tags" not in self.cells and "absent" not in self.cells:
            return False
        if text.lower() not in ("", *YES, *NO):
            raise ValueError(f"{self.location}: labelled = {text!r}: must be true or false, or empty for true")
        labelled = text.lower() not in NO
        for column in () if labelled else ("tags", "absent"):
            if parse_tags(self.optional(column)):
                raise ValueError(
                    f"{self.location}: labelled = {text!r}, but {column} = {self.cells[column]!r}: empty that cell, "
                    "since nothing is known of the clip's tags, or set labelled to true"
                )
        return labelled

    def number(self, column: str, *, low: float, high: float) -> float:
        """The number in a cell, from `low` to `high`."""
        text = self.required(column)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"{self.location}: {column} = {text!r}: must be a number from {low:g} to {high:g}")
        return value

    def choice(self, column: str, values: Mapping[str, int]) -> int:
        """What the cell's value stands for; it must be one of these."""
        text = self.required(column)
        if text not in values:
            raise ValueError(f"{self.location}: {column} = {text!r}: must be {' or '.join(values)}")
        return values[text]

    def tags(self, column: str, separator: str = ";") -> tuple[str, ...]:
        """The sorted, distinct tags of a cell: exactly one where a clip has a single one."""
        tags = parse_tags(self.optional(column), separator)
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
        absent = parse_tags(self.optional("absent"))
        both = sorted(set(absent) & set(tags))
        if both:
            raise ValueError(f"{self.location}: {both[0]!r} is among its tags and among the absent ones; keep one")
        return absent


def read_clips(
    table: Iterator[Row], uri: str, data: Data, columns: tuple[str, ...], to_clip: Callable[[MetadataRow], Clip]
) -> list[Clip]:
    """One clip per row of the table at `uri`, which must have these columns."""
    clips = [to_clip(row) for row in read_rows(table, uri, columns, data)]
    if not clips:
        raise ValueError(f"{uri}: holds no clips; it needs a header and one row per clip")
    first: dict[str, int] = {}
    for number, clip in enumerate(clips, start=1):
        earlier = first.setdefault(clip.clip_id, number)
        if earlier != number:
            raise ValueError(f"{uri}, row {number}: clip_id {clip.clip_id!r} is that of row {earlier}; make it unique")
    return clips


def read_rows(table: Iterator[Row], uri: str, columns: tuple[str, ...], data: Data) -> Iterator[MetadataRow]:
    """The rows of the table at `uri`, which must have these columns."""
    for number, cells in enumerate(table, start=1):
        missing = [name for name in columns if name not in cells]
        if missing:
            present = ", ".join(cells)
            raise ValueError(f"{uri}: no column {', '.join(missing)}; it has {present} and needs {', '.join(columns)}")
        yield MetadataRow(f"{uri}, row {number}", cells, data.labels == "single")


def parse_tags(cell: str, separator: str = ";") -> tuple[str, ...]:
    """The sorted, distinct tags of a cell."""
    tags = {tag.strip() for tag in cell.split(separator)} - {""}
    return tuple(sys.intern(tag) for tag in sorted(tags))  # millions of clips share some hundred names


def assign_fold(source: str) -> int:
    """The fold of a source in a manifest without folds: depends on its name only, so new rows do not move old ones."""
    return int(keyed_generator("fold", source).integers(1, FOLDS + 1))
