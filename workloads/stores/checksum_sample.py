"""Of which clips a store has checksums of their waveforms: samples that depend on names only, also after a merge.

Two samples: some clips of the whole store, so that a small one has enough; and a share of all clips, shard by shard, so
that a student of few clips of a large store has some of them too. Does not depend on how a checksum is computed
(`workloads/data/view_checksum.py`).
"""

import heapq
from collections.abc import Iterable, Mapping

from workloads.runtime.rng import keyed_seed
from workloads.stores.description import ViewChecksum
from workloads.stores.plan import ShardPlan

SAMPLE = 16  # clips of the whole store
SHARE = 512  # of all clips one in so many: one for each shard of the default size
SHARE_BELOW = 2**63 // SHARE  # `keyed_seed` has 63 bits


def sampled_views(clip_ids: Iterable[str], views: int) -> dict[str, int]:
    """A view of each of the `SAMPLE` clips whose names have the smallest hashes."""
    return {clip_id: _view(clip_id, views) for clip_id in sorted(heapq.nsmallest(SAMPLE, clip_ids, key=_hash))}


def sampled_in_shard(shard: ShardPlan) -> dict[str, int]:
    """A view of each clip of a shard whose name has a hash among the smallest 1/`SHARE` of all hashes; often none."""
    return {clip_id: _view(clip_id, shard.views) for clip_id in shard.clip_ids if _hash(clip_id) < SHARE_BELOW}


def merged_checksums(parts: Iterable[Mapping[str, ViewChecksum]]) -> dict[str, ViewChecksum]:
    """What a store of all the clips of these would say: the smallest hashes of all are the smallest of a part too."""
    together = {clip_id: checksum for part in parts for clip_id, checksum in part.items()}
    return {clip_id: together[clip_id] for clip_id in sampled_views(together, 1)}


def _hash(clip_id: str) -> int:
    return keyed_seed("heard", clip_id)


def _view(clip_id: str, views: int) -> int:
    return keyed_seed("heard in", clip_id) % views
