"""Loads the crops of a shard: in the training thread, or ahead of it in processes of its own. Knows no models.

What a shard consists of (`ShardRequest`) is decided by whoever asks, and the processes hold nothing of the data set:
any number of them loads the same samples.

Axes: B clips of a shard, T samples.
"""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from workloads.config.recipe import Augment, Train
from workloads.data.augment import StoredViews, View, draw_view
from workloads.data.clip_store import ClipStore
from workloads.data.decode import BrokenClip
from workloads.data.shard import ViewKey
from workloads.data.shared_slots import SharedSlots, shared_slots
from workloads.runtime.exit_signals import blocked_signals
from workloads.runtime.free_memory import free_memory

START = "forkserver"  # a fork of this process would hold its sockets, locks and GPU, also after it was killed
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}  # of a terminal or a job system, which sends them to all


class ShardRequest(NamedTuple):
    """The clips of a shard in order, and in which view each is heard."""

    keys: tuple[ViewKey, ...]
    clips: tuple[Any, ...]  # entries of the store


class CropsRead(NamedTuple):
    """What was found out while the crops of a shard were read."""

    samples: tuple[int, ...]  # of each whole clip
    views: tuple[View, ...]
    broken: dict[int, str]  # rows whose clip turned out to be unusable, and why; their samples are silence


class Crops(NamedTuple):
    """The crops of a shard, valid until the next ones are loaded."""

    x_BT: Tensor  # int16, padded with zeros on the right
    read: CropsRead


class LoaderDied(OSError):
    """A loader process has ended: killed, or out of memory."""


class CropReader:
    """Reads the crops of shards of `shard_size` clips of `length` samples each; `stored`: see `draw_view`."""

    def __init__(
        self, cache: ClipStore, augment: Augment, *, shard_size: int, length: int, stored: StoredViews | None = None
    ) -> None:
        self.cache, self.augment, self.stored = cache.without_clips(), augment, stored
        self.shape = (shard_size, length)

    def read(self, request: ShardRequest, x_BT: NDArray[np.int16]) -> CropsRead:
        """Fill `x_BT` with the crops, zeros after the end of a shorter clip and in the place of a broken one.

        Raises OSError where a disk or a store fails.
        """
        samples, views, broken = [], [], {}
        clips = self.cache.ahead(request.clips)
        for row, (key, clip, x_T) in enumerate(zip(request.keys, clips, x_BT, strict=True)):
            views.append(draw_view(self.augment, *key, stored=self.stored))
            try:
                samples.append(self.cache.load_part(clip, x_T, start=partial(views[-1].crop_start, length=len(x_T))))
            except BrokenClip as error:
                x_T[:] = 0
                samples.append(len(x_T))
                broken[row] = str(error)
        return CropsRead(tuple(samples), tuple(views), broken)


class CropLoader(Protocol):
    """Loads the crops of shards."""

    def load(self, request: ShardRequest) -> Crops:
        """The crops of a shard; raises OSError where the disk or a loader process fails."""
        ...


class InThread:
    """Loads in the thread that asks: see `CropLoader`."""

    def __init__(self, reader: CropReader) -> None:
        self._reader = reader
        self._x_BT = np.empty(reader.shape, np.int16)

    def load(self, request: ShardRequest) -> Crops:
        return Crops(torch.from_numpy(self._x_BT), self._reader.read(request, self._x_BT))


