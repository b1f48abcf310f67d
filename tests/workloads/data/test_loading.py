"""Loader processes: the same shards for any number of them, errors with their reason, and none is left behind."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import torch

from tests.processes import title
from workloads.config.architectures import ViT
from workloads.config.data import Data
from workloads.config.recipe import Augment, FrontEnd, Model, Recipe, Train
from workloads.config.schedules import Mutual
from workloads.data import loading
from workloads.data.batches import Batches
from workloads.data.cache import ClipCache
from workloads.data.clips import Clip, Dataset
from workloads.data.loading import LoaderDied
from workloads.data.shard import Shard
from workloads.data.shared_slots import TorchMemory
from workloads.runtime.opener import LocalFiles

STEPS = range(3, 40)
SHARDS = range(2)
CPU = torch.device("cpu")
AUGMENT = Augment(roll=0.5, gain_db=6.0, mask_time=0.3, mask_mel=0.3, mixup=0.5)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, ClipCache, Data]:
    """Sixty clips of noise, from a quarter to twice as long as the window."""
    folder = tmp_path_factory.mktemp("noise")
    data = Data(format="manifest", root=str(folder), manifest="unused.csv", clip_seconds=0.1, sampling="balanced")
    clips = tuple(Clip(f"c{n:02}", f"{n}.wav", ("rare" if n < 6 else "common",), 1, str(n)) for n in range(60))
    random = np.random.default_rng(0)
    for n, clip in enumerate(clips):
        soundfile.write(folder / clip.path, random.uniform(-0.5, 0.5, 400 + n * 48), 16_000)
    cache = ClipCache(folder / "cache", rate=16_000, limit_gb=1.0)
    assert cache.prepare(clips, data, LocalFiles()) == []
    return Dataset(clips, ("common", "rare"), "single"), cache, data


@pytest.fixture
def build(noise: tuple[Dataset, ClipCache, Data]) -> Callable[..., Batches]:
    dataset, cache, data = noise

    def build_batches(**settings: int) -> Batches:
        model = Model(arch=ViT(family="vit"), front_end=FrontEnd(kind="logmel64"))
        train = Train(shard_size=8, shards=len(SHARDS), **settings)
        schedule = Mutual(kind="mutual", burn_in=0, steps=1)
        recipe = Recipe(name="t", data=data, augment=AUGMENT, models={"vit": model}, schedule=schedule, train=train)
        return Batches(dataset.clips, dataset, cache, recipe)

    return build_batches


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert loader_processes() == []


def loader_processes() -> list[psutil.Process]:
    """The processes of the server that forks them, which ends with this one."""
    descendants = psutil.Process().children(recursive=True)
    servers = [process for process in descendants if "forkserver" in title(process)]
    return [process for server in servers for process in server.children()]


def all_shards(batches: Batches) -> list[Shard]:
    with batches.loaded_ahead(STEPS, SHARDS, CPU):
        return [batches.shard(step, index, with_clean_view=True) for step in STEPS for index in SHARDS]


def test_shards_are_the_same_bit_for_bit_for_any_number_of_loaders(build: Callable[..., Batches]) -> None:
    expected = all_shards(build())
    assert {shard.keys[0].view for shard in expected} == set(range(1, 14)), "over several epochs"
    for settings in ({"loaders": 1, "prefetch": 1}, {"loaders": 3}):
        for shard, other in zip(all_shards(build(**settings)), expected, strict=True):
            assert shard.keys == other.keys
            for one, two in ((shard, other), (shard.clean(), other.clean())):
                assert torch.equal(one.x_BT, two.x_BT)
                assert torch.equal(one.y_BC, two.y_BC)
                assert torch.equal(one.masks_B4, two.masks_B4)
                assert torch.equal(one.sound_B2, two.sound_B2)
                assert torch.equal(one.mixture.weight_B, two.mixture.weight_B)
    batches = build(loaders=2)
    with batches.loaded_ahead(STEPS, range(1, 2), CPU):  # the second of two workers
        for step, other in zip(STEPS, expected[1::2], strict=True):
            assert torch.equal(batches.shard(step, 1).x_BT, other.x_BT)


def test_shards_are_the_same_in_the_shared_memory_of_other_systems(
    build: Callable[..., Batches], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "shared_slots", TorchMemory)
    for shard, other in zip(all_shards(build(loaders=2)), all_shards(build()), strict=True):
        assert shard.keys == other.keys
        assert torch.equal(shard.x_BT, other.x_BT)


def test_memory_that_is_too_small_is_said_before_a_process_starts(
    build: Callable[..., Batches], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "free_memory", lambda: 1_000_000)
    build(loaders=19)  # 39 shards of 8 crops of 1600 samples of 2 bytes
    with pytest.raises(
        ValueError, match=r"train.loaders = 20, train.prefetch = 2: the 40 shards .* take 0.00105 GB, and"
    ):
        build(loaders=20)


def test_processes_end_where_training_stops_early(build: Callable[..., Batches]) -> None:
    batches = build(loaders=2)

    def interrupted() -> None:
        with batches.loaded_ahead(STEPS, SHARDS, CPU):
            batches.shard(STEPS[0], 0)
            assert len(loader_processes()) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert loader_processes() == []
    assert batches.shard(0, 0).keys == build().shard(0, 0).keys, "any shard can be loaded in this thread again"


def test_a_loader_that_is_killed_is_an_error_that_names_it(build: Callable[..., Batches]) -> None:
    batches, killed = build(loaders=1), []

    def with_a_kill() -> None:
        with batches.loaded_ahead(STEPS, SHARDS, CPU):
            for step in STEPS:
                for index in SHARDS:
                    batches.shard(step, index)
                    if not killed:
                        killed.extend(loader_processes())
                        killed[0].kill()

    with pytest.raises(LoaderDied, match=r"train\.loaders") as died:
        with_a_kill()
    assert str(killed[0].pid) in str(died.value)


def test_loaders_go_on_where_the_whole_process_group_is_asked_to_stop(build: Callable[..., Batches]) -> None:
    batches = build(loaders=2)
    with batches.loaded_ahead(STEPS, SHARDS, CPU):
        for step in STEPS:
            for index in SHARDS:
                batches.shard(step, index)
                for loader in loader_processes() if step == STEPS[1] else ():  # each has loaded by then
                    loader.send_signal(signal.SIGINT)
                    loader.send_signal(signal.SIGTERM)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set(), "this process still gets its own"


def test_a_loader_that_is_busy_is_not_left_behind(
    build: Callable[..., Batches], noise: tuple[Dataset, ClipCache, Data]
) -> None:
    dataset, cache, _ = noise
    with cache._lock():  # as another run does while it decodes
        for clip in dataset.clips:
            cache.entry(clip.clip_id).target.unlink()
        with build(loaders=2).loaded_ahead(STEPS, SHARDS, CPU):
            assert len(loader_processes()) == 2
        assert loader_processes() == []


def test_a_clip_that_is_lost_is_decoded_again_or_named(
    build: Callable[..., Batches], noise: tuple[Dataset, ClipCache, Data]
) -> None:
    dataset, cache, data = noise
    expected = all_shards(build())
    for number, clip in enumerate(dataset.clips):
        target = cache.entry(clip.clip_id).target
        target.unlink() if number % 2 else target.write_bytes(target.read_bytes()[:-7])
    for shard, other in zip(all_shards(build(loaders=2)), expected, strict=True):
        assert torch.equal(shard.x_BT, other.x_BT)
    lost = dataset.clips[-1]
    content = (path := Path(data.root) / lost.path).read_bytes()
    path.unlink()
    cache.entry(lost.clip_id).target.unlink()
    for settings in ({}, {"loaders": 1}):
        with pytest.raises(OSError, match=f"{lost.clip_id} is gone from data.cache.*not found"):
            all_shards(build(**settings))
    path.write_bytes(content)


def test_no_loader_outlives_a_training_process_that_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, child_ready = context.Pipe()
    training = context.Process(target=train_until_killed, args=(str(tmp_path), child_ready))
    training.start()
    assert ready.poll(120)
    loaders = [psutil.Process(pid) for pid in ready.recv()]
    assert len(loaders) == 2
    os.kill(training.pid, signal.SIGKILL)
    training.join()
    _, alive = psutil.wait_procs(loaders, timeout=60)
    assert alive == []


def train_until_killed(folder: str, ready: "multiprocessing.connection.Connection") -> None:
    """Loads the first of many shards, says which processes load, and waits."""
    clips = tuple(Clip(f"c{n}", f"{n}.wav", ("a",), 1, str(n)) for n in range(8))
    for clip in clips:
        soundfile.write(Path(folder) / clip.path, np.zeros(1600), 16_000)
    data = Data(format="manifest", root=folder, manifest="unused.csv", clip_seconds=0.1)
    cache = ClipCache(Path(folder) / "cache", rate=16_000, limit_gb=1.0)
    cache.prepare(clips, data, LocalFiles())
    model = Model(arch=ViT(family="vit"), front_end=FrontEnd(kind="logmel64"))
    recipe = Recipe(
        name="t",
        data=data,
        models={"vit": model},
        schedule=Mutual(kind="mutual", burn_in=0, steps=1),
        train=Train(shard_size=8, loaders=2),
    )
    batches = Batches(clips, Dataset(clips, ("a",), "single"), cache, recipe)
    with batches.loaded_ahead(range(1000), range(1), CPU):
        batches.shard(0, 0)
        ready.send([process.pid for process in loader_processes()])
        signal.pause()
