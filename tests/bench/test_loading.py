"""How fast the clips of a shard are loaded: `make bench`. Prints ratios within one run and asserts none."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from workloads.config.architectures import ViT
from workloads.config.data import Data
from workloads.config.recipe import Augment, FrontEnd, Model, Recipe, Train
from workloads.config.schedules import Mutual
from workloads.data.augment import draw_view
from workloads.data.batches import Batches
from workloads.data.cache import ClipCache
from workloads.data.clips import Clip
from workloads.data.clips import Dataset as Clips
from workloads.runtime.opener import LocalFiles

pytestmark = pytest.mark.bench

CLIPS, SHARD, STEPS, ROUNDS = 128, 32, 24, 3
CPU = torch.device("cpu")
AUGMENT = Augment(roll=1.0, gain_db=6.0, mixup=0.5)


class HandedOver(Dataset[torch.Tensor]):
    """The same crops as torch's DataLoader hands them over: each batch in new shared memory."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __getitem__(self, rows: list[int]) -> torch.Tensor:
        return default_collate([torch.from_numpy(np.load(self.files[row])) for row in rows])


@pytest.fixture(scope="module", params=[16_000, 32_000])
def noise(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Clips, ClipCache, Data]:
    """Clips of 10 s, stored decoded."""
    folder, rate = tmp_path_factory.mktemp("noise"), request.param
    clips = tuple(Clip(f"c{n:03}", f"{n}.wav", ("ab"[n % 2],), 1, str(n)) for n in range(CLIPS))
    for n, clip in enumerate(clips):
        soundfile.write(folder / clip.path, np.random.default_rng(n).uniform(-0.3, 0.3, rate * 10), rate)
    data = Data(format="manifest", root=str(folder), manifest="unused.csv", clip_seconds=10.0)
    cache = ClipCache(folder / "cache", rate=rate, limit_gb=5.0)
    cache.prepare(clips, data, LocalFiles())
    return Clips(clips, ("a", "b"), "single"), cache, data


def clips_per_second(shards: Iterator[object]) -> float:
    """Of the shards after the first eight."""
    for _ in range(8):
        next(shards)
    started = time.perf_counter()
    count = sum(1 for _ in shards)
    return count * SHARD / (time.perf_counter() - started)


def test_loading_by_number_of_loaders(noise: tuple[Clips, ClipCache, Data], capsys: pytest.CaptureFixture) -> None:
    dataset, cache, data = noise
    kind = "efficientat128" if cache.rate == 32_000 else "logmel64"
    model = Model(arch=ViT(family="vit"), front_end=FrontEnd(kind=kind))

    def batches(loaders: int) -> Batches:
        train = Train(shard_size=SHARD, threads=1, loaders=loaders)
        schedule = Mutual(kind="mutual", burn_in=0, steps=1)
        recipe = Recipe(name="t", data=data, augment=AUGMENT, models={"m": model}, schedule=schedule, train=train)
        return Batches(dataset.clips, dataset, cache, recipe)

    def ours(loaders: int) -> float:
        ready = batches(loaders)
        with ready.loaded_ahead(range(STEPS), range(1), CPU):
            return clips_per_second(ready.shard(step, 0) for step in range(STEPS))

    def crops_only(loaders: int) -> float:
        """Without what is computed on the device."""
        ready = batches(loaders)
        with ready.loaded_ahead(range(STEPS), range(1), CPU):
            return clips_per_second(ready._loader.load(ready._request(step, 0)[0]) for step in range(STEPS))

    def handed_over(loaders: int) -> float:
        files = [cache.entry(clip.clip_id).target for clip in dataset.clips]
        rows = [[(step * SHARD + row) % CLIPS for row in range(SHARD)] for step in range(STEPS)]
        return clips_per_second(iter(DataLoader(HandedOver(files), batch_size=None, sampler=rows, num_workers=loaders)))

    with (ready := batches(2)).loaded_ahead(range(1), range(1), CPU):
        assert torch.equal(ready.shard(0, 0).x_BT, batches(0).shard(0, 0).x_BT), "the same work"

    ways: dict[str, Callable[[], float]] = {
        "shards, 0 loaders": lambda: ours(0),
        "shards, 1 loader": lambda: ours(1),
        "shards, 2 loaders": lambda: ours(2),
        "crops, 0 loaders": lambda: crops_only(0),
        "crops, 1 loader": lambda: crops_only(1),
        "crops, 2 loaders": lambda: crops_only(2),
        "crops handed over by DataLoader, 1 process": lambda: handed_over(1),
        "crops handed over by DataLoader, 2 processes": lambda: handed_over(2),
    }
    rounds = [{name: measure() for name, measure in ways.items()} for _ in range(ROUNDS)]
    views = time.perf_counter()
    for number in range(1000):
        draw_view(AUGMENT, f"clip{number}", 0)
    views = (time.perf_counter() - views) * 1000
    with capsys.disabled():
        print(f"\nclips of 10 s at {cache.rate} Hz, medians of {ROUNDS}; drawing a view takes {views:.0f} us")
        for name in itertools.chain(ways):
            median = statistics.median(measured[name] for measured in rounds)
            print(f"  {name:45} {median:6.0f} clips/s")
