"""A manifest: a table of clips that people write for a data set of their own."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.formats.rows import Metadata, MetadataRow, assign_fold, read_clips
from workloads.data.table import Row, read_table
from workloads.runtime.opener import Opener

COLUMNS = ("clip_id", "path", "tags", "fold", "source", "absent", "labelled")


def read_manifest(data: Data, opener: Opener) -> Metadata:
    """A table with clip_id, path, tags, and optionally fold, source, absent and labelled, as CSV or Parquet."""
    without_source, folds_assigned = 0, False
    misspelt: dict[str, str] | None = None

    def to_clip(row: MetadataRow) -> Clip:
        nonlocal without_source, folds_assigned, misspelt
        if misspelt is None:  # all rows have the same columns, and a look for each takes most of the time
            misspelt = _misspelt(row.cells)
        clip_id, path = row.required("clip_id"), row.path("path", data)
        source = row.optional("source") or clip_id
        without_source += not row.optional("source")
        folds_assigned |= not row.optional("fold")
        fold = row.fold() if row.optional("fold") else assign_fold(source)
        if not row.labelled():
            return Clip(clip_id, path, (), fold, source, labelled=False)
        tags = row.tags("tags")
        return Clip(clip_id, path, tags, fold, source, row.absent(tags))

    table = _with_or_without_folds(read_table(data.manifest, opener, columns=COLUMNS), data.manifest)
    clips = read_clips(table, data.manifest, data, ("clip_id", "path"), to_clip)
    warnings = tuple(f"column {name} is not read; is it {meant}?" for name, meant in (misspelt or {}).items())
    return Metadata(clips, without_source, folds_assigned, warnings=warnings)


def _misspelt(cells: Iterable[str]) -> dict[str, str]:
    """The columns that are not read, but look like one that is missing."""
    missing = [column for column in COLUMNS if column not in cells]
    close = {name: get_close_matches(name.strip().lower(), missing, n=1, cutoff=0.8) for name in cells}
    return {name: found[0] for name, found in close.items() if found and name not in COLUMNS}


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
