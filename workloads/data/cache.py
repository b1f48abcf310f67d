"""Decoded clips on a local disk, shared by all runs of a node: each clip is decoded once. Does not depend on tags or
splits.

Axes: T samples, L samples of a part of a clip.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import filelock
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from workloads.config.data import COMPUTED, Data
from workloads.data.clip_store import MendedClip
from workloads.data.clips import Clip
from workloads.data.computed import compute, files_of
from workloads.data.decode import BrokenClip, NotReadHere, Sound, load_sound
from workloads.data.decoded import DecodedClip, DecodedIndex
from workloads.data.samples import read_part, read_whole, to_file
from workloads.runtime.atomic_files import UNFINISHED, replace_bytes
from workloads.runtime.json_files import json_text, parse_json
from workloads.runtime.opener import Opener, is_fault_of_the_file, unreadable

FORMAT = 3  # of the stored files: raise it when decoding, resampling or storing changes
DECODE_THREADS = 2  # decoding and resampling release Python's global lock
CHUNK_CLIPS = 64  # decoded between two checks of the limit
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class QuarantinedClip:
    """A clip without usable audio, and the reason."""

    clip_id: str
    path: str
    reason: str


class _FailureRecord(TypedDict):
    """The file beside a quarantined clip's target, as far as it is read."""

    reason: str


@dataclass(frozen=True)
class CachedClip:
    """A clip whose sound is, or will be, in the file `target`; the rest serves to decode it, again if that is lost."""

    clip: Clip
    uri: str
    target: Path
    data: Data
    opener: Opener

    @property
    def clip_id(self) -> str:
        return self.clip.clip_id

    @property
    def key(self) -> str:
        """The name of the stored clip in the index."""
        return self.target.stem

    def quarantined(self, reason: str) -> QuarantinedClip:
        return QuarantinedClip(self.clip.clip_id, self.clip.path, reason)


