"""The files of one column of a store, open for reading single rows: in place where they are local, else as copies.

Contract: one thread uses an object, which has threads of its own only while `prepare` runs. Copies lie in a folder
under the SHA-256 of their content, so any number of processes and stores may share it; a kill leaves what
`atomic_files.py` says, and a damaged copy is made again. Each file is read whole and checked once in a process, when it
is first needed.
"""

import io
import os
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from workloads.runtime.atomic_files import replace_bytes
from workloads.runtime.opener import read_own_file
from workloads.stores.store import Store, open_file

THREADS = 8  # that copy and check files at once: a store far away answers each after some time
OPEN_FILES = 256  # at once, of one column; a process may usually have 1024


class ShardFiles:
    """Reads rows, as bytes, of the shards of one column."""

    def __init__(self, store: Store, column: str, copies: Path) -> None:
        self._store, self._column, self._copies = store, column, copies
        self._row_bytes = store.codec(column).row_bytes
        shards = store.manifest["shards"]
        self._clips = [shard["clips"] for shard in shards]
        rows = np.array(self._clips, np.int64) * store.num_views
        sizes = np.array([shard["files"][column]["bytes"] for shard in shards], np.int64)
        self._starts = sizes - rows * self._row_bytes  # rows end a file; a header of some bytes is before them
        self._checked = np.zeros(len(shards), bool)
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    def prepare(self, shards: Iterable[int]) -> None:
        """Check the files of these shards, several at once; the same errors as when they are read."""
        new = [shard for shard in shards if not self._checked[shard]]
        if len(new) < 2:
            return
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(new), OPEN_FILES):  # so that no more files are open than will be kept
                some = new[start : start + OPEN_FILES]
                for shard, file in zip(some, pool.map(self._open_checked, some), strict=True):
                    self._keep_open(shard, file)

    def block(self, shard: int, view: int) -> NDArray[np.uint8]:
        """The rows of one view of a shard's clips: (clips, row_bytes)."""
        clips = self._clips[shard]
        content = self._read(shard, view * clips, clips)
        return np.frombuffer(content, np.uint8).reshape(clips, self._row_bytes)

    def row(self, shard: int, view: int, place: int) -> bytes:
        """The row of one view of the clip at this place in a shard."""
        return self._read(shard, view * self._clips[shard] + place, 1)

    def _read(self, shard: int, row: int, count: int) -> bytes:
        size = count * self._row_bytes
        content = os.pread(self._file(shard), size, int(self._starts[shard]) + row * self._row_bytes)
        if len(content) < size:
            uri = self._store.shard_uri(self._column, shard)
            raise ValueError(f"{uri}: was cut short after it was checked; stores are immutable, copy it again")
        return content

    def _file(self, shard: int) -> int:
        """The descriptor of a shard's open file, which has been checked."""
        file = self._open.get(shard)
        if file is None:
            file = self._open_checked(shard)
            self._keep_open(shard, file)
        else:
            self._open.move_to_end(shard)
        return file.fileno()

    def _keep_open(self, shard: int, file: BinaryIO) -> None:
        self._open[shard] = file
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()

    def _open_checked(self, shard: int) -> BinaryIO:
        uri = self._store.shard_uri(self._column, shard)
        copy = self._copies / self._store.manifest["shards"][shard]["files"][self._column]["sha256"]
        if copy.is_file() and (self._checked[shard] or self._is_sound(shard, read_own_file(copy))):
            return copy.open("rb")
        file = open_file(uri, self._store.opener)
        if _has_descriptor(file) and self._checked[shard]:
            return file
        content = file.read()
        self._store.parse_shard(self._column, shard, content)
        self._checked[shard] = True
        if _has_descriptor(file):
            return file
        copy.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(copy, content)
        return copy.open("rb")

    def _is_sound(self, shard: int, content: bytes) -> bool:
        """Whether a copy is whole; one that is not is fetched again."""
        try:
            self._store.parse_shard(self._column, shard, content)
        except ValueError:
            return False
        self._checked[shard] = True
        return True

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


def _has_descriptor(file: BinaryIO) -> bool:
    """Whether it is a file of this machine, not its content in memory."""
    try:
        file.fileno()
    except io.UnsupportedOperation:
        return False
    return True
