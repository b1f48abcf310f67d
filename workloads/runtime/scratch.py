"""Temporary folders of this project's processes; those that killed processes left are removed by the next one.

Contract: any number of processes of a user may open folders at once. Each holds a file lock on its own until it ends,
however it ends, so a folder whose lock can be taken belongs to nobody. One lock for all makes creating a folder, and
looking for abandoned ones, a single step.
"""

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"  # a folder's, beside it


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder of this process, removed at the end; a kill leaves it to the next process that opens one."""
    parent = private_folder(user_folder() / "scratch")
    with FileLock(parent / LOCK):
        _collect(parent)
        folder = parent / secrets.token_hex(8)
        own = FileLock(folder.with_suffix(LOCK))
        own.acquire()
        folder.mkdir(mode=0o700)  # after its lock: a folder without one would never be removed
    try:
        yield folder
    finally:
        _remove(folder)
        own.release()


def user_folder() -> Path:
    """This user's folder among the machine's temporary files; only its owner may enter it."""
    return private_folder(Path(tempfile.gettempdir()) / f"antiphon-{os.getuid()}")


def private_folder(folder: Path) -> Path:
    """A folder that only its owner may enter; created if missing. ValueError where it is another user's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ValueError(f"{folder}: must be your own folder, for temporary files; remove it, or set TMPDIR")
    folder.chmod(0o700)
    return folder


def _collect(parent: Path) -> None:
    """Remove the folders whose process has ended without removing them."""
    for lock in parent.glob(f"?*{LOCK}"):
        try:
            with FileLock(lock, blocking=False):
                _remove(lock.with_suffix(""))
        except Timeout:
            continue


def _remove(folder: Path) -> None:
    """Remove a folder and its lock, which this process holds; the lock last, so that a kill leaves both."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(LOCK).unlink(missing_ok=True)
