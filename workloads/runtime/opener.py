"""How workloads read files: through an opener, so that this package needs to know no object store."""

import os
from pathlib import Path
from typing import BinaryIO, Protocol

MARKER = "COMMITTED.json"  # the file that makes a folder a checkpoint, written last
HISTORY = "records.jsonl"  # in a checkpoint: everything the run has said up to there


class Opener(Protocol):
    """What opens URIs; the orchestrator injects one for object stores."""

    def open(self, uri: str) -> BinaryIO:
        """The file at `uri`, opened for reading bytes; raises FileNotFoundError where there is none."""
        ...

    def identity(self, uri: str) -> str:
        """A string that changes whenever the content does; raises FileNotFoundError where there is no file."""
        ...

    def join(self, root: str, path: str) -> str:
        """The URI of `path` under `root`; a path that is absolute stays as it is."""
        ...


class LocalFiles:
    """Plain paths of this machine; `~` is the home folder."""

    def open(self, uri: str) -> BinaryIO:
        return Path(uri).expanduser().open("rb")

    def identity(self, uri: str) -> str:
        stat = Path(uri).expanduser().stat()
        return f"{stat.st_size}-{stat.st_mtime_ns}"

    def join(self, root: str, path: str) -> str:
        return os.path.join(root, path)
