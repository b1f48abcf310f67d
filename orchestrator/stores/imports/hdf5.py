"""Data sets in HDF5 files of other programs, checked before they are used. Does not depend on what they mean."""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def open_hdf5(path: Path) -> Any:
    """The file, opened for reading; ValueError where it is none, or h5py is missing."""
    try:
        import h5py
    except ModuleNotFoundError:
        raise ValueError(f"{path}: HDF5 files need h5py; pip install 'antiphon[hdf5]'") from None
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: no HDF5 file that can be read ({' '.join(str(error).split())[:200]})") from None


def find_data(file: Any, name: str, *, kinds: str, axes: int) -> Any:
    """The data set of this name, whose numbers are of one of these kinds (numpy's letters); ValueError with the file.

    Nothing of it is read yet. Refused are data sets of which HDF5 would give zeros for what is not there: in other
    files, or never written.
    """
    import h5py

    place, found = file.filename, file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{place}: has no data set {name!r}; it has {', '.join(file) or 'none'}")
    if found.dtype.kind not in kinds or found.ndim != axes:
        raise ValueError(
            f"{place}: {name!r} is of type {found.dtype} and shape {found.shape}; {axes} axes of another type are "
            "expected, so it is not such a file"
        )
    if found.is_virtual or found.external:
        raise ValueError(f"{place}: {name!r} lies in other files; write it into one (h5repack), and give that")
    if not _is_complete(found):
        raise ValueError(
            f"{place}: parts of {name!r} were never written and would be zeros; take a file that is complete"
        )
    return found


def _is_complete(data: Any) -> bool:
    """Whether every number of a data set lies in the file."""
    import h5py

    if data.chunks:
        expected = prod(-(-size // chunk) for size, chunk in zip(data.shape, data.chunks, strict=True))
        return bool(data.id.get_num_chunks() == expected)
    return data.size == 0 or bool(data.id.get_space_status() == h5py.h5d.SPACE_STATUS_ALLOCATED)


def read_data(data: Any, selection: Any) -> NDArray[Any]:
    """A part of a data set; ValueError, naming file and data set, where it is damaged."""
    try:
        return np.asarray(data[selection])
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{data.file.filename}: {data.name.lstrip('/')!r} cannot be read ({reason}); copy the file again"
        ) from None
