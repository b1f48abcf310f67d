"""Stores of the same teachers, tags and views, and of different clips, as one. The result has the bytes that it would
have if it had been made at once.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.stores.damage import read_whole_shard
from orchestrator.stores.writer import PATIENCE_S, begin_store, finish_store, put_shard, unwritten
from workloads.runtime.text import name_some
from workloads.stores.checksum_sample import merged_checksums
from workloads.stores.description import DRAWN_ELSEWHERE, OF_CLIPS, Manifest, require_compatible
from workloads.stores.plan import ShardPlan
from workloads.stores.store import Store, open_store


def merge_stores(
    uris: Sequence[str],
    out: str,
    *,
    patience_s: float = PATIENCE_S,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Write a new store with all clips of these, in shards as large as those of the first; resumed where it was killed.

    Raises ValueError with the first difference of their descriptions, and for clips that two of them hold; DamagedStore
    for a shard that is damaged.
    """
    stores = [open_store(uri, FsspecFiles()) for uri in uris]
    about: Any = {key: value for key, value in stores[0].description.items() if key not in OF_CLIPS}
    for store in stores[1:]:
        other = {key: value for key, value in store.description.items() if key not in OF_CLIPS}
        require_compatible(other, about, store.uri, exactly=True)
    if about["views"]["augment"].get("mixup") and about["views"]["version"] != DRAWN_ELSEWHERE:
        raise ValueError(
            f"store {stores[0].uri!r}: its rows are of mixtures, whose partners follow from the list of all its clips; "
            "make one store of all clips instead"
        )
    sources = [_Source(store) for store in stores]
    _require_disjoint(sources)
    if checksums := merged_checksums(store.description.get("heard", {}) for store in stores):
        about["heard"] = checksums
    of_shards = [entry.get("checksums", {}) for store in stores for entry in store.manifest["shards"]]
    of_clips = {clip_id: checksum for shard in of_shards for clip_id, checksum in shard.items()}
    ids = [clip_id for source in sources for clip_id in source.clip_ids]
    per_shard = stores[0].description["clips"]["per_shard"]
    description, plan = begin_store(out, about, ids, clips_per_shard=per_shard, patience_s=patience_s)
    waiting = unwritten(out, description, plan, patience_s=patience_s)
    for done, shard in enumerate(waiting, 1 + len(plan) - len(waiting)):
        files = {name: codec.file(_collect(sources, name, shard)) for name, codec in stores[0].codecs.items()}
        own = {clip_id: of_clips[clip_id] for clip_id in shard.clip_ids if clip_id in of_clips}
        put_shard(out, shard, files, own, patience_s=patience_s)
        on_shard(done, len(plan))
    return finish_store(out, description, plan, patience_s=patience_s)


class _Source:
    """A store that is read from its first clip to its last; one shard of each column is in memory."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.clip_ids = [clip_id for shard in store.shards() for clip_id in shard.clip_ids]
        self._last: dict[str, tuple[int, NDArray[np.uint8]]] = {}

    def rows(self, column: str, start: int, stop: int) -> NDArray[np.uint8]:
        """The rows of clips `start` up to `stop`, as bytes (views, clips, row_bytes)."""
        size = self.store.description["clips"]["per_shard"]
        parts = [
            self._shard(column, number)[:, max(0, start - number * size) : stop - number * size]
            for number in range(start // size, -(-stop // size))
        ]
        return np.concatenate(parts, axis=1)

    def _shard(self, column: str, number: int) -> NDArray[np.uint8]:
        if self._last.get(column, (-1,))[0] != number:
            self._last[column] = number, read_whole_shard(self.store, column, number)
        return self._last[column][1]


def _collect(sources: Sequence[_Source], column: str, shard: ShardPlan) -> NDArray[np.uint8]:
    """The rows of a new shard: of each store those from the shard's first clip to its last, put in order."""
    ids, parts = list[str](), list[NDArray[np.uint8]]()
    for source in sources:
        start = bisect_left(source.clip_ids, shard.clip_ids[0])
        stop = bisect_right(source.clip_ids, shard.clip_ids[-1])
        if start < stop:
            ids += source.clip_ids[start:stop]
            parts.append(source.rows(column, start, stop))
    order = sorted(range(len(ids)), key=ids.__getitem__)
    assert tuple(ids[place] for place in order) == shard.clip_ids, "a shard holds all clips between its ends"
    return np.concatenate(parts, axis=1)[:, order]


def _require_disjoint(sources: Sequence[_Source]) -> None:
    holder: dict[str, str] = {}
    twice = list[str]()
    for source in sources:
        twice += [
            f"{clip_id} ({holder[clip_id]} and {source.store.uri})" for clip_id in source.clip_ids if clip_id in holder
        ]
        holder.update(dict.fromkeys(source.clip_ids, source.store.uri))
    if twice:
        raise ValueError(
            f"{len(twice)} clips are in two stores: {name_some(twice, 3)}; merge stores of different clips"
        )