class InProcesses:
    """Loads in processes, each `prefetch` shards ahead, into memory that they share with this one: see `CropLoader`.

    Used by one thread, which asks for the shards of `requests` in their order; `close` ends the processes. Where this
    process is killed, they find out within some seconds and end. They ignore `SIGNALS`: this process decides when
    loading ends, and saves before.

    torch's DataLoader starts and watches the processes. It would hand each shard over in new shared memory: filling the
    pages of that takes ten times as long as reading the samples, and a container's /dev/shm is often too small for it.
    """

    def __init__(
        self,
        reader: CropReader,
        requests: Iterator[ShardRequest],
        *,
        loaders: int,
        prefetch: int,
        shards_per_step: int,
        device: torch.device,
    ) -> None:
        # While a step trains on its shards, `loaders * prefetch` others are being filled. A GPU may still copy from the
        # step's own slots: they are given out again with the next step, before which the loop waits for the losses.
        self._slots = shared_slots(loaders * prefetch + shards_per_step, reader.shape)
        self._x_SBT = self._slots.tensor(pinned=device.type == "cuda")
        multiprocessing.get_context(START).set_forkserver_preload([__name__])  # imports torch once, not N times
        resource_tracker.ensure_running()  # else it is started within, and unblocks the signals
        others = set(multiprocessing.active_children())
        with warnings.catch_warnings(), blocked_signals(SIGNALS):
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # more processes than cores
            data_loader: DataLoader[Any] = DataLoader(
                _LoaderProcess(reader, self._slots),
                batch_size=None,
                collate_fn=_unchanged,
                sampler=_Numbered(requests, self._slots.num_slots),
                num_workers=loaders,
                prefetch_factor=prefetch,
                multiprocessing_context=START,
                worker_init_fn=_begin_process,
                generator=torch.Generator(),  # else it draws a number from torch's global generator
            )
            self._loaded = iter(data_loader)
        self._processes = set(multiprocessing.active_children()) - others

    def load(self, request: ShardRequest) -> Crops:
        """The crops of the next request, which must be this one; what a process raised is raised here.

        Raises LoaderDied where a process has ended.
        """
        try:
            slot, keys, result = next(self._loaded)
        except RuntimeError as error:
            raise LoaderDied(f"{error}; memory may be short: set train.loaders or train.prefetch lower") from None
        if isinstance(result, Exception):
            raise result
        assert keys == request.keys, "shards are asked for in another order than they were requested"
        return Crops(self._x_SBT[slot], result)

    def close(self) -> None:
        """End the processes and release the memory; crops that were loaded are no longer valid."""
        for process in self._processes:
            process.kill()  # DataLoader asks them to end, and terminates those that are busy, by the signal they ignore
        for process in self._processes:
            process.join()
        del self._loaded
        self._slots.close()


def require_memory(train: Train, *, length: int) -> None:
    """Raise ValueError where the shards that `train.loaders` processes hold are more than the memory that is free.

    `length` is that of a crop in samples. Else the kernel would kill a process once the memory is written to.
    """
    if not train.loaders:
        return
    ahead = train.loaders * train.prefetch
    needed, free = (ahead + 1) * train.shard_size * length * np.dtype(np.int16).itemsize, free_memory()
    if needed > free:
        raise ValueError(
            f"train.loaders = {train.loaders}, train.prefetch = {train.prefetch}: the {ahead} shards that are loaded "
            f"ahead take {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB of memory are free; set one of them lower"
        )


class _LoaderProcess(Dataset[Any]):
    """What a loader process holds: the reader and, from its first shard on, the shared memory.

    It gets this process's environment, where a store's credentials are: the server may have been started with another.
    """

    def __init__(self, reader: CropReader, slots: SharedSlots) -> None:
        self._reader, self._slots, self._environment = reader, slots, dict(os.environ)
        self._x_SBT: NDArray[np.int16] | None = None

    def __getitem__(self, item: tuple[int, ShardRequest]) -> tuple[int, tuple[ViewKey, ...], Any]:
        """Load a shard into its slot. An error is returned, since DataLoader would wrap it in a traceback."""
        slot, request = item
        if self._x_SBT is None:
            os.environ.update(self._environment)
            self._x_SBT = self._slots.array()
        try:
            return slot, request.keys, self._reader.read(request, self._x_SBT[slot])
        except Exception as error:
            return slot, request.keys, error


def _begin_process(_: int) -> None:
    """Called first in a loader process: it ends with the process that has started it, by that process's will only."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # if the server was started by others, they are not blocked yet
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()  # DataLoader watches the server, which lives as long as any process that it has forked
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _unchanged(item: Any) -> Any:
    return item


class _Numbered:
    """The requests as DataLoader's sampler, each with the slot for its crops: all slots in turn."""

    def __init__(self, requests: Iterator[ShardRequest], num_slots: int) -> None:
        self._requests, self._num_slots = requests, num_slots

    def __iter__(self) -> Iterator[tuple[int, ShardRequest]]:
        return ((number % self._num_slots, request) for number, request in enumerate(self._requests))
