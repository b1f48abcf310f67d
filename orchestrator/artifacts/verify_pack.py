"""Compares the archives of a packed data set with their checksums."""

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from orchestrator.storage.fsspec_files import FsspecFiles
from workloads.data.formats.packed import read_pack
from workloads.data.pack import Pack, archive_uri
from workloads.runtime.opener import unreadable

CHUNK = 2**22  # bytes


@dataclass(frozen=True)
class Damaged:
    """An archive that is not as it was written: why, and which of its clips have other bytes than were packed."""

    archive: str
    reason: str
    clip_ids: tuple[str, ...]


def verify_pack(root: str, progress: Callable[[int, int], None]) -> tuple[Pack, list[Damaged]]:
    """Read every archive of the pack at `root`, and return those that differ from their checksums.

    Raises ValueError where manifest or index cannot be read.
    """
    files, damaged = FsspecFiles(), []
    _, pack = read_pack(root, files)
    archives = pack.manifest["archives"]
    for number, archive in enumerate(archives):
        progress(number, len(archives))
        try:
            with files.open(archive_uri(root, archive["name"], files)) as file:
                if _sha256(file) != archive["sha256"]:
                    damaged.append(Damaged(archive["name"], "differs from its checksum", _changed(pack, number, file)))
        except OSError as error:
            damaged.append(Damaged(archive["name"], unreadable(error), _clips_of(pack, number)))
    progress(len(archives), len(archives))
    return pack, damaged


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _clips_of(pack: Pack, number: int) -> tuple[str, ...]:
    return tuple(pack.clip_ids[row] for row in (pack.columns["archive"] == number).nonzero()[0])


def _changed(pack: Pack, number: int, file: BinaryIO) -> tuple[str, ...]:
    """The clips of an archive whose bytes differ from their own checksums."""
    found = []
    for row in (pack.columns["archive"] == number).nonzero()[0]:
        file.seek(int(pack.columns["offset"][row]))
        if zlib.crc32(file.read(int(pack.columns["size"][row]))) != pack.columns["crc32"][row]:
            found.append(pack.clip_ids[row])
    return tuple(found)
