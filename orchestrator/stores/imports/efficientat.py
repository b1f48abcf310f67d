"""EfficientAT's stored outputs: the logits of an ensemble of PaSST for clean clips, one row a clip.

A .npy file of all rows, fp16 (N, 527), and a pickle of a dictionary from the video to its row. Rows are read from the
mapped file, the pickle without running anything of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.stores.imports.source import ImportRequest, Source, number_clips, to_clip_ids
from orchestrator.stores.writer import Outputs
from workloads.runtime.opener import read_bounded
from workloads.runtime.pickle_data import read_integers_by_name
from workloads.runtime.text import name_some

MAX_INDEX_BYTES = 2**30  # of the pickle: two million names have 40 MB


@contextmanager
def open_efficientat(request: ImportRequest, source: Path, index: Path | None) -> Iterator[Source]:
    """The rows of a .npy file and the names in a pickle; ValueError where they are damaged or do not fit together."""
    if index is None:
        raise ValueError("--index: is missing: name the pickle that says which clip is in which row of the .npy file")
    logits_NC = _map(source)
    with index.open("rb") as file:
        content = read_bounded(file, MAX_INDEX_BYTES)
    if content is None:
        raise ValueError(f"{index}: larger than {MAX_INDEX_BYTES / 2**30:g} GiB; is it the file of names?")
    row_of = read_integers_by_name(content, str(index))
    if wrong := [f"{name} (row {row})" for name, row in row_of.items() if not 0 <= row < len(logits_NC)]:
        raise ValueError(
            f"{index}: {len(wrong)} names have no row among the {len(logits_NC)} of {source.name}: "
            f"{name_some(wrong, 3)}; take both files of one release"
        )
    if shared := _sharing_rows(row_of):
        raise ValueError(
            f"{index}: {len(shared)} names have the row of another one: {name_some(shared, 3)}; it is not the index of "
            f"{source.name}"
        )
    clip_ids, places_VN = number_clips([to_clip_ids(list(row_of), request.names, index)], index)
    rows_VN = np.fromiter(row_of.values(), np.int32, len(row_of))[places_VN]

    def read(view: int, rows_N: NDArray[np.int32]) -> Outputs:
        return np.asarray(logits_NC[rows_N])

    yield Source((source, index), clip_ids, rows_VN, read, "logits", width=logits_NC.shape[1])


def _sharing_rows(row_of: dict[str, int]) -> list[str]:
    first: dict[int, str] = {}
    return [name for name, row in row_of.items() if first.setdefault(row, name) != name]


def _map(path: Path) -> Any:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: no .npy file that can be read ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(found, np.memmap) or found.ndim != 2 or found.dtype.kind != "f" or 0 in found.shape:
        raise ValueError(f"{path}: must be a .npy file of one array of floating-point numbers, a row of logits a clip")
    return found
