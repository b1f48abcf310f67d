"""The archives of a packed data set as local files: read where they are, or fetched whole from a store and kept.

Does not depend on what is in them.
"""

import hashlib
import io
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import filelock

from workloads.data.pack import ARCHIVES, ArchiveFields, Manifest, archive_uri
from workloads.runtime.atomic_files import UNFINISHED, replacing
from workloads.runtime.opener import Opener, regular_file

FETCHED = "packed"  # below data.cache: a folder for each pack, in it one for each archive
CHUNK = 2**22  # bytes hashed and written at a time
MAX_FETCHES = 8  # archives that a process fetches at once
MAX_FETCHED_BYTES = 2**29  # of them in memory


class Archives(Protocol):
    """The archives of one pack, by number."""

    def open(self, number: int) -> io.FileIO:
        """An archive, opened for reading without a buffer; raises OSError where it cannot be had."""
        ...

    def ahead(self, numbers: Sequence[int]) -> Iterator[int]:
        """These numbers in their order; the archives of the next ones may be fetched meanwhile. OSError as `open`."""
        ...

    def mend(self, number: int) -> None:
        """Fetch an archive again where this machine's copy of it is damaged; OSError as `open`."""
        ...


@dataclass(frozen=True)
class LocalArchives:
    """Archives on a disk of this machine."""

    folder: Path
    manifest: Manifest

    def open(self, number: int) -> io.FileIO:
        path = self.folder / ARCHIVES / self.manifest["archives"][number]["name"]
        return regular_file(path).open("rb", buffering=0)

    def ahead(self, numbers: Sequence[int]) -> Iterator[int]:
        return iter(numbers)

    def mend(self, number: int) -> None:
        """There is no other copy."""


@dataclass(frozen=True)
class FetchedArchives:
    """Archives of a store, each copied whole to a local folder when one of its clips is first read.

    Any number of processes of a node may use one folder. An archive is fetched under its own lock, by one process while
    the others that want it wait; it is compared with its checksum and appears complete or not at all. A kill leaves a
    `.part` file, which the next fetch of the archive removes. A copy that was damaged since, as a crash of the machine
    may leave it, is fetched again when that is noticed. Above the limit those read least recently are removed, of
    all packs in the folder; a process that is reading one goes on reading it.
    """

    root: str
    opener: Opener
    manifest: Manifest
    digest: str  # of the manifest: names the pack's folder
    cache: Path  # data.cache
    limit_gb: float

    def open(self, number: int) -> io.FileIO:
        return self._opened(self._target(number)) or self._fetched(number)

    def ahead(self, numbers: Sequence[int]) -> Iterator[int]:
        """These numbers in their order; what is missing is fetched meanwhile, in threads that end with the iteration.

        So many at once, counted from the one that is waited for, that they fit into memory, and into half of the limit:
        else one could be removed before it is read.
        """
        missing = deque(number for number in dict.fromkeys(numbers) if not self._target(number).exists())
        largest = max((self._archive(number)["bytes"] for number in missing), default=1)
        at_once = int(min(MAX_FETCHES, MAX_FETCHED_BYTES // largest, self.limit_gb * 1e9 / 2 // largest, len(missing)))
        if at_once < 2:
            yield from numbers
            return
        fetched: dict[int, Future[None]] = {}
        threads = ThreadPoolExecutor(at_once, thread_name_prefix="fetch")
        try:
            for number in numbers:
                while missing and len(fetched) < at_once:
                    following = missing.popleft()
                    fetched[following] = threads.submit(self._fetch, following)
                if number in fetched:
                    fetched.pop(number).result()
                yield number
        finally:
            threads.shutdown(cancel_futures=True)

    def mend(self, number: int) -> None:
        target = self._target(number)
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.parent / "fetch.lock"):
            if file := self._opened(target):
                with file:
                    damaged = hashlib.file_digest(file, "sha256").hexdigest() != self._archive(number)["sha256"]
                if damaged:
                    target.unlink(missing_ok=True)
        self.open(number).close()

    def _archive(self, number: int) -> ArchiveFields:
        return self.manifest["archives"][number]

    def _fetch(self, number: int) -> None:
        self.open(number).close()

    def _target(self, number: int) -> Path:
        name = self._archive(number)["name"]
        return self.cache / FETCHED / self.digest[:16] / name.removesuffix(".tar") / name

    def _opened(self, target: Path) -> io.FileIO | None:
        try:
            file = target.open("rb", buffering=0)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with suppress(FileNotFoundError):  # removed meanwhile: the open file stays readable
            os.utime(target)  # recently used, so removed last
        return file

    def _fetched(self, number: int) -> io.FileIO:
        target = self._target(number)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._named(error) from error
        with filelock.FileLock(target.parent / "fetch.lock"):
            if found := self._opened(target):
                return found
            for left_over in target.parent.glob(f"*{UNFINISHED}"):
                left_over.unlink()
            self._copy(number, target)
            file = target.open("rb", buffering=0)  # before another process may remove it
        with filelock.FileLock(self.cache / FETCHED / "space.lock"):
            self._make_space(target)
        return file

    def _copy(self, number: int, target: Path) -> None:
        archive = self._archive(number)
        uri, digest = archive_uri(self.root, archive["name"], self.opener), hashlib.sha256()
        try:
            source = self.opener.open(uri)
        except FileNotFoundError:
            raise OSError(f"{uri}: the archive is gone; pack the data set again") from None
        with source, replacing(target) as file:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                try:
                    file.write(chunk)
                except OSError as error:
                    raise self._named(error) from error
            if digest.hexdigest() != archive["sha256"]:
                raise OSError(f"{uri}: differs from its checksum; `antiphon data verify` names every such archive")

    def _named(self, error: OSError) -> OSError:
        place = f"data.cache = {str(self.cache)!r}; free space there, or choose another"
        return OSError(error.errno, f"{error.strerror}: {place}")

    def _make_space(self, fetched: Path) -> None:
        """Remove other archives, least recently read first, until the limit holds."""
        found = []
        for path in (self.cache / FETCHED).glob("*/*/*.tar"):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit_gb * 1e9:
                return
            if path != fetched:
                path.unlink(missing_ok=True)
                total -= size
