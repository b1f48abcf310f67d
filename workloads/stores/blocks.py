"""Rows of one column in a bounded amount of memory, the blocks that were read least recently making room.

Axes: B rows that are read.
"""

import numpy as np
from numpy.typing import NDArray

from workloads.stores.shard_files import ShardFiles
from workloads.stores.store import Store

NOWHERE = -1


class Blocks:
    """Gathers rows by clip number and view.

    One view of a shard's clips is a block. Where one view of the whole store fits in `memory_bytes`, blocks are kept,
    and a batch is one gather in memory: an epoch reads one view of every clip, so each block is read once an epoch.
    Where it does not fit, each row is read from its file by itself, since a block would be read for one row.
    """

    def __init__(self, store: Store, column: str, files: ShardFiles, memory_bytes: int) -> None:
        self._files = files
        self._per_shard = store.description["clips"]["per_shard"]
        self._num_shards = len(store.manifest["shards"])
        num_blocks, row_bytes = self._num_shards * store.num_views, store.codec(column).row_bytes
        largest = min(self._per_shard, store.num_clips)  # clips of a block
        slots = min(num_blocks, memory_bytes // (largest * row_bytes))
        self.keeps_blocks = slots >= self._num_shards
        # Of memory that is only reserved, the system gives a page when it is first written.
        self._memory = np.empty((slots if self.keeps_blocks else 0, largest, row_bytes), np.uint8)
        self._slot = np.full(num_blocks, NOWHERE, np.int32)  # of each block
        self._block = np.full(slots, NOWHERE, np.int64)  # in each slot
        self._used = np.zeros(slots, np.int64)  # when each slot was last read, in batches
        self._batches = 0

    def read(self, numbers_B: NDArray[np.int32], views_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The rows of these clips in these views, as bytes (B, row_bytes)."""
        shards_B, places_B = np.divmod(numbers_B, self._per_shard)
        blocks_B = views_B * self._num_shards + shards_B
        if not self.keeps_blocks or not self._load(blocks_B):
            return self._read_singly(shards_B, views_B, places_B)
        slots_B = self._slot[blocks_B]
        self._used[slots_B] = self._batches
        return self._memory[slots_B, places_B]

    def _load(self, blocks_B: NDArray[np.int64]) -> bool:
        """Have these blocks in memory; False where they are more than fit at once."""
        self._batches += 1
        slots_B = self._slot[blocks_B]
        if (slots_B != NOWHERE).all():
            return True
        needed = np.unique(blocks_B)
        if len(needed) > len(self._block):
            return False
        self._used[slots_B[slots_B != NOWHERE]] = self._batches  # what this batch needs must not make room
        for block in needed[self._slot[needed] == NOWHERE].tolist():
            slot = int(self._used.argmin())
            view, shard = divmod(block, self._num_shards)
            rows = self._files.block(shard, view)
            if self._block[slot] != NOWHERE:
                self._slot[self._block[slot]] = NOWHERE
            self._memory[slot, : len(rows)] = rows
            self._slot[block], self._block[slot], self._used[slot] = slot, block, self._batches
        return True

    def _read_singly(
        self, shards_B: NDArray[np.int32], views_B: NDArray[np.int64], places_B: NDArray[np.int32]
    ) -> NDArray[np.uint8]:
        where = zip(shards_B.tolist(), views_B.tolist(), places_B.tolist(), strict=True)
        content = b"".join([self._files.row(*one) for one in where])
        return np.frombuffer(content, np.uint8).reshape(len(shards_B), self._memory.shape[-1])

    def close(self) -> None:
        self._files.close()
