"""PretrainedSED's stored outputs: logits of every 40 ms of clean clips, one row a clip, in one HDF5 file.

`strong_logits`, fp16 (N, tags, frames), and `filenames`. A row has some hundred kilobytes and is read by itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.stores.imports.hdf5 import find_data, open_hdf5
from orchestrator.stores.imports.source import ImportRequest, Source, number_clips, to_clip_ids
from orchestrator.stores.writer import Outputs


@contextmanager
def open_pretrainedsed(request: ImportRequest, source: Path, index: Path | None) -> Iterator[Source]:
    """The rows of an HDF5 file; ValueError where it is none, or its names are not as many as its rows."""
    if index is not None:
        raise ValueError(
            f"--index {request.index}: a file of PretrainedSED holds the clips' names itself; leave it out"
        )
    with open_hdf5(source) as file:
        logits_NCF = find_data(file, "strong_logits", kinds="f", axes=3)
        names = [_text(name, source) for name in find_data(file, "filenames", kinds="OS", axes=1)[:]]
        if len(names) != len(logits_NCF) or 0 in logits_NCF.shape:
            raise ValueError(f"{source}: {len(names)} filenames, and strong_logits of shape {logits_NCF.shape}")
        clip_ids, rows_VN = number_clips([to_clip_ids(names, request.names, source)], source)

        def read(view: int, rows_N: NDArray[np.int32]) -> Outputs:
            return np.stack([logits_NCF[row] for row in rows_N.tolist()])

        _, width, num_frames = logits_NCF.shape
        augment = {"drawn_by": "PretrainedSED"}
        shape = {"width": width, "num_frames": num_frames, "augment": augment}
        yield Source((source,), clip_ids, rows_VN, read, "logits", **shape)


def _text(name: object, place: Path) -> str:
    try:
        return name.decode() if isinstance(name, bytes) else str(name)
    except UnicodeDecodeError:
        raise ValueError(f"{place}: filenames: {name!r} is no text in UTF-8") from None
