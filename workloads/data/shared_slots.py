"""Memory for the crops of several shards, which a process and its loader processes map.

The loader processes get the slots by pickle when they start. Nothing is left of the memory once all have ended, also
where they were killed.
"""

import mmap
import os
import sys
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class SharedSlots(Protocol):
    """`num_slots` slots, each for int16 samples of one shape."""

    num_slots: int

    def array(self) -> NDArray[np.int16]:
        """The slots as x_SBT, in the calling process."""
        ...

    def tensor(self, *, pinned: bool) -> Tensor:
        """The slots as a tensor; pinned, a GPU copies from them while the CPU goes on."""
        ...

    def close(self) -> None:
        """Called once, by the process that has made them."""
        ...


def shared_slots(num_slots: int, shape: tuple[int, int]) -> SharedSlots:
    """Slots of zeros, of the kind that this system has."""
    return MemoryFile(num_slots, shape) if sys.platform == "linux" else TorchMemory(num_slots, shape)


class MemoryFile:
    """Linux's: an anonymous file, which unlike torch's shared memory is not bounded by the size of /dev/shm."""

    def __init__(self, num_slots: int, shape: tuple[int, int]) -> None:
        self.num_slots = num_slots
        self._shape = (num_slots, *shape)
        self._bytes = int(np.prod(self._shape)) * np.dtype(np.int16).itemsize
        self._file = _anonymous_file()
        os.truncate(self._file, self._bytes)
        self._path = f"/proc/{os.getpid()}/fd/{self._file}"
        self._pinned = 0

    def array(self) -> NDArray[np.int16]:
        with open(self._path, "r+b") as file:
            mapped = mmap.mmap(file.fileno(), self._bytes)
        return np.frombuffer(mapped, np.int16).reshape(self._shape)

    def tensor(self, *, pinned: bool) -> Tensor:
        x_SBT = torch.from_numpy(self.array())
        if pinned:
            self._pinned = x_SBT.data_ptr()
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(self._pinned, self._bytes, 0))
        return x_SBT

    def close(self) -> None:
        if self._pinned:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self._pinned))
        os.close(self._file)


def _anonymous_file() -> int:
    if sys.platform != "linux":
        raise OSError("anonymous files are Linux's")
    return os.memfd_create("antiphon-loaders")


class TorchMemory:
    """Elsewhere: torch's own, whose pickles hold a handle. On macOS a helper of torch's frees it after a kill."""

    def __init__(self, num_slots: int, shape: tuple[int, int]) -> None:
        self.num_slots = num_slots
        self._x_SBT = torch.zeros(num_slots, *shape, dtype=torch.int16).share_memory_()

    def array(self) -> NDArray[np.int16]:
        array: NDArray[np.int16] = self._x_SBT.numpy()
        return array

    def tensor(self, *, pinned: bool) -> Tensor:
        assert not pinned, "only Linux has CUDA here"
        return self._x_SBT

    def close(self) -> None:
        """Nothing to do: the last process that maps it frees it."""
