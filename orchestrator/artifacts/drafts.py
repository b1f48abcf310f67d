"""A hidden folder beside what a command writes, in which it is finished before it appears under its name.

Beside it, because only within one file system is a folder moved in one step. Contract: entered in the main thread; a
command that ends by an error, Ctrl-C, SIGTERM or SIGHUP removes its folder, one that was killed (SIGKILL) leaves it.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workloads.runtime.exit_signals import exit_on_signals


@contextmanager
def draft_folder(parent: Path) -> Iterator[Path]:
    """An empty hidden folder in `parent`, removed at the end."""
    with exit_on_signals(), tempfile.TemporaryDirectory(dir=parent, prefix=".export-") as folder:
        yield Path(folder)
