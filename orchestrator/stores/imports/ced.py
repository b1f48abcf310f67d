"""CED's stored outputs: the k largest probabilities of an ensemble for clips in several augmented views.

A folder of pairs `logits_epE_R.h5` and `logits_epE_R.parquet` of virtual epoch E and process R: HDF5 with `topk_values`
(N, k) and `topk_indexes` (N, k), and in the same order a table of filename, start and end in seconds. A virtual epoch
is a view. The seeds in the files are of no use without CED's program.

Rows have some ten bytes and are read in another order than they lie in the files, so those of a view are first copied
to a temporary file, which is mapped.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.stores.imports.hdf5 import find_data, open_hdf5, read_data
from orchestrator.stores.imports.source import ImportRequest, Source, number_clips, to_clip_ids
from orchestrator.stores.writer import Outputs
from workloads.runtime.scratch import scratch_folder
from workloads.stores.topk import TopK

FILE_NAME = re.compile(r".*ep(\d+)_(\d+)\.h5")
BLOCK = 65_536  # rows copied at once


@contextmanager
def open_ced(request: ImportRequest, source: Path, index: Path | None) -> Iterator[Source]:
    """The rows of a folder; ValueError where a file or a virtual epoch is missing, or the files do not fit together."""
    if index is not None:
        raise ValueError(f"--index {request.index}: CED's folder holds the clips' names itself; leave it out")
    if request.k:
        raise ValueError(f"--k {request.k}: CED's files hold the largest values only; leave it out")
    views = _find_views(source)
    sizes = [[_shape(part) for part in view] for view in views]
    different = {k for view in sizes for _, k in view}
    if len(different) > 1:
        raise ValueError(f"{source}: its files hold {' and '.join(map(str, sorted(different)))} values a row")
    clip_ids, rows_VN = number_clips(_clip_ids(views, sizes, request.names), source)
    with scratch_folder() as scratch:
        copies = _Copies(views, sizes, scratch)
        files = tuple(path for view in views for part in view for path in (part, part.with_suffix(".parquet")))
        known: dict[str, Any] = {"k": different.pop(), "augment": {"drawn_by": "CED"}}
        yield Source(files, clip_ids, rows_VN, copies.read, "probabilities", **known)


def _find_views(folder: Path) -> list[list[Path]]:
    """The HDF5 files of each virtual epoch, by the number of the process."""
    found: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.glob("*.h5")):
        if match := FILE_NAME.fullmatch(path.name):
            parts = found.setdefault(int(match[1]), {})
            if int(match[2]) in parts:
                raise ValueError(f"{folder}: {parts[int(match[2])].name} and {path.name} are the same part; keep one")
            parts[int(match[2])] = path
            if not path.with_suffix(".parquet").is_file():
                raise ValueError(
                    f"{path}: without {path.with_suffix('.parquet').name} beside it, its clips have no names"
                )
    if not found:
        raise ValueError(
            f"{folder}: holds no files such as logits_ep1_0.h5 and logits_ep1_0.parquet; give their folder"
        )
    if lost := sorted({*range(min(found), max(found))} - set(found)):
        raise ValueError(f"{folder}: no files of virtual epoch {lost[0]} (ep{lost[0]}_...); copy them, too")
    return [[path for _, path in sorted(found[epoch].items())] for epoch in sorted(found)]


def _shape(path: Path) -> tuple[int, int]:
    """Rows and values of each; ValueError where tags and values are not as many."""
    with open_hdf5(path) as file:
        values, tags = _data(file)
        if values.shape != tags.shape or values.shape[1] < 1:
            raise ValueError(f"{path}: topk_values has the shape {values.shape}, topk_indexes {tags.shape}")
        if tags.dtype.itemsize > 4:
            raise ValueError(f"{path}: topk_indexes is of type {tags.dtype}; 16 bits are expected, or 32")
        rows, k = values.shape
        return rows, k


def _data(file: Any) -> tuple[Any, Any]:
    return find_data(file, "topk_values", kinds="f", axes=2), find_data(file, "topk_indexes", kinds="iu", axes=2)


@dataclass
class _Copies:
    """The rows of each view as one mapped array, which is made when the view is first read."""

    views: Sequence[Sequence[Path]]
    sizes: Sequence[Sequence[tuple[int, int]]]
    folder: Path
    mapped: dict[int, Any] = field(default_factory=dict)

    def read(self, view: int, rows_N: NDArray[np.int32]) -> Outputs:
        if view not in self.mapped:
            self.mapped[view] = self._copy(view)
        records_N = self.mapped[view][rows_N]
        return TopK(records_N["tags"], records_N["values"])

    def _copy(self, view: int) -> Any:
        k, total = self.sizes[view][0][1], sum(rows for rows, _ in self.sizes[view])
        kind: Any = [("tags", np.int32, (k,)), ("values", np.float16, (k,))]
        copy = np.lib.format.open_memmap(self.folder / f"{view}.npy", "w+", dtype=kind, shape=(total,))
        start = 0
        for path, (rows, _) in zip(self.views[view], self.sizes[view], strict=True):
            with open_hdf5(path) as file:
                values, tags = _data(file)
                for first in range(0, rows, BLOCK):
                    part = copy[start + first : start + min(rows, first + BLOCK)]
                    rows_of_part = slice(first, first + BLOCK)
                    part["values"], part["tags"] = read_data(values, rows_of_part), read_data(tags, rows_of_part)
            start += rows
        return copy


def _clip_ids(
    views: Sequence[Sequence[Path]], sizes: Sequence[Sequence[tuple[int, int]]], names: str
) -> Iterator[list[str]]:
    """The ids of the rows of each view; of files that were cut into several pieces each with start and end."""
    in_pieces = {name for view in views for name in _in_pieces([_table(part, ["filename"]) for part in view])}
    for view, sizes_of_view in zip(views, sizes, strict=True):
        clip_ids: list[str] = []
        for part, (rows, _) in zip(view, sizes_of_view, strict=True):
            place = part.with_suffix(".parquet")
            table = _table(part, ["filename", "start", "end"])
            if len(table) != rows:
                raise ValueError(f"{place}: {len(table)} rows, and {part.name} has {rows}; take both of one release")
            found = table["filename"].to_pylist()
            columns = (table["start"].to_pylist(), table["end"].to_pylist())
            clip_ids += [
                f"{clip_id}_{start:g}_{end:g}" if name in in_pieces else clip_id
                for clip_id, name, start, end in zip(to_clip_ids(found, names, place), found, *columns, strict=True)
            ]
        yield clip_ids


def _in_pieces(tables: Sequence[Any]) -> list[str]:
    """The files with several rows in a view."""
    import pyarrow
    import pyarrow.compute

    counts = pyarrow.compute.value_counts(pyarrow.concat_tables(tables)["filename"].combine_chunks())
    several: list[str] = counts.filter(pyarrow.compute.greater(counts.field("counts"), 1)).field("values").to_pylist()
    return several


def _table(part: Path, columns: list[str]) -> Any:
    """These columns of the table beside an HDF5 file."""
    import pyarrow
    import pyarrow.parquet

    place = part.with_suffix(".parquet")
    kinds = {"filename": pyarrow.string(), "start": pyarrow.float32(), "end": pyarrow.float32()}
    try:
        table = pyarrow.parquet.read_table(place, columns=columns)
        if missing := [column for column in columns if column not in table.column_names]:
            raise ValueError(
                f"{place}: no column {', '.join(missing)}; it has {', '.join(table.column_names) or 'none'}"
            )
        table = table.select(columns).cast(pyarrow.schema([(column, kinds[column]) for column in columns]))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{place}: no readable table of clips ({' '.join(str(error).split())[:200]})") from None
    if any(table[column].null_count for column in columns):
        raise ValueError(f"{place}: a row without {' or '.join(columns)}")
    return table