class ClipCache:
    """Decoded clips as int16 .npy files at one rate in Hz, named by a hash of everything their content depends on.

    Several processes of a node may use one folder at the same time. They write under a file lock, one process at a
    time, and read without it. A file appears complete or not at all: a kill leaves a `.part` file, which the next
    `prepare` removes, and every clip that was stored before it.
    """

    def __init__(self, folder: Path, *, rate: int, limit_gb: float) -> None:
        self.folder = folder
        self.rate = rate
        self.limit_gb = limit_gb
        self._entries: dict[str, CachedClip] = {}  # of the usable clips, by clip_id
        self._index = DecodedIndex(folder)

    def prepare(self, clips: Sequence[Clip], data: Data, opener: Opener) -> list[QuarantinedClip]:
        """Decode every clip that is not stored yet; returns the quarantined ones, in the order of the clips.

        A file that is missing, no file, or without usable audio is quarantined. A disk or store that cannot be read is
        no fault of its clips: raises OSError.

        Called by each process before `load`. Waits while another process writes and then decodes only what is still
        missing. A broken file is recorded and not decoded again until it changes. Above the limit, stored clips other
        than these are evicted, least recently used first. Raises ValueError if these clips alone are above the limit,
        and where the folder cannot be created.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"data.cache = {str(self.folder)!r}: {error.strerror}; choose another folder") from None
        quarantined: list[QuarantinedClip] = []
        with self._lock(), ThreadPoolExecutor(DECODE_THREADS) as pool:
            for left_over in self.folder.glob(f"*{UNFINISHED}"):
                left_over.unlink()  # of a killed process: no other one writes while this one holds the lock
            self._index.read()
            self._index.shorten()
            entries = list(pool.map(lambda clip: self._make_entry(clip, data, opener), clips))
            targets = [entry.target for entry in entries if isinstance(entry, CachedClip)]
            space = _CacheSpace(self.folder, targets, limit_gb=self.limit_gb)
            for start in range(0, len(entries), CHUNK_CLIPS):
                for result in pool.map(self._decode_to_cache, entries[start : start + CHUNK_CLIPS]):
                    if isinstance(result, QuarantinedClip):
                        quarantined.append(result)
                    else:
                        self._entries[result.clip.clip_id] = result
                        space.add(result.target)
        return quarantined

    def mended(self) -> list[MendedClip]:
        """The clips of the last `prepare` whose files were mended before they were stored."""
        return [
            MendedClip(clip_id, self._entries[clip_id].clip.path, decoded.notes)
            for clip_id, decoded in self.decoded().items()
            if decoded.notes
        ]

    def decoded(self) -> dict[str, DecodedClip]:
        """What decoding has found out about each usable clip of the last `prepare`, by clip_id; decodes nothing."""
        found = ((clip_id, self._index.get(entry.key)) for clip_id, entry in self._entries.items())
        return {clip_id: decoded for clip_id, decoded in found if decoded is not None}

    def decoded_before(self, clips: Sequence[Clip], data: Data, opener: Opener) -> dict[str, DecodedClip]:
        """What earlier runs on this machine have found out about these clips, by clip_id; decodes and writes nothing.

        Clips that were never decoded here, and files that are gone, are left out. Raises OSError as `prepare` does.
        """
        self._index.read()
        with ThreadPoolExecutor(DECODE_THREADS) as pool:
            entries = list(pool.map(lambda clip: self._make_entry(clip, data, opener), clips))
        found = ((entry.clip.clip_id, self._index.get(entry.key)) for entry in entries if isinstance(entry, CachedClip))
        return {clip_id: decoded for clip_id, decoded in found if decoded is not None}

    def without_clips(self) -> "ClipCache":
        """The same folder for another process, which is told each clip that it loads."""
        return ClipCache(self.folder, rate=self.rate, limit_gb=self.limit_gb)

    def entry(self, clip_id: str) -> CachedClip:
        """A clip of the last `prepare` that is not quarantined."""
        assert clip_id in self._entries, f"clip {clip_id} is quarantined or was never prepared"
        return self._entries[clip_id]

    def load(self, clip_id: str) -> Tensor:
        """The whole clip, x_T float32; only for clips that `prepare` has not quarantined."""
        entry = self.entry(clip_id)
        return self._read(entry, lambda: read_whole(entry.target))

    def load_part(self, entry: CachedClip, part_L: NDArray[np.int16], *, start: Callable[[int], int]) -> int:
        """Fill `part_L` as `read_part` does. Any process may call it that has made a `ClipCache` of the same folder."""
        return self._read(entry, lambda: read_part(entry.target, part_L, start=start))

    def ahead(self, entries: Sequence[CachedClip]) -> Iterator[CachedClip]:
        return iter(entries)

    def _read(self, entry: CachedClip, read: Callable[[], Loaded]) -> Loaded:
        """What `read` returns; the clip is decoded once more where its file is evicted by another run, or damaged."""
        with suppress(OSError):
            os.utime(entry.target)  # recently used, so evicted last
        try:
            return read()
        except (FileNotFoundError, ValueError, EOFError):
            with self._lock():
                entry.target.unlink(missing_ok=True)
                result = self._decode_to_cache(entry)
            if isinstance(result, QuarantinedClip):
                raise OSError(
                    f"clip {entry.clip.clip_id} is gone from data.cache = {str(self.folder)!r}, and cannot be decoded "
                    f"again: {entry.uri}: {result.reason}"
                ) from None
            return read()

    def _lock(self) -> filelock.BaseFileLock:
        return filelock.FileLock(self.folder / "writer.lock")

    def _make_entry(self, clip: Clip, data: Data, opener: Opener) -> CachedClip | QuarantinedClip:
        """The entry of one clip; the name of its file changes with the content of the audio, the rate and FORMAT."""
        files = files_of(clip, data, opener)
        # of a computed clip the path holds everything that the sound depends on, beside these files
        uri = clip.path if data.format in COMPUTED else files[0]
        try:
            identity = "\n".join(map(opener.identity, files))
        except OSError as error:
            if not is_fault_of_the_file(error):
                raise _named(error, " and ".join(files)) from error
            return QuarantinedClip(clip.clip_id, clip.path, unreadable(error))
        key = hashlib.sha256(json.dumps([uri, identity, self.rate, FORMAT]).encode()).hexdigest()
        return CachedClip(clip, uri, self.folder / f"{key}.npy", data, opener)

    def _decode_to_cache(self, entry: CachedClip | QuarantinedClip) -> CachedClip | QuarantinedClip:
        """Store one clip unless it is stored; for a broken one, write a failure record beside its target instead.

        Called with the lock held.
        """
        if isinstance(entry, QuarantinedClip):
            return entry
        failure_record = entry.target.with_suffix(".json")
        if entry.target.exists() and self._index.get(entry.key) is not None:
            os.utime(entry.target)  # recently used, so evicted last
            return entry
        if failure := _read_json(failure_record, _FailureRecord):
            return entry.quarantined(failure["reason"])
        try:
            sound = self._decode(entry)
        except NotReadHere as error:  # it may be read after an installation: no failure record
            return entry.quarantined(str(error))
        except BrokenClip as error:
            quarantined = entry.quarantined(str(error))
            replace_bytes(failure_record, json_text(asdict(quarantined)).encode())
            return quarantined
        except OSError as error:  # it may become readable: no failure record
            if not is_fault_of_the_file(error):
                raise _named(error, entry.uri) from error
            return entry.quarantined(unreadable(error))
        try:
            self._index.add(entry.key, DecodedClip(len(sound.x_T), self.rate, sound.own_rate, sound.notes))
            replace_bytes(entry.target, to_file(sound.x_T))
        except OSError as error:
            raise _named(error, f"data.cache = {str(self.folder)!r}; free space there, or choose another") from error
        return entry

    def _decode(self, entry: CachedClip) -> Sound:
        if entry.data.format in COMPUTED:
            return compute(entry.clip, entry.data, self.rate, entry.opener)
        with entry.opener.open(entry.uri) as file:
            return load_sound(file, rate=self.rate)


class _CacheSpace:
    """Keeps the bytes in the folder below the limit: counts the needed files and evicts the others, least recently used
    first."""

    def __init__(self, folder: Path, needed: Sequence[Path], *, limit_gb: float) -> None:
        self.limit_gb = limit_gb
        self.num_needed = len(needed)
        self.num_stored = self.stored_bytes = 0  # of the needed files
        keep = {path.name for path in needed}
        with os.scandir(folder) as entries:
            others = [
                (entry.stat(), entry.path)
                for entry in entries
                if entry.name.endswith(".npy") and entry.name not in keep
            ]
        others.sort(key=lambda other: other[0].st_mtime_ns)
        self.others = deque((stat.st_size, path) for stat, path in others)
        self.other_bytes = sum(size for size, _ in self.others)

    def add(self, needed: Path) -> None:
        """Count a needed file, then evict others; ValueError if the needed ones alone are above the limit."""
        self.num_stored += 1
        self.stored_bytes += needed.stat().st_size
        if self.stored_bytes > self.limit_gb * 1e9:
            estimate_gb = self.stored_bytes / self.num_stored * self.num_needed / 1e9
            raise ValueError(
                f"data.cache_gb = {self.limit_gb}: {self.num_stored} of {self.num_needed} clips fill it; all need "
                f"about {estimate_gb:.3g} GB: --set data.cache_gb={estimate_gb * 1.1:.3g}, with data.cache on a "
                "disk that has room"
            )
        while self.others and self.stored_bytes + self.other_bytes > self.limit_gb * 1e9:
            size, path = self.others.popleft()
            os.unlink(path)
            self.other_bytes -= size


def _named(error: OSError, place: str) -> OSError:
    """The same error with the file or setting that it is about: no clip is at fault, and the command ends with it."""
    message = f"{error.strerror or error}: {place}"
    return OSError(message) if error.errno is None else OSError(error.errno, message)


def _read_json(path: Path, shape: Any) -> Any:
    """What a file of the cache holds; None where there is none, or where it is damaged: it is made again."""
    try:
        return parse_json(path.read_bytes(), str(path), shape)
    except (FileNotFoundError, ValueError):
        return None
