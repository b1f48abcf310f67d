"""The seconds in which the nodes of a cluster get their clips out of the store: requests, bytes, decoding.

Plain files are all fetched and decoded on every node before the first step (`workloads/data/cache.py`): each worker
asks once for the size and date of every file, one worker of a cache folder after the other, and the first of them reads
and decodes what is missing. Of a pack, archives are copied whole when one of their clips is first read
(`workloads/data/archives.py`). Requests, bytes and decoding are added up, though those of several threads may overlap:
an upper bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from cluster.spec_speed import Speed, StorageSpeed
from orchestrator.planning.cost import Cost
from orchestrator.planning.exchange import GBIT
from orchestrator.planning.stores import StoreCost
from orchestrator.storage.object_store import is_local
from workloads.config.data import COMPUTED, Data
from workloads.data.archives import MAX_FETCHES
from workloads.data.cache import DECODE_THREADS
from workloads.data.pack import read_manifest
from workloads.runtime.opener import Opener
from workloads.stores.shard_files import THREADS

ARCHIVE_BYTES = 128 * 10**6  # of a pack's archive that is not looked into: the default of `antiphon data pack`


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the clips come from, as far as time is concerned."""

    clips: int
    num_bytes: int  # of all of them as they are stored
    cache_bytes: float  # of archives that a node keeps
    archives: int = 0  # of a pack; 0: files, or sounds that are generated
    encoded: bool = True  # in a pack: a clip is decoded whenever it is read
    remote: bool = False  # in an object store


@dataclass(frozen=True)
class Fetch:
    """Seconds until every node has its clips."""

    requests: float
    download: float
    decoding: float


def source_of(data: Data, cost: Cost, files: Opener, *, known: bool, clip_kb: float | None) -> Source:
    """Where a recipe's clips come from. Of a pack that is there (`known`) the manifest is read.

    A stored clip has `clip_kb` kB, by default as many as the decoded one.
    """
    parts = cost.clips
    clips, remote = parts.train + parts.val + parts.test, not is_local(data.root)
    size = round(clips * (cost.clip_bytes if clip_kb is None else 1000 * clip_kb))
    cache_bytes = data.cache_gb * 1e9
    if data.format != "packed":
        size = 0 if data.format in COMPUTED else size
        return Source(clips=clips, num_bytes=size, cache_bytes=cache_bytes, remote=remote)
    if not known:
        archives = ceil(size / ARCHIVE_BYTES)
        return Source(clips=clips, num_bytes=size, archives=archives, remote=remote, cache_bytes=cache_bytes)
    manifest, _ = read_manifest(data.root, files)
    return Source(
        clips=clips,
        num_bytes=sum(archive["bytes"] for archive in manifest["archives"]),
        archives=len(manifest["archives"]),
        encoded=manifest["form"] != "int16",
        remote=remote,
        cache_bytes=cache_bytes,
    )


def fetch_seconds(
    source: Source, speed: Speed, storage: StorageSpeed, *, workers: int, nodes: int, shared: bool, clips_read: int
) -> Fetch:
    """Seconds of the whole run in which so many workers on so many nodes get their clips.

    `shared`: all nodes have one cache folder, which is filled once. `clips_read`: by all workers in the whole run.
    """
    caches = 1 if shared else nodes
    if source.archives:
        return _fetch_archives(source, speed, storage, caches=caches, clips_read=clips_read)
    decoding = source.clips * speed.decode_ms / 1000 / DECODE_THREADS
    download = _transfer(source.num_bytes, speed, storage, caches=caches, remote=source.remote)
    if not source.remote:
        return Fetch(requests=0.0, download=download, decoding=decoding)
    total = source.clips * (workers + caches)  # each worker asks for each file's date, each cache reads it
    one_after_the_other = source.clips * (ceil(workers / caches) + 1) / DECODE_THREADS
    return Fetch(_request_seconds(total, one_after_the_other, storage), download, decoding)


def fetch_stores(
    stores: Sequence[StoreCost], speed: Speed, storage: StorageSpeed, *, nodes: int, shared: bool
) -> Fetch:
    """Seconds until every node has the files of stores that lie in an object store: each file once, some at a time."""
    remote, caches = [store for store in stores if store.remote], 1 if shared else nodes
    if not remote:
        return Fetch(0.0, 0.0, 0.0)
    files, size = sum(store.files for store in remote), sum(store.file_bytes for store in remote)
    requests = _request_seconds(files * caches, files / THREADS, storage)
    return Fetch(requests, _transfer(size, speed, storage, caches=caches, remote=True), 0.0)


def _fetch_archives(source: Source, speed: Speed, storage: StorageSpeed, *, caches: int, clips_read: int) -> Fetch:
    """Of a pack in a store: each archive that a node's clips lie in once, and again what its cache cannot keep.

    Clips come in random order, so a clip's archive is missing with the share of the pack that is not kept.
    """
    if not source.remote:
        return Fetch(0.0, 0.0, 0.0)
    reads = clips_read / caches
    missing = max(0.0, 1 - source.cache_bytes / source.num_bytes)
    fetched = min(source.archives, reads) + missing * max(0.0, reads - source.archives)
    download = _transfer(fetched * source.num_bytes / source.archives, speed, storage, caches=caches, remote=True)
    return Fetch(_request_seconds(fetched * caches, fetched / MAX_FETCHES, storage), download, 0.0)


def _request_seconds(total: float, one_after_the_other: float, storage: StorageSpeed) -> float:
    """Seconds for so many requests in all, of which each node has so many one after the other.

    The larger one of what the store's limit allows and of what the nodes wait for answers.
    """
    allowed = total / (storage.requests_per_second * storage.prefixes)
    return max(allowed, one_after_the_other * storage.request_ms / 1000)


def _transfer(num_bytes: float, speed: Speed, storage: StorageSpeed, *, caches: int, remote: bool) -> float:
    """Seconds in which each cache gets so many bytes: over its node's network and the store's, or from a disk."""
    if not remote:
        return num_bytes / (speed.disk_mb_s * 1e6)
    return max(num_bytes / (GBIT * speed.network_gbps), caches * num_bytes / (GBIT * storage.gbps))
