"""Time to the first step of a run on packed clips, and what it reads from a store: `make bench`. Asserts no times."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import soundfile
import torch
from s3fs import S3FileSystem

from orchestrator.recipes.loader import load_recipe
from orchestrator.storage.fsspec_files import FsspecFiles
from tests.packs import pack_as
from tests.proxy import Proxy
from tests.servers import S3Server
from workloads.config.recipe import Recipe
from workloads.data import archives
from workloads.data.batches import Batches
from workloads.data.prepare import prepare
from workloads.runtime.opener import LocalFiles, Opener

pytestmark = pytest.mark.bench

CLIPS, SECONDS = 10_000, 0.2


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Ten thousand tiny files."""
    folder, random = tmp_path_factory.mktemp("plain"), np.random.default_rng(0)
    rows = ["clip_id,path,tags,fold"]
    for number in range(CLIPS):
        soundfile.write(folder / f"{number}.wav", random.uniform(-0.3, 0.3, int(16_000 * SECONDS)), 16_000)
        rows.append(f"c{number:05},{number}.wav,{'ab'[number % 2]},{1 + number % 5}")
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    # with one tag a clip, stratifying the validation slice takes most of the time, packed or not
    settings = {"format": "manifest", "manifest": folder / "clips.csv", "root": folder, "labels": "multi"}
    settings |= {"clip_seconds": SECONDS, "cache": folder / "cache"}
    return load_recipe("demo", [f"data.{key}={value}" for key, value in settings.items()])


def packed(plain: Recipe, root: str, cache: Path) -> Recipe:
    data = replace(plain.data, format="packed", root=root, manifest="", cache=str(cache))
    return replace(plain, data=data)


def first_step(recipe: Recipe, files: Opener) -> tuple[float, Batches]:
    """Seconds from reading the metadata to the crops of the first batch."""
    started = time.perf_counter()
    prepared = prepare(recipe, files)
    batches = Batches(prepared.splits.train, prepared.dataset, prepared.cache, recipe)
    batches.shard(0, 0)
    return time.perf_counter() - started, batches


def test_the_first_step(plain: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ways: dict[str, Callable[[], float]] = {
        "plain files, nothing decoded yet": lambda: first_step(plain, LocalFiles())[0],
        "plain files, all in the cache": lambda: first_step(plain, LocalFiles())[0],
    }
    for form in ("original", "flac", "int16"):
        root = str(tmp_path / form)
        pack_as(plain, root, form, archive_mb=8)
        ways[f"packed, {form}"] = lambda root=root: first_step(packed(plain, root, tmp_path), LocalFiles())[0]
    seconds = {name: measure() for name, measure in ways.items()}
    with capsys.disabled():
        print(f"\nseconds to the first step with {CLIPS} clips")
        for name, measured in seconds.items():
            print(f"  {name:35} {measured:6.2f}")


class CountedFiles(FsspecFiles):
    """Counts the archives' bytes that are read."""

    def __init__(self) -> None:
        self.num_bytes = self.requests = 0

    def open(self, uri: str) -> BinaryIO:
        file = super().open(uri)
        if uri.endswith(".tar"):
            self.num_bytes += len(file.read())
            self.requests += 1
            file.seek(0)
        return file


def test_bytes_from_a_store(
    plain: Recipe,
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    s3_server.client().create_bucket(Bucket="bench-packed")
    root = "s3://bench-packed/clips"
    manifest = pack_as(plain, root, "original", archive_mb=2)
    total = sum(archive["bytes"] for archive in manifest["archives"])
    with capsys.disabled():
        print(f"\n{len(manifest['archives'])} archives with {total / 1e6:.1f} MB on a store")
        for share in (2.0, 0.5):
            recipe = packed(plain, root, tmp_path / f"{share}")
            recipe = replace(recipe, data=replace(recipe.data, cache_gb=share * total / 1e9))
            files = CountedFiles()
            seconds, batches = first_step(recipe, files)
            steps = batches.steps_per_epoch if share > 1 else 20
            per_epoch = []
            for epoch in range(2):
                before = files.num_bytes
                for step in range(epoch * steps, (epoch + 1) * steps):
                    batches.shard(step, 0)
                per_epoch.append((files.num_bytes - before * (epoch > 0)) / total)
            print(
                f"  a cache of {share:g} of that: first step after {seconds:.1f} s; bytes read / bytes of all archives:"
            )
            print(f"    {', '.join(f'{value:.2f}' for value in per_epoch)} in two times {steps} steps")


def test_the_first_step_from_a_distant_store(
    plain: Recipe,
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Archives one after the other against several at once, from S3 behind a proxy that delays each piece of an answer
    by 50 ms; turns alternate, each with an empty cache."""
    s3_server.client().create_bucket(Bucket="bench-distant")
    root = "s3://bench-distant/clips"
    taken: dict[int, list[float]] = {1: [], archives.MAX_FETCHES: []}
    first: list[torch.Tensor] = []
    with Proxy(s3_server.endpoint) as proxy:
        for name, value in {**s3_server.env, "AWS_ENDPOINT_URL": proxy.endpoint}.items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()  # else the server's endpoint stays in use
        num_archives = len(pack_as(plain, root, "original", archive_mb=2)["archives"])
        proxy.delay_s = 0.05
        for turn in range(3):
            for at_once, seconds in taken.items():
                monkeypatch.setattr(archives, "MAX_FETCHES", at_once)
                files = FsspecFiles()
                found, batches = first_step(packed(plain, root, tmp_path / f"{turn}-{at_once}"), files)
                seconds.append(found)
                first.append(batches.shard(0, 0).x_BT)
    assert all(x_BT.equal(first[0]) for x_BT in first)
    ratios = [alone / several for alone, several in zip(*taken.values(), strict=True)]
    with capsys.disabled():
        print(f"\nfirst step from a store 50 ms away, {num_archives} archives of 2 MB, seconds: ", end="")
        print(
            ", ".join(f"{at_once} at once {statistics.median(found):.1f}" for at_once, found in taken.items()), end=""
        )
        print(f"; ratios {', '.join(f'{ratio:.1f}' for ratio in ratios)}")
