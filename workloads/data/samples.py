"""A decoded clip as it is stored: an .npy file of 16-bit samples. Does not depend on clips or caches.

Axes: T samples, here of a whole stored clip, L samples of a part of it.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FULL_SCALE = 32768  # a sample of 1.0 as an integer


def to_file(x_T: Tensor) -> bytes:
    """The content of the file of a clip x_T in float32; samples beyond full scale are clipped."""
    file = io.BytesIO()
    np.save(file, to_integers(x_T))
    return file.getvalue()


def to_integers(x_T: Tensor) -> NDArray[np.int16]:
    """The samples of a waveform in float32 as they are stored."""
    integers_T: NDArray[np.int16] = (
        (x_T * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1).to(torch.int16).numpy()
    )
    return integers_T


def to_waveform(integers_T: NDArray[np.int16]) -> Tensor:
    """x_T float32 of stored samples."""
    # numpy: waking torch's threads costs most of the time for a clip of seconds
    return torch.from_numpy(np.multiply(integers_T, np.float32(1 / FULL_SCALE), dtype=np.float32))


def read_whole(path: Path) -> Tensor:
    """The whole clip, x_T float32; raises as `read_part`."""
    return to_waveform(np.load(path))  # a plain read: for a clip of seconds, a memory map costs a third more


def read_part(path: Path, part_L: NDArray[np.int16], *, start: Callable[[int], int]) -> int:
    """Fill `part_L` with the samples of a clip from `start(T)` on, then zeros; returns T.

    Reads these bytes only, into `part_L` itself. Raises FileNotFoundError where the file is gone, ValueError or
    EOFError where it is damaged.
    """
    with path.open("rb", buffering=0) as file:
        return read_part_of(file, part_L, start=start)


def read_part_of(file: io.FileIO, part_L: NDArray[np.int16], *, start: Callable[[int], int]) -> int:
    """The same of the clip whose file begins where this one stands: it may lie within a larger file."""
    samples = _num_samples(file)
    first = start(samples)
    sound_L = part_L[: samples - first]
    file.seek(first * part_L.itemsize, io.SEEK_CUR)
    if file.readinto(sound_L.data.cast("B")) != sound_L.nbytes:
        raise EOFError(f"{file.name}: is cut off")
    part_L[len(sound_L) :] = 0
    return samples


def cut_into(part_L: NDArray[np.int16], integers_T: NDArray[np.int16], *, start: Callable[[int], int]) -> int:
    """The same of a clip in memory."""
    first = start(len(integers_T))
    sound_L = integers_T[first : first + len(part_L)]
    part_L[: len(sound_L)] = sound_L
    part_L[len(sound_L) :] = 0
    return len(integers_T)


def _num_samples(file: BinaryIO) -> int:
    """The number of samples by the file's header, at the end of which the file is left; ValueError where it is none."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.int16 or len(shape) != 1:
        raise ValueError(f"holds an array {shape} of {dtype}, not the samples of a clip")
    return int(shape[0])
