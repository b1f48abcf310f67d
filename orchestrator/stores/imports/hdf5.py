"""Data sets in HDF5 files of other programs, checked before they are used. Does not depend on what they mean."""

from pathlib import Path
from typing import Any


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

    Nothing of it is read yet.
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
    return found
