"""The spool: everything a run has to say, one JSON object per line in a local file.

Owns the form of a line and how it gets onto the disk. Does not know who reads it: the replayer sends it to MLflow,
the report draws it, and it travels with the checkpoints.
"""

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

KINDS = ("run", "start", "data", "phase", "metrics", "bad", "checkpoint", "machine", "result", "closed", "end")
DURABLE = ("run", "start", "bad", "checkpoint", "result", "closed", "end")  # survive a power cut; 1.4 ms each


def stamped(kind: str, **fields: Any) -> dict[str, Any]:
    """A record of something that happens now: `t` is in milliseconds since the epoch, taken once and never again."""
    return {"kind": kind, "t": time.time_ns() // 1_000_000, **fields}


class EventLog:
    """Appends records to one file; 3.8 us a record (reference/storage.md 2.1).

    Several processes may have it open: a line is written by one call in append mode.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        self.path = path
        self._file = path.open("ab")

    def append(self, record: dict[str, Any]) -> None:
        """Write one record; one that is not `stamped` yet gets its time now."""
        assert record["kind"] in KINDS, record["kind"]
        line = record if "t" in record else stamped(**record)
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        if record["kind"] in DURABLE:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; nothing is buffered, so a killed writer loses at most the line it was writing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_event_log(path: Path) -> list[dict[str, Any]]:
    """All records in order. A torn last line is left out; any other broken line raises ValueError."""
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_parsed(path, number, line) for number, line in enumerate(lines, start=1)]


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:
        raise ValueError(
            f"{path}, line {number}: {line[:60]!r} is not JSON; delete that line to read the rest"
        ) from None
    return record


def _drop_torn_line(path: Path) -> None:
    """Cut what a killed writer left behind its last whole line, or the next record would be glued to it."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):  # else leave it alone: somebody may be appending
            file.truncate(content.rfind(b"\n") + 1)
