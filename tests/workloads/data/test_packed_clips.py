"""Clips of a packed data set that cannot be read at first: a damaged copy of an archive, a missing decoder."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.recipes.loader import load_recipe
from tests.packs import pack_as, write_clips
from workloads.config.recipe import Recipe
from workloads.data import packed_clips
from workloads.data.archives import FetchedArchives
from workloads.data.decode import BrokenClip
from workloads.data.formats.packed import read_pack
from workloads.data.packed_clips import PackedClips
from workloads.data.prepare import prepare
from workloads.runtime.opener import LocalFiles

RATE, LENGTH = 16_000, 4000


@pytest.fixture
def plain(tmp_path: Path) -> Recipe:
    return load_recipe("demo", [*write_clips(tmp_path / "plain"), f"data.cache={tmp_path / 'cache'}"])


def fetched(root: Path) -> PackedClips:
    """The clips of a pack whose archives are copied from a store, here a folder, to a cache."""
    _, pack = read_pack(str(root), LocalFiles())
    archives = FetchedArchives(str(root), LocalFiles(), pack.manifest, "d1", root.parent / "cache", 1.0)
    return PackedClips(pack, archives, rate=RATE)


def part_of(store: PackedClips, clip_id: str) -> np.ndarray:
    part_L = np.full(LENGTH, 7, np.int16)
    store.load_part(store.entry(clip_id), part_L, start=lambda samples: min(100, samples))
    return part_L


@pytest.mark.parametrize("form", ["original", "flac", "int16"])
def test_a_damaged_copy_of_an_archive_is_fetched_again(plain: Recipe, tmp_path: Path, form: str) -> None:
    """A crash of the machine may leave a file whose end was never written."""
    pack_as(plain, str(tmp_path / "pack"), form, archive_mb=100)
    store = fetched(tmp_path / "pack")
    last = list(store.decoded())[-1]
    part_L, x_T = part_of(store, last), store.load(last)
    (copy,) = (tmp_path / "cache").rglob("*.tar")
    whole, short = copy.read_bytes(), store.entry(last).offset + 100  # in int16 the header of an array is longer
    for again in (lambda: torch.equal(store.load(last), x_T), lambda: np.array_equal(part_of(store, last), part_L)):
        copy.write_bytes(whole[:short])
        assert again()
        assert copy.read_bytes() == whole


def test_a_store_whose_archive_is_damaged_is_named(plain: Recipe, tmp_path: Path) -> None:
    pack_as(plain, str(tmp_path / "pack"), "flac", archive_mb=100)
    store = fetched(tmp_path / "pack")
    clip_id = next(iter(store.decoded()))
    part_of(store, clip_id)
    for archive in [*(tmp_path / "cache").rglob("*.tar"), *(tmp_path / "pack").rglob("*.tar")]:
        archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(OSError, match=r"00000\.tar: differs from its checksum"):
        part_of(store, clip_id)


def test_a_damaged_header_leads_to_no_other_clip(plain: Recipe, tmp_path: Path) -> None:
    pack_as(plain, str(tmp_path / "pack"), "int16", archive_mb=100)
    data = replace(plain.data, format="packed", root=str(tmp_path / "pack"), manifest="")
    store = prepare(replace(plain, data=data), LocalFiles()).cache
    entry = store.entry(next(iter(store.decoded())))
    path = tmp_path / "pack" / "archives" / "00000.tar"
    declared = f"({entry.samples},)".encode()
    content = bytearray(path.read_bytes())
    first = content.index(declared, entry.offset)
    content[first : first + len(declared)] = f"({entry.samples + 4000},)".encode().ljust(len(declared))[: len(declared)]
    path.write_bytes(content)
    with pytest.raises(BrokenClip, match=rf"declares {entry.samples + 4000} samples, {entry.samples} were packed"):
        store.load_part(entry, np.empty(LENGTH, np.int16), start=lambda samples: samples - LENGTH)


def test_a_missing_decoder_is_the_users_mistake_and_no_broken_clip(
    plain: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else other clips would take the places of all that need it, on this machine alone."""
    pytest.importorskip("av", reason="needs the package av")
    from tests.workloads.data.test_containers import encode  # which is skipped as a whole without the package

    table = tmp_path / "plain" / "clips.csv"
    table.write_text(table.read_text().replace("audio/3.flac", "audio/3.m4a"))
    tone = 0.3 * np.sin(np.arange(16_000) / 20)[:, None]
    (tmp_path / "plain" / "audio" / "3.m4a").write_bytes(encode("mp4", "aac", tone, rate=16_000))
    pack_as(plain, str(tmp_path / "pack"), "original")
    data = replace(plain.data, format="packed", root=str(tmp_path / "pack"), manifest="")
    packed = replace(plain, data=data)
    store = prepare(packed, LocalFiles()).cache
    assert part_of(store, "clip 003").any()
    monkeypatch.setitem(sys.modules, "av", None)
    message = r"clip 003 .*pip install 'antiphon\[av\]', or convert it to FLAC, before it is packed"
    for read in (
        lambda: prepare(packed, LocalFiles()),
        lambda: part_of(store, "clip 003"),
        lambda: store.load("clip 003"),
    ):
        with pytest.raises(ValueError, match=message):
            read()


def test_a_file_that_this_installation_cannot_decode_is_no_broken_clip(
    plain: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BrokenClip("cannot be decoded (format not recognised)")

    pack_as(plain, str(tmp_path / "pack"), "original")
    store = fetched(tmp_path / "pack")
    monkeypatch.setattr(packed_clips, "load_sound", refuse)
    for read in (lambda: part_of(store, "clip 003"), lambda: store.load("clip 003")):
        with pytest.raises(
            ValueError, match=r"clip 003 .*format not recognised\), and its bytes are those that were pack"
        ):
            read()
