"""Of which clips a store says what was heard: a sample that depends on their names only, also after a merge.

Does not depend on how it is found out (`workloads/data/view_checksum.py`).
"""

import heapq
from collections.abc import Iterable, Mapping

from workloads.runtime.rng import keyed_seed
from workloads.stores.description import HeardView

SAMPLE = 16


def sampled_views(clip_ids: Iterable[str], views: int) -> dict[str, int]:
    """A view of each of the `SAMPLE` clips whose names have the smallest hashes."""
    sample = heapq.nsmallest(SAMPLE, clip_ids, key=lambda clip_id: keyed_seed("heard", clip_id))
    return {clip_id: keyed_seed("heard in", clip_id) % views for clip_id in sorted(sample)}


def merged_heard(parts: Iterable[Mapping[str, HeardView]]) -> dict[str, HeardView]:
    """What a store of all the clips of these would say: the smallest hashes of all are the smallest of a part too."""
    together = {clip_id: heard for part in parts for clip_id, heard in part.items()}
    return {clip_id: together[clip_id] for clip_id in sampled_views(together, 1)}
