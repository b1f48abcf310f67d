"""Files of teacher outputs as other projects publish them, of drawn values, for tests."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from workloads.runtime.rng import keyed_generator

# in no order; one begins with Y itself
VIDEOS = ("__2MwJ2uHu0", "--4gqARaEJE", "Y--2_BBVHAA", "-0RWZT-miFs", "---1_cCGK4M", "0-2Onbywljo", "00XaUxjGuX8")


def logits(*shape: int) -> NDArray[np.float16]:
    return keyed_generator("logits", *shape).normal(-3, 2, shape).astype(np.float16)


def write_efficientat(
    folder: Path, names: Sequence[str] = VIDEOS, *, tags: int = 527
) -> tuple[Path, Path, dict[str, NDArray[np.float16]]]:
    """The .npy file, the pickle, and the row of each name; one row more has no name, and rows lie in another order."""
    values, rows = logits(len(names) + 1, tags), {name: len(names) - number for number, name in enumerate(names)}
    np.save(folder / "logits.npy", values)
    (folder / "fname_to_index.pkl").write_bytes(pickle.dumps(rows))
    return folder / "logits.npy", folder / "fname_to_index.pkl", {name: values[row] for name, row in rows.items()}


def write_ced_part(
    folder: Path, part: str, clips: Sequence[tuple[str, float, float]], *, k: int = 5, **changes: Any
) -> tuple[NDArray[np.int16], NDArray[np.float16]]:
    """One pair of files, as CED's program makes them; returns tags and values of the rows."""
    rng = keyed_generator("ced", part)
    dense = rng.random((len(clips), 527)).astype(np.float16)
    tags = np.argsort(-dense, axis=1, kind="stable")[:, :k].astype(np.int16)
    sets = {"topk_values": np.take_along_axis(dense, tags.astype(int), axis=1), "topk_indexes": tags} | changes
    sets["seeds"] = rng.integers(0, 2**31, len(clips)).astype(np.int32)
    with h5py.File(folder / f"logits_{part}.h5", "w") as file:
        for name, values in sets.items():
            file.create_dataset(name, data=values, maxshape=(None, *values.shape[1:]))
    names, starts, ends = zip(*clips, strict=True)
    columns = {"filename": names, "start": np.array(starts, "f4"), "end": np.array(ends, "f4")}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"logits_{part}.parquet", compression="brotli")
    return sets["topk_indexes"], sets["topk_values"]


def write_pretrainedsed(file: Path, names: Sequence[str], *, tags: int, frames: int) -> Mapping[str, NDArray[Any]]:
    """The file, and the row of each name."""
    values = logits(len(names), tags, frames)
    with h5py.File(file, "w") as out:
        out.create_dataset("strong_logits", data=values)
        out.create_dataset("filenames", data=np.array([name.encode() for name in names], "S12"))
    return dict(zip(names, values, strict=True))
