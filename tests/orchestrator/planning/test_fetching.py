"""How long nodes wait for their clips: the formulas, against what the real cache asks for and against simulations."""

import heapq
import random
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from cluster.spec_speed import Speed, StorageSpeed
from orchestrator.planning.cost import Clips, plan_cost
from orchestrator.planning.fetching import Fetch, Source, fetch_seconds, source_of
from tests import packs
from workloads.config.recipe import Recipe
from workloads.data.cache import DECODE_THREADS, ClipCache
from workloads.data.manifest import read_dataset
from workloads.distill.schedule import plan_phases
from workloads.models.size import Size
from workloads.runtime.opener import LocalFiles

FILES = Source(clips=1000, num_bytes=10**8, cache_bytes=1e9, remote=True)
SPEED = Speed(decode_ms=20, network_gbps=8, disk_mb_s=100)  # a GB of network a second
STORAGE = StorageSpeed(requests_per_second=100, prefixes=2, request_ms=1, gbps=16)
ONE = {"workers": 1, "nodes": 1, "shared": False, "clips_read": 10**6}


def fetched(source: Source, speed: Speed = SPEED, storage: StorageSpeed = STORAGE, **changes: Any) -> Fetch:
    return fetch_seconds(source, speed, storage, **ONE | changes)


def test_files_are_asked_for_by_each_worker_and_read_once_a_node() -> None:
    assert fetched(FILES) == Fetch(requests=2000 / 200, download=0.1, decoding=1000 * 0.02 / 2)
    four = fetched(FILES, workers=4, nodes=2)
    assert four == Fetch(requests=1000 * (4 + 2) / 200, download=0.1, decoding=10.0)
    assert fetched(FILES, workers=40, nodes=20).download == 1.0  # 20 times 0.1 GB from a store of 2 GB a second


def test_one_worker_after_the_other_waits_for_answers() -> None:
    patient = replace(STORAGE, request_ms=1000)
    assert fetched(FILES, storage=patient, workers=4, nodes=2).requests == 1000 * (2 + 1) * 1.0 / 2
    assert fetched(FILES, storage=patient, workers=4, nodes=2, shared=True).requests == 1000 * (4 + 1) * 1.0 / 2


def test_a_shared_cache_is_filled_once() -> None:
    shared = fetched(FILES, workers=40, nodes=20, shared=True)
    assert shared == Fetch(requests=1000 * 41 / 200, download=0.1, decoding=10.0)


def test_no_store_no_requests() -> None:
    local = replace(FILES, remote=False)
    assert fetched(local) == Fetch(requests=0.0, download=1.0, decoding=10.0)
    assert fetched(replace(local, archives=3)) == Fetch(0.0, 0.0, 0.0)  # a pack is read where it is


