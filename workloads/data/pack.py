"""A packed data set: clips in tar archives, an index of one row a clip, and a manifest that is written last.

    ROOT/pack.json            the manifest: a folder without it is unfinished
    ROOT/index.parquet        what is known of each clip, and where its bytes are
    ROOT/archives/00000.tar   members in the order of their clip_ids

Does not depend on clips, decoding or models. Axes: N clips in the order of their clip_ids.
"""

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from workloads.runtime.json_files import parse_json
from workloads.runtime.opener import Opener, read_bounded, unreadable

VERSION = 1  # of the layout
MANIFEST, INDEX, ARCHIVES = "pack.json", "index.parquet", "archives"
MAX_MANIFEST, MAX_INDEX = 2**28, 2**33  # bytes
Form = Literal["original", "flac", "int16"]
ENDINGS = {"flac": ".flac", "int16": ".npy"}  # of members; an original keeps its own
Count = Annotated[int, Interval(ge=0, lt=2**62)]


class ArchiveFields(TypedDict):
    """A tar file of the pack."""

    name: str
    bytes: Count
    sha256: str


class BrokenFields(TypedDict):
    """A clip that was left out, and why."""

    clip_id: str
    path: str
    reason: str


class Manifest(TypedDict):
    """pack.json."""

    version: int
    form: Form
    rate: Annotated[int, Interval(gt=0, lt=2**31)]  # Hz at which `samples` are counted, and decoded sound is stored
    clips: Count
    format: str  # of the data set that was packed
    labels: Literal["single", "multi"]
    fingerprint: str
    without_source: Count
    folds_assigned: bool
    val_fold: int | None
    warnings: list[str]
    quarantined: list[BrokenFields]
    archives: list[ArchiveFields]
    index: ArchiveFields


class Member(TypedDict):
    """A clip's bytes in its archive, and what decoding has found out about it (`DecodedClip`)."""

    clip_id: str
    offset: Count
    size: Count
    crc32: Count
    samples: Count
    own_rate: Count
    notes: list[str]


class ArchiveRecord(TypedDict):
    """What is known of an archive that was written."""

    archive: ArchiveFields
    members: list[Member]
    quarantined: list[BrokenFields]


@dataclass(frozen=True)
class Pack:
    """The manifest, and of each clip where its bytes are."""

    manifest: Manifest
    digest: str  # SHA-256 of the manifest's file
    clip_ids: Sequence[str] = ()
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)  # archive, offset, size, crc32, samples, own_rate
    mended: dict[int, tuple[str, tuple[str, ...]]] = field(default_factory=dict)  # by row: path, and what was mended

    @property
    def total_bytes(self) -> int:
        """Of all archives."""
        return sum(archive["bytes"] for archive in self.manifest["archives"])

    def without_index(self) -> "Pack":
        """What a process needs that is told where each clip is."""
        return Pack(self.manifest, self.digest)


NUMBERS = {
    "archive": np.int32,
    "offset": np.int64,
    "size": np.int64,
    "crc32": np.uint32,
    "samples": np.int64,
    "own_rate": np.int32,
}


def read_manifest(root: str, opener: Opener) -> tuple[Manifest, str]:
    """The manifest below a root, and its digest; ValueError where there is none, or it is no such file."""
    uri = opener.join(root, MANIFEST)
    content = _read(uri, opener, MAX_MANIFEST, root)
    manifest: Manifest = parse_json(content, uri, Manifest)
    if manifest["version"] != VERSION:
        raise ValueError(
            f"{uri}: version {manifest['version']} of the layout, this program reads {VERSION}: pack again"
        )
    for archive in manifest["archives"]:
        if not re.fullmatch(r"\d+\.tar", archive["name"]):
            raise ValueError(f"{uri}: archive {archive['name']!r}: no name of an archive; the file was damaged")
    return manifest, hashlib.sha256(content).hexdigest()


def read_index(root: str, opener: Opener, manifest: Manifest) -> Any:
    """The index as a pyarrow.parquet.ParquetFile; ValueError where it is not the one that the manifest names."""
    import pyarrow.parquet

    uri = opener.join(root, INDEX)
    content = _read(uri, opener, MAX_INDEX, root)
    if hashlib.sha256(content).hexdigest() != manifest["index"]["sha256"]:
        raise ValueError(f"{uri}: differs from its checksum in {MANIFEST}; it was damaged: pack the data set again")
    return pyarrow.parquet.ParquetFile(io.BytesIO(content))


def archive_uri(root: str, name: str, opener: Opener) -> str:
    """Where the archive of this name is in the pack at `root`."""
    return opener.join(opener.join(root, ARCHIVES), name)


def _read(uri: str, opener: Opener, most: int, root: str) -> bytes:
    try:
        with opener.open(uri) as file:
            content = read_bounded(file, most)
    except FileNotFoundError:
        raise ValueError(
            f"data.root = {root!r}: no {uri.rsplit('/', 1)[-1]} there, so it is no packed data set or an unfinished "
            "one: `antiphon data pack` makes or finishes it"
        ) from None
    except OSError as error:
        raise ValueError(f"{uri}: {unreadable(error)}; check the address and the credentials") from None
    if content is None:
        raise ValueError(f"{uri}: larger than {most / 2**30:g} GiB; it was damaged")
    return content
