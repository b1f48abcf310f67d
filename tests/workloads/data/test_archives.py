"""Archives of a store are fetched several at once, up to a bound, and read in order; an error names the archive."""

import hashlib
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from workloads.data.archives import MAX_FETCHES, FetchedArchives
from workloads.runtime.opener import LocalFiles

NUM, SIZE = 24, 1000
CONTENT = [bytes([number]) * SIZE for number in range(NUM)]


class GatedFiles(LocalFiles):
    """Lets files be opened once so many of them are asked for at the same time."""

    def __init__(self, parties: int) -> None:
        self._together = threading.Barrier(parties, timeout=30)
        self.opened: list[str] = []

    def open(self, uri: str) -> BinaryIO:
        self.opened.append(Path(uri).name)
        self._together.wait()
        return super().open(uri)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store" / "archives").mkdir(parents=True)
    for number, content in enumerate(CONTENT):
        (tmp_path / "store" / "archives" / f"{number:05}.tar").write_bytes(content)
    return tmp_path / "store"


def archives_of(store: Path, files: LocalFiles, *, limit: int = NUM * SIZE * 4) -> FetchedArchives:
    """With so many bytes as limit."""
    listed = [
        {"name": f"{number:05}.tar", "bytes": SIZE, "sha256": hashlib.sha256(content).hexdigest()}
        for number, content in enumerate(CONTENT)
    ]
    manifest: Any = {"archives": listed}
    return FetchedArchives(str(store), files, manifest, "d1", store.parent / "cache", limit / 1e9)


@pytest.mark.parametrize(("limit", "at_once"), [(NUM * SIZE * 4, MAX_FETCHES), (8 * SIZE, 4), (3 * SIZE, 1)])
def test_so_many_are_fetched_at_once_as_the_bounds_allow(store: Path, limit: int, at_once: int) -> None:
    """Half of a small cache is kept for those that are not read yet. Each is fetched once, and all come in order."""
    files, order = GatedFiles(at_once), [*reversed(range(NUM))]
    archives = archives_of(store, files, limit=limit)
    read: list[bytes] = []
    for number in archives.ahead(order):
        assert len(files.opened) <= len(read) + at_once
        with archives.open(number) as file:
            read.append(file.read())
    assert read == [CONTENT[number] for number in order]
    assert sorted(files.opened) == [f"{number:05}.tar" for number in range(NUM)]


def test_what_is_there_is_not_fetched_again_and_an_error_names_the_archive(store: Path) -> None:
    files = GatedFiles(1)
    archives = archives_of(store, files)
    archives.open(5).close()
    (store / "archives" / "00006.tar").write_bytes(b"other bytes")
    (store / "archives" / "00009.tar").unlink()
    read = archives.ahead([4, 5, 6, 9])
    assert [next(read), next(read)] == [4, 5]
    with pytest.raises(OSError, match=r"store/archives/00006\.tar: differs from its checksum"):
        next(read)
    read = archives.ahead([9, 10])
    with pytest.raises(OSError, match=r"store/archives/00009\.tar: the archive is gone"):
        next(read)
    assert files.opened.count("00005.tar") == 1
    assert list(archives.ahead([4, 5, 7, 8, 7])) == [4, 5, 7, 8, 7]
    assert files.opened.count("00004.tar") == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]
    (store / "file").write_text("")
    with pytest.raises(OSError, match=r"data.cache = '.*/file'; free space there, or choose another"):
        replace(archives, cache=store / "file").open(4)
