"""How workloads read files: through an opener, so that this package does not depend on an object store."""

import os
from pathlib import Path
from typing import BinaryIO, Protocol


class Opener(Protocol):
    """Opens URIs; the orchestrator passes in one for object stores."""

    def open(self, uri: str) -> BinaryIO:
        """The file at `uri`, opened for reading bytes; raises FileNotFoundError where there is none."""
        ...

    def identity(self, uri: str) -> str:
        """A string that changes whenever the content does; raises FileNotFoundError where there is no file."""
        ...

    def join(self, root: str, path: str) -> str:
        """The URI of `path` under `root`; an absolute `path` is returned unchanged."""
        ...


class LocalFiles:
    """Opens paths of this machine; `~` is the home folder."""

    def open(self, uri: str) -> BinaryIO:
        return Path(uri).expanduser().open("rb")

    def identity(self, uri: str) -> str:
        stat = Path(uri).expanduser().stat()
        return f"{stat.st_size}-{stat.st_mtime_ns}"

    def join(self, root: str, path: str) -> str:
        return os.path.join(root, path)
