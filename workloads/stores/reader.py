"""Random reads from a store: rows of clips and views, in any order, in a bounded amount of memory.

Axes: B rows that are read, C values of a whole row, J kept tags of a row, F frames.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workloads.runtime.opener import Opener
from workloads.runtime.text import name_some
from workloads.stores.index import ClipIndex
from workloads.stores.row_memory import RowMemory
from workloads.stores.shard_files import ShardFiles
from workloads.stores.store import open_store

MEMORY_BYTES = 256 * 2**20  # of a column: one view of three million clips with 20 tags each


class NotStored(ValueError):
    """Clips without rows were asked for."""

    def __init__(self, uri: str, clip_ids: Sequence[str]) -> None:
        self._uri, self.clip_ids = uri, tuple(clip_ids)
        super().__init__(
            f"store {uri!r}: holds no rows of {len(clip_ids)} clips: {name_some(clip_ids)}; make a store that does, or "
            "leave these clips out"
        )

    def __reduce__(self) -> tuple[type["NotStored"], tuple[str, tuple[str, ...]]]:
        return NotStored, (self._uri, self.clip_ids)  # it crosses processes


class Rows(NamedTuple):
    """Rows as they were stored, in the order in which they were asked for."""

    values: NDArray[np.float16]  # dense: values_BC, of frames values_BCF; top k: J instead of C; NaN where is no row
    tags: NDArray[np.int64] | None  # top k: tags_BJ, ascending, whose values these are; dense: None
    known: NDArray[np.bool_]  # whether there is a row


class StoreReader:
    """Reads from one store in one thread; `close` it.

    `clip_ids` are the clips that will be asked for; None: those of the store. `missing` are those of them that it does
    not hold. `copies` is a folder for copies of shards that are not on this machine; it grows up to the size of the
    store and may be shared.
    """

    def __init__(
        self,
        uri: str,
        opener: Opener,
        *,
        copies: Path,
        clip_ids: Sequence[str] | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        """Raises ValueError where there is no finished store; nothing but its two JSON files and names is read yet."""
        self.store = open_store(uri, opener)
        self._index = ClipIndex(self.store.clip_ids(), clip_ids)
        self._copies, self._memory_bytes = copies, memory_bytes
        self._columns: dict[str, RowMemory] = {}

    @property
    def missing(self) -> tuple[str, ...]:
        return self._index.missing

    def read(
        self,
        column: str,
        clip_ids: Sequence[str],
        views: int | Sequence[int],
        *,
        missing: Literal["refuse", "mark"] = "refuse",
    ) -> Rows:
        """The rows of a column for these clips, each in its view or all in the same.

        Clips without rows raise NotStored, or with `mark` have `known` False and NaN for values. ValueError for a view
        or a column that the store does not have, and for a damaged shard, when it is first read.
        """
        codec = self.store.codec(column)
        numbers, known = self._index.find(clip_ids)
        if np.count_nonzero(known) == len(known):
            values, tags = codec.values(self._gather(column, numbers, views))
            return Rows(values, tags, known)
        if missing == "refuse":
            raise NotStored(self.store.uri, [clip_ids[place] for place in np.flatnonzero(~known).tolist()])
        there = views if isinstance(views, int) else [views[place] for place in np.flatnonzero(known).tolist()]
        some, some_tags = codec.values(self._gather(column, numbers[known], there))
        values = np.full((len(numbers), *some.shape[1:]), np.nan, np.float16)
        values[known] = some
        if some_tags is None:
            return Rows(values, None, known)
        tags = np.zeros((len(numbers), *some_tags.shape[1:]), np.int64)
        tags[known] = some_tags
        return Rows(values, tags, known)

    def _gather(self, column: str, numbers_B: NDArray[np.int32], views: int | Sequence[int]) -> NDArray[np.uint8]:
        """The unpacked rows of clips by their numbers, bytes_BY."""
        memory = self._memory(column)
        if isinstance(views, int):
            self._require_view(views)
            return memory.read(numbers_B, views)
        assert len(views) == len(numbers_B), "a view for each clip, or one for all"
        view_B = np.array(views, np.int64)
        rows_BY = np.empty((len(numbers_B), self.store.codec(column).unpacked_bytes), np.uint8)
        for view in sorted(set(views)):
            self._require_view(view)
            rows_BY[view_B == view] = memory.read(numbers_B[view_B == view], view)
        return rows_BY

    def _require_view(self, view: int) -> None:
        if not 0 <= view < self.store.num_views:
            raise ValueError(f"store {self.store.uri!r}: view {view}: its views are 0 to {self.store.num_views - 1}")

    def _memory(self, column: str) -> RowMemory:
        if column not in self._columns:
            files = ShardFiles(self.store, column, self._copies)
            self._columns[column] = RowMemory(self.store, column, files, self._memory_bytes)
        return self._columns[column]

    def close(self) -> None:
        for memory in self._columns.values():
            memory.close()
