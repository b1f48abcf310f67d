"""The clips that teachers hear: all of a data set, plain or packed, their partners, and checksums of some."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.storage.fsspec_files import FsspecFiles
from workloads.config.data import Data
from workloads.config.teach import TeachRecipe
from workloads.data.augment import draw_partner
from workloads.data.cache import ClipCache, QuarantinedClip
from workloads.data.clip_store import ClipStore, Entry, damaged_clip
from workloads.data.clips import Clip, Dataset
from workloads.data.decode import BrokenClip
from workloads.data.manifest import read_dataset
from workloads.data.packed_clips import open_pack
from workloads.data.quarantine import check_quarantined_share
from workloads.data.view_checksum import view_sha256
from workloads.runtime.text import name_some
from workloads.stores.checksum_sample import sampled_views
from workloads.stores.description import ViewChecksum
from workloads.stores.plan import ShardPlan
from workloads.teaching.ensemble import Partners, require_different_views


@dataclass(frozen=True)
class TaughtClips:
    """All clips of a data set that can be heard, decoded into the cache or in a pack, and those that cannot."""

    store: ClipStore
    clip_ids: tuple[str, ...]
    quarantined: tuple[QuarantinedClip, ...]
    warnings: tuple[str, ...]  # of the metadata's reader

    def entries(self, shard: ShardPlan) -> tuple[Entry, ...]:
        return tuple(self.store.entry(clip_id) for clip_id in shard.clip_ids)

    def partners(self, recipe: TeachRecipe, shard: ShardPlan) -> Partners | None:
        """The clips with which those of a shard are mixed, which other shards may hold; None where none is."""
        names = partner_names(recipe, self.clip_ids, shard.clip_ids)
        return {key: self.store.entry(name) for key, name in names.items()} if names else None


def partner_names(recipe: TeachRecipe, store_ids: Sequence[str], clip_ids: Sequence[str]) -> dict[tuple[str, int], str]:
    """By clip and view the clip of the store, whose clips are given in order, with which it is mixed; empty without
    mixup."""
    if not recipe.augment.mixup:
        return {}
    clips = len(store_ids)
    if clips < 2:
        raise ValueError(
            f"augment.mixup = {recipe.augment.mixup}: needs two clips to mix, there is {clips}; set it to 0"
        )
    return {
        (clip_id, view): store_ids[draw_partner(recipe.augment, clip_id, view, place=place, clips=clips)]
        for clip_id, place in ((clip_id, bisect_left(store_ids, clip_id)) for clip_id in clip_ids)
        for view in range(recipe.teach.views)
    }


def read_clips(recipe: TeachRecipe) -> Dataset:
    """The clips of the recipe's data; ValueError for metadata that cannot be read."""
    return read_dataset(recipe.data, FsspecFiles(), tags_needed="never")


def open_clips(
    dataset: Dataset, clips: Sequence[Clip], data: Data, *, rate: int
) -> tuple[ClipStore, tuple[QuarantinedClip, ...]]:
    """Some clips of a data set at a rate in Hz, decoded into the cache or in the pack, and those that cannot be heard.

    Of a packed data set these are the clips that were left out of the pack. ValueError where its sound has another
    rate.
    """
    files = FsspecFiles()
    if dataset.packed:
        pack = open_pack(dataset.packed, data, files, rate=rate)
        pack.require_decoder(clips)
        return pack, tuple(QuarantinedClip(**fields) for fields in dataset.packed.manifest["quarantined"])
    cache = ClipCache(Path(data.cache).expanduser(), rate=rate, limit_gb=data.cache_gb)
    return cache, tuple(cache.prepare(clips, data, files))


def prepare_clips(recipe: TeachRecipe, rate: int) -> TaughtClips:
    """Every clip of the recipe's data, of whatever fold, labelled or not, at that rate.

    Raises ValueError for metadata that cannot be read, for too many clips that cannot be heard, and where all views of
    the clips are equal.
    """
    data, dataset = recipe.data, read_clips(recipe)
    store, quarantined = open_clips(dataset, dataset.clips, data, rate=rate)
    if not dataset.packed:
        check_quarantined_share(quarantined, len(dataset.clips), data, FsspecFiles())
    unusable = {clip.clip_id for clip in quarantined}
    require_different_views(recipe, [clip.seconds for clip in store.decoded().values()])
    clip_ids = tuple(clip.clip_id for clip in dataset.clips if clip.clip_id not in unusable)
    return TaughtClips(store, clip_ids, quarantined, dataset.warnings)


def sample_checksums(recipe: TeachRecipe, clips: TaughtClips) -> dict[str, ViewChecksum]:
    """Checksums of the waveforms of some clips of the whole store, by clip_id; raises as `view_checksums`."""
    sample = sampled_views(clips.clip_ids, recipe.teach.views)
    entries = {clip_id: clips.store.entry(clip_id) for clip_id in sample}
    names = partner_names(recipe, clips.clip_ids, list(sample))
    partners = {key: clips.store.entry(name) for key, name in names.items()}
    return view_checksums(recipe, clips.store, sample, entries, partners)


def view_checksums(
    recipe: TeachRecipe,
    store: ClipStore,
    sample: Mapping[str, int],
    entries: Mapping[str, Entry],
    partners: Partners | None,
) -> dict[str, ViewChecksum]:
    """The checksum of each of these clips in its view, with which a student compares its own waveform.

    `sample` is a view by clip_id, `entries` says where the clips are. ValueError for a clip of a pack that is damaged.
    """
    checksums, seconds = dict[str, ViewChecksum](), recipe.data.clip_seconds
    for clip_id, view in sample.items():
        partner = partners[clip_id, view] if partners else None
        clip = entries[clip_id]
        try:
            sha256 = view_sha256(store, recipe.augment, clip, view, clip_seconds=seconds, partner=partner)
        except BrokenClip as error:
            raise damaged_clip(clip_id, error) from None
        checksums[clip_id] = ViewChecksum(view=view, sha256=sha256)
    return checksums


def entries_on_this_node(store: ClipStore, clips: Sequence[Any], data: Data) -> dict[str, Any]:
    """The entries of these clips on this machine, by clip_id.

    Of a cache those that were decoded on another node, or evicted since, are decoded again; ValueError where one cannot
    be.
    """
    entries = {clip.clip_id: clip for clip in clips}
    if not isinstance(store, ClipCache) or all(clip.target.exists() for clip in clips):
        return entries
    if broken := store.prepare([clip.clip for clip in entries.values()], data, FsspecFiles()):
        names = name_some([f"{clip.clip_id} ({clip.reason})" for clip in broken], 3)
        raise ValueError(
            f"clips that can be heard on the driver's machine and not on this worker's: {names}; give data.root as "
            "a folder that all nodes share, or s3://bucket/prefix"
        )
    return {clip_id: store.entry(clip_id) for clip_id in entries}
