"""Unpacked rows of one column in a bounded amount of memory, whole views at a time.

Axes: B rows that are read.
"""

import numpy as np
from numpy.typing import NDArray

from workloads.stores.shard_files import ShardFiles
from workloads.stores.store import Store

NOWHERE = -1


def num_planes(views: int, view_bytes: int, memory_bytes: int) -> int:
    """How many of so many views, of so many bytes each, are kept in memory; 0: rows are read one by one."""
    return min(views, memory_bytes // view_bytes)


class RowMemory:
    """Gathers rows by clip number and view.

    A plane has room for one view of every clip; its shards are loaded when their first row is asked for. As many planes
    as fit in `memory_bytes` are kept, and the least recently read one makes room: an epoch reads one view of each clip.
    Where not even one fits, each row is read from its file by itself, since what is kept would rarely be asked for.
    """

    def __init__(self, store: Store, column: str, files: ShardFiles, memory_bytes: int) -> None:
        self._files = files
        self._clips, self._per_shard = store.num_clips, store.description["clips"]["per_shard"]
        self._codec = store.codec(column)
        size = self._codec.unpacked_bytes
        planes = num_planes(store.num_views, self._clips * size, memory_bytes)
        # Of memory that is only reserved, the system gives a page when it is first written. A row is one element, since
        # numpy copies single elements faster than rows of an array.
        self._rows = np.empty(planes * self._clips, f"V{size}")
        self._loaded = np.zeros((planes, len(store.manifest["shards"])), bool)
        self._is_full = [False] * planes
        self._plane_of: dict[int, int] = {}  # by view, the most recently read one last
        self._free = list(range(planes))

    @property
    def num_planes(self) -> int:
        return len(self._loaded)

    def read(self, numbers_B: NDArray[np.int32], view: int) -> NDArray[np.uint8]:
        """The rows of these clips in this view, bytes_BY."""
        if not self.num_planes:
            return self._read_singly(numbers_B, view)
        plane = self._plane(view)
        if not self._is_full[plane]:
            self._load(numbers_B, view, plane)
        rows = self._rows[plane * self._clips : (plane + 1) * self._clips]
        return rows.take(numbers_B).view(np.uint8).reshape(-1, self._codec.unpacked_bytes)

    def _plane(self, view: int) -> int:
        """The plane of this view; a new one, or that of the view that was not read for longest, where it has none."""
        plane = self._plane_of.pop(view, NOWHERE)
        if plane == NOWHERE:
            plane = self._free.pop() if self._free else self._plane_of.pop(next(iter(self._plane_of)))
            self._loaded[plane] = self._is_full[plane] = False
        self._plane_of[view] = plane
        return plane

    def _load(self, numbers_B: NDArray[np.int32], view: int, plane: int) -> None:
        """Read those shards of these clips that the plane does not have yet."""
        shards = np.unique(numbers_B // self._per_shard)
        new = shards[~self._loaded[plane, shards]].tolist()
        self._files.prepare(new)
        for shard in new:
            rows = self._codec.unpack(self._files.block(shard, view)).view(self._rows.dtype)[:, 0]
            start = plane * self._clips + shard * self._per_shard
            self._rows[start : start + len(rows)] = rows
            self._loaded[plane, shard] = True
        self._is_full[plane] = bool(self._loaded[plane].all())

    def _read_singly(self, numbers_B: NDArray[np.int32], view: int) -> NDArray[np.uint8]:
        places = [divmod(number, self._per_shard) for number in numbers_B.tolist()]
        self._files.prepare({shard for shard, _ in places})
        content = b"".join([self._files.row(shard, view, place) for shard, place in places])
        return self._codec.unpack(np.frombuffer(content, np.uint8).reshape(len(places), self._codec.row_bytes))

    def close(self) -> None:
        self._files.close()
