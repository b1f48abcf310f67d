"""A hidden folder beside what a command writes, in which it is finished before it appears under its name.

Beside it, because only within one file system is a folder moved in one step. Contract: entered in the main thread; a
command that ends by an error, Ctrl-C or SIGTERM removes its folder, one that was killed (SIGKILL) leaves it.
"""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


@contextmanager
def draft_folder(parent: Path) -> Iterator[Path]:
    """An empty hidden folder in `parent`, removed at the end."""
    with _ended_by_sigterm(), tempfile.TemporaryDirectory(dir=parent, prefix=".export-") as folder:
        yield Path(folder)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the process through its `finally` blocks, with the status that a shell gives a terminated
    process."""

    def end(which: int, _: FrameType | None) -> None:
        raise SystemExit(128 + which)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
