"""Stored logits in time of two projects of one group: one row a clip, in one HDF5 file.

PretrainedSED: `strong_logits`, fp16 (N, tags, frames), frames of 40 ms, clips named by their video. DCASE 2024 task 4
(cpjku_dcase24): the same in fp32 with the axes (N, frames, tags), frames of 64 ms, clips named as they are. Both have
`filenames`. A row has some hundred kilobytes and is read by itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.stores.imports.hdf5 import find_data, open_hdf5, read_data
from orchestrator.stores.imports.source import ImportRequest, Source, number_clips, to_clip_ids
from orchestrator.stores.writer import Outputs

DCASE_HOP = 0.064  # seconds: four steps of 256 samples at 16 kHz


@contextmanager
def open_pretrainedsed(request: ImportRequest, source: Path, index: Path | None) -> Iterator[Source]:
    """The rows of an HDF5 file; ValueError where it is none, or its names are not as many as its rows."""
    with _open_frames(request, source, index, project="PretrainedSED", names=request.names) as found:
        yield found


@contextmanager
def open_dcase24(request: ImportRequest, source: Path, index: Path | None) -> Iterator[Source]:
    """The same of a file whose rows are (frames, tags); names are always taken as they are."""
    with _open_frames(
        request, source, index, project="cpjku_dcase24", names="exact", time_major=True, hop=DCASE_HOP
    ) as found:
        yield found


@contextmanager
def _open_frames(
    request: ImportRequest,
    source: Path,
    index: Path | None,
    *,
    project: str,
    names: str,
    time_major: bool = False,
    hop: float = 0.0,
) -> Iterator[Source]:
    if index is not None:
        raise ValueError(f"--index {request.index}: a file of {project} holds the clips' names itself; leave it out")
    with open_hdf5(source) as file:
        logits = find_data(file, "strong_logits", kinds="f", axes=3)
        filenames = [_text(name, source) for name in read_data(find_data(file, "filenames", kinds="OS", axes=1), ...)]
        if len(filenames) != len(logits) or 0 in logits.shape:
            raise ValueError(f"{source}: {len(filenames)} filenames, and strong_logits of shape {logits.shape}")
        clip_ids, rows_VN = number_clips([to_clip_ids(filenames, names, source)], source)

        def read(view: int, rows_N: NDArray[np.int32]) -> Outputs:
            rows = np.stack([read_data(logits, row) for row in rows_N.tolist()])
            return rows.swapaxes(1, 2) if time_major else rows

        _, width, num_frames = logits.shape[:1] + (logits.shape[:0:-1] if time_major else logits.shape[1:])
        shape = {"width": width, "num_frames": num_frames, "hop": hop, "augment": {"drawn_by": project}}
        yield Source((source,), clip_ids, rows_VN, read, "logits", **shape)


def _text(name: object, place: Path) -> str:
    try:
        return name.decode() if isinstance(name, bytes) else str(name)
    except UnicodeDecodeError:
        raise ValueError(f"{place}: filenames: {name!r} is no text in UTF-8") from None
