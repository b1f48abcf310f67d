"""Packing: the same bytes here and on Ray, also after kills; broken files and damaged archives are named."""

import errno
import json
import multiprocessing
import os
import signal
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import psutil
import pytest

from orchestrator.artifacts import pack as pack_module
from orchestrator.artifacts.pack import PackRequest, check_left_out, pack
from orchestrator.artifacts.verify_pack import verify_pack
from orchestrator.recipes.loader import load_recipe
from orchestrator.storage.fsspec_files import FsspecFiles
from tests.packs import damage_clip, pack_as, write_clips
from tests.processes import title
from workloads.config.recipe import Recipe
from workloads.data.archive import ArchiveWriter
from workloads.data.manifest import read_dataset
from workloads.data.pack import Manifest
from workloads.data.prepare import prepare
from workloads.runtime.background import in_background

FILES = FsspecFiles()


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Sixty clips."""
    settings = [*write_clips(tmp_path / "plain"), f"data.cache={tmp_path / 'cache'}"]
    return load_recipe("demo", settings)


def packed(recipe: Recipe, root: str, **changes: object) -> Recipe:
    return replace(recipe, data=replace(recipe.data, format="packed", manifest="", root=root, **changes))


def content(root: str) -> dict[str, bytes]:
    """All files of a pack, by path."""
    return {path: FILES.open(FILES.join(root, path)).read() for path in FILES.files_below(root)}


@pytest.mark.parametrize("form", ["original", "flac", "int16"])
def test_a_pack_gives_the_clips_of_the_plain_data_set_sample_for_sample(
    recipe: Recipe, storage: str, form: str
) -> None:
    manifest = pack_as(recipe, storage, form)
    assert len(manifest["archives"]) > 3
    plain, read = prepare(recipe, FILES), prepare(packed(recipe, storage), FILES)
    assert read.dataset.clips == plain.dataset.clips
    assert read.dataset.fingerprint() == plain.dataset.fingerprint() == manifest["fingerprint"]
    assert read.splits == plain.splits
    assert read.cache.decoded() == plain.cache.decoded()
    assert read.summary() | {"warnings": []} == plain.summary() | {"warnings": []}
    for clip in plain.dataset.clips:
        x_T = plain.cache.load(clip.clip_id)
        assert read.cache.load(clip.clip_id).equal(x_T)
        for first, length in ((0, 12_000), (len(x_T) // 3, 5000), (len(x_T) - 10, 100)):
            parts = np.full((2, length), 7, np.int16)
            for store, part_L in zip((plain.cache, read.cache), parts, strict=True):
                entry = store.entry(clip.clip_id)
                assert store.without_clips().load_part(entry, part_L, start=lambda _, first=first: first) == len(x_T)
            np.testing.assert_array_equal(*parts)


def test_tar_reads_an_archive(recipe: Recipe, tmp_path: Path) -> None:
    pack_as(recipe, str(tmp_path / "out"), "original")
    names = []
    for path in sorted((tmp_path / "out" / "archives").iterdir()):
        with tarfile.open(path) as archive:
            for member in archive:
                number = int(member.name[5:8])
                assert member.name == f"clip {number:03}.{('wav', 'flac')[number % 2]}"
                (plain,) = (tmp_path / "plain" / "audio").glob(f"{number}.*")
                assert archive.extractfile(member).read() == plain.read_bytes()
                names.append(member.name)
    assert names == sorted(names)
    assert len(names) == 60


def test_the_bytes_do_not_depend_on_a_kill(recipe: Recipe, tmp_path: Path) -> None:
    once, cut = str(tmp_path / "once"), str(tmp_path / "cut")
    pack_as(recipe, once, "flac", archive_mb=0.2)
    context = multiprocessing.get_context("fork")  # a new interpreter would take seconds to import torch
    process = context.Process(target=pack_until, args=(recipe, cut, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    finish(recipe, cut)
    assert content(cut) == content(once)


def test_an_interrupted_pack_is_finished_and_one_that_is_finished_is_left_alone(recipe: Recipe, storage: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        pack_until(recipe, storage, raise_interrupt)
    finish(recipe, storage)
    before = content(storage)
    assert pack_until(recipe, storage, raise_interrupt) == json.loads(before["pack.json"])
    assert content(storage) == before


def test_ray_writes_the_same_bytes_also_where_a_worker_is_killed(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of relative paths too, although Ray's workers run in a folder of their own."""
    expected = pack_as(recipe, str(tmp_path / "here"), "flac", archive_mb=0.2)
    monkeypatch.chdir(tmp_path)
    relative = replace(recipe, data=replace(recipe.data, root="plain", manifest="plain/clips.csv"))
    killed: list[int] = []

    def kill_while_it_writes(ended: threading.Event) -> None:
        while not killed and not ended.wait(0.02):
            for child in psutil.Process().children(recursive=True):
                if done and title(child).startswith("ray::ArchivePacker.write_or_keep"):
                    child.kill()
                    killed.append(child.pid)

    done: list[int] = []
    with in_background(kill_while_it_writes, name="kill"):
        request = PackRequest(relative, "on-ray", "flac", recipe.rate, 0.2, workers=1)
        manifest = pack(request, lambda number, total: done.extend([number] * (number > 1)))
    assert len(killed) == 1
    assert manifest == expected
    assert content("on-ray") == content(str(tmp_path / "here"))


