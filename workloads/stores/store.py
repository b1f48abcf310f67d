"""A finished store at a URI: its description, manifest, clips and files, read through an opener and checked.

Contract: a store is immutable and has a manifest, written last by exclusive create; a folder without one is unfinished,
whatever else it holds, and is refused here. Any number of processes may read at once.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from workloads.runtime.json_files import json_text
from workloads.runtime.opener import NotAFile, Opener
from workloads.runtime.redaction import redacted
from workloads.stores.columns import RowCodec
from workloads.stores.description import (
    CLIPS,
    DESCRIPTION,
    MANIFEST,
    SHARDS,
    Description,
    Manifest,
    ViewChecksum,
    parse_description,
    parse_manifest,
    shard_name,
)
from workloads.stores.plan import ShardPlan, decode_clips


@dataclass(frozen=True)
class Store:
    """A finished store; `open_store` makes it."""

    uri: str
    opener: Opener
    description: Description
    manifest: Manifest

    @property
    def num_clips(self) -> int:
        return self.description["clips"]["count"]

    @property
    def num_views(self) -> int:
        return self.description["views"]["count"]

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which holds those of the description and of every file."""
        return hashlib.sha256(json_text(self.manifest).encode()).hexdigest()

    def checksums(self) -> dict[str, ViewChecksum]:
        """Checksums of the waveforms of some clips, by clip_id; none where another program made the rows."""
        of_shards = (entry.get("checksums", {}) for entry in self.manifest["shards"])
        return {
            clip_id: checksum
            for part in (self.description.get("heard", {}), *of_shards)
            for clip_id, checksum in part.items()
        }

    def teachers(self, column: str) -> dict[str, str]:
        """The SHA-256 of the weights of each teacher of a column, by its name."""
        names = self.description["columns"][column]["teachers"]
        return {one["name"]: one["weights_sha256"] for one in self.description["teachers"] if one["name"] in names}

    @cached_property
    def codecs(self) -> dict[str, RowCodec]:
        return {name: RowCodec(name, column) for name, column in self.description["columns"].items()}

    def codec(self, column: str) -> RowCodec:
        if column not in self.codecs:
            raise ValueError(f"store {self.uri!r}: has no column {column!r}; its columns are {', '.join(self.codecs)}")
        return self.codecs[column]

    def clip_ids(self) -> Iterator[list[str]]:
        """The names of all clips in their order, some thousands at a time; a clip's number is its place there."""
        uri = self._file(CLIPS)
        clips = self.description["clips"]
        return decode_clips(read_file(uri, self.opener), uri, count=clips["count"], sha256=clips["sha256"])

    def shards(self) -> Iterator[ShardPlan]:
        """The shards with their clips, one after the other; ValueError where the manifest names other clips."""
        waiting, number, entries = list[str](), 0, self.manifest["shards"]
        for batch in self.clip_ids():
            waiting += batch
            while number < len(entries) and len(waiting) >= entries[number]["clips"]:
                entry = entries[number]
                ids, waiting = waiting[: entry["clips"]], waiting[entry["clips"] :]
                if (redacted(ids[0]), redacted(ids[-1])) != (entry["first"], entry["last"]):  # as JSON holds them
                    raise ValueError(f"{self._file(MANIFEST)}: shard {number} holds other clips than {CLIPS} says")
                yield ShardPlan(number, tuple(ids), self.num_views)
                number += 1

    def shard_uri(self, column: str, number: int) -> str:
        file = self.manifest["shards"][number]["files"][column]
        return self._file(SHARDS, shard_name(column, number, file["sha256"]))

    def parse_shard(self, column: str, number: int, content: bytes) -> NDArray[np.uint8]:
        """The rows in a shard's file, checked, as bytes (views, clips, row_bytes); ValueError names a damaged one."""
        entry, name = self.manifest["shards"][number], self.shard_uri(column, number)
        shape, file = {"views": self.num_views, "clips": entry["clips"]}, entry["files"][column]
        raw = self.codec(column).parse(content, name, sha256=file["sha256"], **shape)
        if len(content) != file["bytes"]:
            raise ValueError(
                f"{name}: has {len(content)} bytes, {MANIFEST} says {file['bytes']}: that file was changed"
            )
        return raw

    def read_shard(self, column: str, number: int) -> NDArray[np.uint8]:
        """The same, read; a file that is not there is a ValueError too."""
        return self.parse_shard(column, number, read_file(self.shard_uri(column, number), self.opener))

    def _file(self, *names: str) -> str:
        uri = self.uri
        for name in names:
            uri = self.opener.join(uri, name)
        return uri


def open_store(uri: str, opener: Opener) -> Store:
    """The store at `uri`; ValueError where there is none, where it is unfinished, and where its files are damaged."""
    place = opener.join(uri, DESCRIPTION)
    try:
        content = read_file(place, opener)
    except NoSuchFile:
        raise ValueError(f"store {uri!r}: there is no {DESCRIPTION}, so there is no store; check the address") from None
    description = parse_description(content, place)
    try:
        manifest = read_file(opener.join(uri, MANIFEST), opener)
    except NoSuchFile:
        raise ValueError(
            f"store {uri!r}: has no {MANIFEST}, so it is unfinished; run the command that fills it again"
        ) from None
    sha256 = hashlib.sha256(content).hexdigest()
    return Store(uri, opener, description, parse_manifest(manifest, opener.join(uri, MANIFEST), description, sha256))


def name_teachers(weights: Mapping[str, str]) -> str:
    """Teachers with the first digits of their weights' SHA-256, to be printed: cnn 0123456789ab."""
    return ", ".join(f"{name} {sha256[:12]}" for name, sha256 in weights.items())


class NoSuchFile(ValueError):
    """A file of a store does not exist."""


def open_file(uri: str, opener: Opener) -> BinaryIO:
    """A store's file, opened; NoSuchFile where it does not exist, ValueError where a folder has its name."""
    try:
        return opener.open(uri)
    except (FileNotFoundError, NotADirectoryError):
        raise NoSuchFile(f"{uri}: there is no such file; the store is damaged") from None
    except NotAFile as error:
        raise ValueError(f"{uri}: {error}, where a file of a store is expected; move it away") from None


def read_file(uri: str, opener: Opener) -> bytes:
    """The content of a store's file; the same errors as of `open_file`."""
    with open_file(uri, opener) as file:
        return file.read()
