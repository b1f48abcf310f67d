"""How workloads read files: through an opener, so that this package does not depend on an object store."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Protocol

from workloads.runtime.checkpoint_store import MARKER, newest_delivered


class Opener(Protocol):
    """Opens URIs; the orchestrator passes in one for object stores.

    `open` and `identity` raise FileNotFoundError where there is no file, other OSErrors where it cannot be read.
    """

    def open(self, uri: str) -> BinaryIO:
        """The file at `uri`, opened for reading bytes."""
        ...

    def identity(self, uri: str) -> str:
        """A string that changes whenever the content does."""
        ...

    def files_below(self, uri: str) -> list[str]:
        """The paths of all files below a folder, at any depth, relative to it, separated by "/" and sorted.

        Raises FileNotFoundError where there is no such folder, on a store where nothing is below it.
        """
        ...

    def published_folder(self, uri: str) -> str:
        """The published folder that `uri` stands for: itself, or the newest attempt's within `RUN/models/NAME`.

        Raises ValueError where there is none.
        """
        ...

    def join(self, root: str, path: str) -> str:
        """The URI of `path` under `root`; an absolute `path` is returned unchanged."""
        ...


NOT_FOUND = "not found"  # the reason of a file that does not exist
PIPE_OR_DEVICE = "is a pipe or a device"


class NotAFile(OSError):
    """A folder, or a pipe or a device, which could be read for ever."""


FAULTS_OF_THE_FILE = tuple(
    getattr(errno, name) for name in ("ENOENT", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "ELOOP", "ENAMETOOLONG")
)


def regular_file(path: Path) -> Path:
    """The path itself; raises NotAFile where it is no file."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise NotAFile("is a folder" if path.is_dir() else PIPE_OR_DEVICE)
    return path


def read_own_file(path: Path) -> bytes:
    """The content of a local file that this project writes; ValueError where a folder, pipe or device has its name."""
    return require_own_file(path).read_bytes()


def require_own_file(path: Path) -> Path:
    """The path itself; ValueError where a folder, pipe or device has the name. FileNotFoundError where nothing has."""
    try:
        return regular_file(path)
    except NotAFile as error:
        raise ValueError(f"{path}: {error}, where a file of this name is expected; move it away") from None


def read_bounded(file: BinaryIO, most: int) -> bytes | None:
    """The whole content of a file that can be sought; None where it has more than `most` bytes.

    Asks for the size first: reading up to `most` bytes takes that much address space, whatever the file holds.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    content = file.read(size) if size <= most else b""
    return None if file.read(1) else content  # or it grows while it is read


def is_fault_of_the_file(error: OSError) -> bool:
    """Whether this file cannot be read; else the disk or the store cannot, and waiting may help."""
    return isinstance(error, NotAFile) or error.errno in FAULTS_OF_THE_FILE or isinstance(error, FileNotFoundError)


def unreadable(error: Exception) -> str:
    """Why a file could not be opened or heard, for people."""
    if isinstance(error, FileNotFoundError):
        return NOT_FOUND
    if isinstance(error, OSError):
        return str(error) if isinstance(error, NotAFile) else f"cannot be read ({error.strerror or error})"
    return str(error)


def local_files_below(folder: Path) -> list[str]:
    """The files below a folder, as `Opener.files_below` gives them; links to folders are followed, circles are not."""

    def fail(error: OSError) -> None:
        raise error  # os.walk would leave out what it cannot read

    found = []
    for parent, names, files in os.walk(folder, onerror=fail, followlinks=True):
        here = Path(parent)
        found += [(here / name).relative_to(folder).as_posix() for name in files]
        names[:] = [name for name in names if not _leads_up(here / name)]
    return sorted(found)


def _leads_up(folder: Path) -> bool:
    """Whether it is a link to a folder that it lies in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


class LocalFiles:
    """Opens paths of this machine; `~` is the home folder."""

    def open(self, uri: str) -> BinaryIO:
        return regular_file(Path(uri).expanduser()).open("rb")

    def identity(self, uri: str) -> str:
        status = regular_file(Path(uri).expanduser()).stat()
        return f"{status.st_size}-{status.st_mtime_ns}"

    def files_below(self, uri: str) -> list[str]:
        return local_files_below(Path(uri).expanduser())

    def published_folder(self, uri: str) -> str:
        folder = Path(uri).expanduser()
        if (folder / MARKER).is_file():
            return str(folder)
        newest = newest_delivered(marker.parent.name for marker in folder.glob(f"*/{MARKER}"))
        if newest is None:
            raise ValueError(f"{uri!r}: no {MARKER} there, so it does not exist or was never finished")
        return str(folder / newest)

    def join(self, root: str, path: str) -> str:
        return os.path.join(root, path)