def test_a_clip_that_only_a_worker_cannot_hear_is_no_broken_clip(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "plain" / "audio" / "7.flac").unlink()
    clips = read_dataset(recipe.data, FILES).clips
    left_out = [{"clip_id": clips[number].clip_id, "path": "", "reason": "not found"} for number in (7, 8)]
    packing = PackRequest(recipe, str(tmp_path / "out"), "flac", recipe.rate, 0.2).packing
    record: Any = {"archive": {}, "members": [], "quarantined": left_out[:1]}
    check_left_out(packing, clips, record)
    record["quarantined"] = left_out
    with pytest.raises(
        ValueError, match=r"clip 008: can be heard on the driver's machine and not on a worker's \(not f"
    ):
        check_left_out(packing, clips, record)


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def pack_until(recipe: Recipe, out: str, interrupt: Callable[[], None], number: int = 3) -> Manifest:
    """Pack, and call `interrupt` before this archive is written."""
    write = pack_module.write_archive

    def write_or_stop(file: BinaryIO, name: str, *rest: Any) -> Any:
        if name == f"{number:05}.tar":
            interrupt()
        return write(file, name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_module, "write_archive", write_or_stop)
        return pack_as(recipe, out, "flac", archive_mb=0.2)


def finish(recipe: Recipe, out: str) -> None:
    """Pack the rest of a pack whose first three archives are there."""
    with pytest.raises(ValueError, match=r"no pack.json there, so it is no packed data set or an unfinished one"):
        read_dataset(packed(recipe, out).data, FILES)
    assert sorted(path for path in FILES.files_below(out) if path.endswith(".tar")) == [
        f"archives/0000{number}.tar" for number in range(3)
    ]
    written = []
    write = pack_module.write_archive
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pack_module, "write_archive", lambda file, name, *rest: written.append(name) or write(file, name, *rest)
        )
        manifest = pack_as(recipe, out, "flac", archive_mb=0.2)
    assert written == [archive["name"] for archive in manifest["archives"][3:]]


