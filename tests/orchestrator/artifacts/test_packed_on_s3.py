"""Training reads archives from a store: each once while all fit, the same samples where they do not."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch

from orchestrator.recipes.loader import load_recipe
from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.storage.object_store import get_bytes, put_file, remove_file
from tests.packs import pack_as, write_clips
from workloads.config.recipe import Recipe
from workloads.data.batches import Batches
from workloads.data.pack import Manifest
from workloads.data.prepare import PreparedData, prepare

pytestmark = pytest.mark.parametrize("storage", ["s3"], indirect=True)
ARCHIVE_MB = 0.2
STEPS = range(6)  # two epochs


class LoggedFiles(FsspecFiles):
    """Logs every request; several processes share the log."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def open(self, uri: str) -> BinaryIO:
        file = super().open(uri)
        self._add(uri, len(file.read()))
        file.seek(0)
        return file

    def identity(self, uri: str) -> str:
        self._add(uri, 0)
        return super().identity(uri)

    def _add(self, uri: str, size: int) -> None:
        with self.log.open("a") as log:
            log.write(f"{uri.rsplit('/', 1)[-1]} {size}\n")

    def requests(self) -> list[tuple[str, int]]:
        """Name and bytes of each."""
        return [(line.split()[0], int(line.split()[1])) for line in self.log.read_text().splitlines()]


@pytest.fixture
def plain(tmp_path: Path) -> Recipe:
    settings = [*write_clips(tmp_path / "plain"), f"data.cache={tmp_path / 'cache'}", "data.clip_seconds=0.5"]
    return load_recipe("demo", [*settings, "data.sampling=balanced", "train.shard_size=6", "train.shards=2"])


@pytest.fixture
def files(tmp_path: Path) -> LoggedFiles:
    return LoggedFiles(tmp_path / "requests")


def packed(plain: Recipe, root: str, form: str, **changes: float) -> tuple[Recipe, Manifest]:
    manifest = pack_as(plain, root, form, archive_mb=ARCHIVE_MB)
    return replace(plain, data=replace(plain.data, format="packed", root=root, manifest="", **changes)), manifest


def shards(prepared: PreparedData, *, loaders: int) -> list[torch.Tensor]:
    recipe = replace(prepared.recipe, train=replace(prepared.recipe.train, loaders=loaders))
    batches = Batches(prepared.splits.train, prepared.dataset, prepared.cache, recipe)
    with batches.loaded_ahead(STEPS, range(2), torch.device("cpu")):
        return [batches.shard(step, index).x_BT for step in STEPS for index in range(2)]


def test_each_archive_is_read_once_and_no_clip_is_asked_for(plain: Recipe, storage: str, files: LoggedFiles) -> None:
    recipe, manifest = packed(plain, storage, "flac")
    sizes = {archive["name"]: archive["bytes"] for archive in manifest["archives"]}
    prepared = prepare(recipe, files)
    assert [name for name, _ in files.requests()] == ["pack.json", "index.parquet"], "before the first step"
    expected = shards(prepare(plain, FsspecFiles()), loaders=0)
    assert all(map(torch.equal, shards(prepared, loaders=2), expected))
    for clip in prepared.dataset.clips:
        prepared.cache.load(clip.clip_id)
    read = files.requests()[2:]
    assert Counter(name for name, _ in read) == dict.fromkeys(sizes, 1)
    assert sum(size for _, size in read) / sum(sizes.values()) == 1.0
    again = prepare(recipe, files)
    assert all(map(torch.equal, shards(again, loaders=0), expected))
    assert [name for name, _ in files.requests()[2 + len(sizes) :]] == ["pack.json", "index.parquet"], "a second run"


def test_a_small_cache_holds_the_archives_that_were_read_last(plain: Recipe, storage: str, files: LoggedFiles) -> None:
    recipe, manifest = packed(plain, storage, "int16", cache_gb=0.0006)
    total = sum(archive["bytes"] for archive in manifest["archives"])
    prepared = prepare(recipe, files)
    (warning,) = (line for line in prepared.dataset.warnings if "data.cache_gb" in line)
    assert warning.startswith(f"data.cache_gb = 0.0006: the archives of {storage} have {total / 1e9:.3g} GB, and an")
    expected = shards(prepare(plain, FsspecFiles()), loaders=0)
    assert all(map(torch.equal, shards(prepared, loaders=2), expected))
    folder = Path(recipe.data.cache) / "packed"
    kept = sum(path.stat().st_size for path in folder.rglob("*.tar"))
    assert 0 < kept <= 600_000 < total
    by_archive = Counter(name for name, _ in files.requests() if name.endswith(".tar"))
    assert max(by_archive.values()) > 1
    clear(folder)
    (first, *_), (last, *_) = two_archives(prepared)
    for clip_id, fetches in ((first, 1), (first, 0), (last, 1), (first, 0)):
        before = len(files.requests())
        prepared.cache.load(clip_id)
        assert len(files.requests()) == before + fetches
    with pytest.raises(ValueError, match=r"data.cache_gb = 1e-05: the largest archive of .* has .* GB; keep several"):
        prepare(replace(recipe, data=replace(recipe.data, cache_gb=0.00001)), files)


def two_archives(prepared: PreparedData) -> list[list[str]]:
    """The clips of the first archive, and of the last one."""
    entries = [prepared.cache.entry(clip.clip_id) for clip in prepared.dataset.clips]
    return [[entry.clip_id for entry in entries if entry.archive == end.archive] for end in (entries[0], entries[-1])]


def clear(folder: Path) -> None:
    for path in folder.rglob("*.tar"):
        path.unlink()


def test_an_archive_that_is_damaged_or_gone_is_named_and_not_kept(plain: Recipe, storage: str, tmp_path: Path) -> None:
    recipe, manifest = packed(plain, storage, "int16")
    uri = f"{storage}/archives/{manifest['archives'][0]['name']}"
    changed = bytearray(get_bytes(uri))
    changed[700] ^= 1
    (tmp_path / "changed").write_bytes(changed)
    put_file(tmp_path / "changed", uri)
    prepared = prepare(recipe, FsspecFiles())
    (first, *_), (last, *_) = two_archives(prepared)
    for loaders in (0, 1):
        with pytest.raises(OSError, match=r"00000.tar: differs from its checksum; `antiphon data verify` names every"):
            shards(prepared, loaders=loaders)
    assert prepared.cache.load(last).abs().max() > 0
    assert {path.name for path in (Path(recipe.data.cache) / "packed").rglob("*.tar*")} & {"00000.tar"} == set()
    assert not list((Path(recipe.data.cache) / "packed").rglob("*.part"))
    remove_file(uri)
    with pytest.raises(OSError, match=r"00000.tar: the archive is gone; pack the data set again"):
        prepared.cache.load(first)
    assert np.isfinite(prepared.cache.load(last).numpy()).all()