class CountingFiles(LocalFiles):
    """Counts what would be requests to a store."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def open(self, uri: str) -> BinaryIO:
        self.asked["read"] += 1
        return super().open(uri)

    def identity(self, uri: str) -> str:
        self.asked["date"] += 1
        return super().identity(uri)


def test_the_cache_asks_as_often_as_is_planned(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    """Three workers on each of two nodes, with a cache each."""
    recipe = tiny("demo", *packs.write_clips(tmp_path / "set", 12))
    clips, files = read_dataset(recipe.data, LocalFiles()).clips, CountingFiles()
    for node in range(2):
        for _ in range(3):
            cache = ClipCache(tmp_path / f"node-{node}", rate=recipe.rate, limit_gb=1.0)
            assert cache.prepare(clips, recipe.data, files) == []
    source = Source(clips=12, num_bytes=0, cache_bytes=1e9, remote=True)
    one_a_second = StorageSpeed(requests_per_second=1, request_ms=0)
    assert fetched(source, storage=one_a_second, workers=6, nodes=2).requests == sum(files.asked.values())
    assert files.asked == {"date": 72, "read": 24}


def simulated_requests(nodes: int, each: int, storage: StorageSpeed) -> float:
    """Seconds until all nodes, whose threads ask again when they are answered, have been answered so often.

    The store begins one request after the other, at its largest rate, and answers each `request_ms` later.
    """
    left = [each] * nodes
    waiting = [(0.0, node) for node in range(nodes) for _ in range(DECODE_THREADS)]
    heapq.heapify(waiting)
    free, answered = 0.0, 0.0
    while waiting:
        at, node = heapq.heappop(waiting)
        if not left[node]:
            continue
        left[node] -= 1
        free = max(free, at) + 1 / (storage.requests_per_second * storage.prefixes)
        answered = free + storage.request_ms / 1000
        heapq.heappush(waiting, (answered, node))
    return answered


@pytest.mark.parametrize(("nodes", "limited_by"), [(1, "waiting"), (4, "waiting"), (40, "rate"), (100, "rate")])
def test_the_larger_of_two_limits_is_what_a_simulation_of_requests_finds(nodes: int, limited_by: str) -> None:
    storage = StorageSpeed(requests_per_second=500, prefixes=1, request_ms=40)  # 10 nodes of 2 threads are enough
    source = Source(clips=200, num_bytes=0, cache_bytes=1e9, remote=True)
    planned = fetched(source, storage=storage, workers=nodes, nodes=nodes).requests
    assert simulated_requests(nodes, 400, storage) == pytest.approx(planned, rel=0.06)
    assert planned == (200 * 2 * 0.04 / 2 if limited_by == "waiting" else nodes * 400 / 500)


def test_a_pack_is_copied_once_to_each_node_that_keeps_it() -> None:
    pack = replace(FILES, archives=50)
    assert fetched(pack, workers=8, nodes=4) == Fetch(requests=50 * 4 / 200, download=0.2, decoding=0.0)
    assert fetched(pack, workers=8, nodes=4, clips_read=40).download == 0.04  # 10 clips a node: 10 archives
    assert fetched(pack, nodes=4, shared=True).requests == 50 / 200


@pytest.mark.parametrize("kept", [10, 25, 40, 50])
def test_archives_that_are_not_kept_are_copied_again_as_a_simulation_finds(kept: int) -> None:
    """Clips in random order; the archive that was read least recently makes room."""
    reads, archives, generator = 20_000, 50, random.Random(0)
    cache: OrderedDict[int, None] = OrderedDict()
    copied = 0
    for _ in range(reads):
        archive = generator.randrange(archives)
        if archive not in cache:
            copied += 1
            if len(cache) == kept:
                cache.popitem(last=False)
        cache[archive] = None
        cache.move_to_end(archive)
    pack = Source(clips=1000, num_bytes=50 * 10**6, archives=archives, cache_bytes=kept * 1e6, remote=True)
    one_a_second = StorageSpeed(requests_per_second=1, request_ms=0)
    assert fetched(pack, storage=one_a_second, clips_read=reads).requests == pytest.approx(copied, rel=0.03)


def test_where_clips_come_from_is_read_from_recipe_and_pack(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    own = packs.write_clips(tmp_path / "set")
    recipe = tiny("demo", *own, "edges=[]")
    cost = plan_cost(
        recipe,
        plan_phases(recipe),
        Clips(train=40, tags=3, val=8, test=12),
        dict.fromkeys(("cnn", "vit"), Size(1, 1, 1, 1)),
    )
    plain = source_of(recipe.data, cost, LocalFiles(), known=True, clip_kb=None)
    assert plain == Source(clips=60, num_bytes=60 * (128 + 2 * 16_000), cache_bytes=20e9)
    assert source_of(recipe.data, cost, LocalFiles(), known=True, clip_kb=2.5).num_bytes == 150_000
    remote = replace(recipe.data, root="s3://bucket/set")
    assert source_of(remote, cost, LocalFiles(), known=False, clip_kb=None).remote
    for form in ("flac", "int16"):
        manifest = packs.pack_as(recipe, str(tmp_path / form), form)  # type: ignore[arg-type]
        packed = replace(recipe.data, format="packed", manifest="", root=str(tmp_path / form))
        found = source_of(packed, cost, LocalFiles(), known=True, clip_kb=None)
        assert (found.archives, found.encoded) == (len(manifest["archives"]), form == "flac")
        assert found.num_bytes == sum(archive["bytes"] for archive in manifest["archives"])
    unseen = replace(recipe.data, format="packed", root="s3://bucket/pack")
    found = source_of(unseen, cost, LocalFiles(), known=False, clip_kb=5000)
    assert (found.archives, found.encoded, found.remote) == (3, True, True)  # 300 MB in archives of 128