def test_broken_files_are_left_out_counted_and_named(recipe: Recipe, tmp_path: Path) -> None:
    audio, out = tmp_path / "plain" / "audio", str(tmp_path / "out")
    (audio / "7.flac").unlink()
    (audio / "12.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"2 of 60 clips \(3.3%\) are broken, above data.max_broken_share = 1.0%"):
        pack_as(replace(recipe, data=replace(recipe.data, max_broken_share=0.01)), out, "original")
    manifest = pack_as(recipe, out, "original")
    expected = prepare(recipe, FILES)
    read = prepare(packed(recipe, out), FILES)
    assert [broken["clip_id"] for broken in manifest["quarantined"]] == ["clip 007", "clip 012"]
    assert read.quarantined == expected.quarantined
    assert manifest["clips"] == len(read.dataset.clips) == 58
    assert read.dataset.fingerprint() == expected.dataset.fingerprint() == manifest["fingerprint"]


def test_files_that_were_mended_meanwhile_are_packed_when_the_command_is_repeated(
    recipe: Recipe, tmp_path: Path
) -> None:
    broken, out = tmp_path / "plain" / "audio" / "12.wav", str(tmp_path / "out")
    sound = broken.read_bytes()
    broken.write_bytes(b"no sound")
    strict = replace(recipe, data=replace(recipe.data, max_broken_share=0.0))
    with pytest.raises(ValueError, match=r"1 of 60 clips"):
        pack_as(strict, out, "original")
    broken.write_bytes(sound)
    assert pack_as(strict, out, "original")["clips"] == 60


def test_a_folder_holds_one_pack(recipe: Recipe, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    pack_as(recipe, out, "original")
    with pytest.raises(ValueError, match=r"a pack with form = original is there, and this one has flac; choose"):
        pack_as(recipe, out, "flac")
    (tmp_path / "plain" / "clips.csv").open("a").write("new,audio/1.flac,low,1,new\n")
    with pytest.raises(ValueError, match=r"a pack with fingerprint = "):
        pack_as(recipe, out, "original")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_of_temporary_files_is_named(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """Archives are written there before they go to --out, which may be another disk."""

    def fail(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(ArchiveWriter, "add", fail)
    named = "No space left on device: /.*/scratch, where an archive is .* or set TMPDIR"
    with pytest.raises(OSError, match=named if error == errno.ENOSPC else "error$"):
        pack_as(recipe, str(tmp_path / "out"), "flac")


def test_settings_that_do_not_belong_to_the_pack_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    pack_as(recipe, out, "int16")
    with pytest.raises(ValueError, match=r"made with 'single'; --set data.labels=single"):
        read_dataset(packed(recipe, out, labels="multi").data, FILES)
    with pytest.raises(ValueError, match=r"packed as int16 at 16000 Hz, and the models need 32000 Hz; pack it with"):
        prepare(packed(recipe, out), FILES, rate=32_000)
    manifest = Path(out) / "pack.json"
    manifest.write_text(manifest.read_text().replace('"format": "manifest"', '"format": "urbansound8k"'))
    assert read_dataset(packed(recipe, out, test_fold=2).data, FILES).clips
    manifest.write_text(manifest.read_text().replace('"format": "urbansound8k"', '"format": "speechcommands"'))
    with pytest.raises(ValueError, match=r"test_fold = 2: format speechcommands names its test clips"):
        read_dataset(packed(recipe, out, test_fold=2).data, FILES)
    with pytest.raises(ValueError, match=r"is packed already"):
        pack_as(packed(recipe, out), str(tmp_path / "again"), "flac")


def test_verify_names_damaged_archives_and_their_clips(recipe: Recipe, tmp_path: Path, antiphon) -> None:
    out = tmp_path / "out"
    manifest = pack_as(recipe, str(out), "flac")
    whole = antiphon("data", "verify", out)
    assert (whole.code, whole.out) == (
        0,
        f"{len(manifest['archives'])} of {len(manifest['archives'])} archives with 60 clips are as they were packed\n",
    )
    path = damage_clip(prepare(packed(recipe, str(out)), FILES), "clip 020")
    other = out / "archives" / manifest["archives"][0]["name"]
    other.unlink()
    _, damaged = verify_pack(str(out), lambda done, total: None)
    assert [(one.archive, one.reason) for one in damaged] == [
        (other.name, "not found"),
        (path.name, "differs from its checksum"),
    ]
    assert damaged[1].clip_ids == ("clip 020",)
    named = antiphon("data", "verify", out)
    assert named.code == 1
    assert f"damaged: {path.name}: differs from its checksum; clips: clip 020" in named.out.splitlines()


def test_the_command_packs_and_prints_what_was_left_out(
    recipe: Recipe, tmp_path: Path, antiphon, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain" / "audio" / "7.flac").unlink()
    settings = [
        word
        for key in ("format", "manifest", "root", "labels")
        for word in ("--set", f"data.{key}={getattr(recipe.data, key)}")
    ]
    packing = ["data", "pack", "demo", *settings, "--out", tmp_path / "out", "--as", "int16", "--archive-mb", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "write_archive", lambda *_: signal.raise_signal(signal.SIGTERM))
        stopped = antiphon(*packing, "--json")
    assert (stopped.code, json.loads(stopped.out)["status"]) == (75, "preempted")
    assert "the same command goes on: antiphon data pack demo" in stopped.err.replace("'", "")
    done = antiphon(*packing)
    assert done.code == 0, done.err
    assert "  clip 007  audio/7.flac: not found" in done.out.splitlines()
    found = json.loads(antiphon(*packing, "--json").out)
    assert (found["clips"], found["form"], found["rate"]) == (59, "int16", 16_000)
    assert found["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out" / "archives").iterdir())
    for wrong, message in (
        (["--as", "mp3"], "--as mp3: must be"),
        (["--as", "original", "--rate", "8000"], "--rate 8000"),
        (["--workers", "0"], "--workers 0: must be at least 1"),
        (["--archive-mb", "inf"], "--archive-mb inf: must be a number above 0"),
        (["--out", ""], "URI '': is empty; give a folder"),
        (["--address", "ray://head:10001"], "--address 'ray://head:10001': Ray Client connections break"),
    ):
        refused = antiphon(*packing[:-4], *wrong)
        assert refused.code == 2
        assert message in refused.err
