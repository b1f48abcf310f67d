"""The event log: everything that a run records, one JSON object per line in a local file.

Owns the form of a line and how it is written. Does not depend on its readers: the replayer sends the records to
MLflow, the report draws them, and a copy travels with the checkpoints.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from workloads.runtime.json_files import Record, json_text, parse_json
from workloads.runtime.opener import read_own_file, require_own_file

EVENT_LOG = "events.jsonl"  # in a run's folder; in a checkpoint, the records up to that step
RECORD_KINDS = (
    *("run", "start", "data", "replaced", "phase", "metrics", "timings", "cost", "bad", "checkpoint", "machine"),
    *("workers", "worker-failed", "leaving", "resizing", "profiles", "mistakes"),
    *("result", "comparison", "closed", "end"),
)
DURABLE_KINDS = (
    "run",
    "start",
    "replaced",
    "bad",
    "checkpoint",
    "result",
    "comparison",
    "closed",
    "end",
)  # survive a power cut; 1.4 ms each


def timestamped(kind: str, **fields: Any) -> dict[str, Any]:
    """A record of an event that happens now: `t` is in milliseconds since the epoch and is never changed afterwards."""
    return {"kind": kind, "t": time.time_ns() // 1_000_000, **fields}


class EventLog:
    """Appends records to one file; 3.8 us per record (reference/storage.md 2.1).

    Several threads and processes of a machine may have the file open and append to it: a line is written by one call
    in append mode. After `append` has returned, the record survives a kill of the process, and of `DURABLE_KINDS` also
    a power cut. A kill within `append` leaves at most one torn line at the end: `read_event_log` leaves it out, and the
    next process that opens the file cuts it off.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        self.path = path
        self._file = path.open("ab")

    def append(self, record: dict[str, Any]) -> None:
        """Write one record, without secrets; one without a time `t` gets the current time."""
        assert record["kind"] in RECORD_KINDS, record["kind"]
        line = record if "t" in record else timestamped(**record)
        self._file.write(json_text(line).encode() + b"\n")
        self._file.flush()
        if record["kind"] in DURABLE_KINDS:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; every record has been written already."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def end_of(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The `end` record of the last attempt, None where it has none yet; records of other processes may follow it.

    Records with a `child` are those of a search's trials.
    """
    last = [record for record in records if record["kind"] in ("run", "end") and "child" not in record][-1:]
    return last[0] if last and last[0]["kind"] == "end" else None


def read_event_log(path: Path) -> list[dict[str, Any]]:
    """All records in order, also while another process appends.

    A torn last line is left out; any other line that is not JSON raises ValueError, as does a folder or a pipe.
    """
    return parse_event_log(read_own_file(path), str(path))


def parse_event_log(content: bytes, name: str) -> list[dict[str, Any]]:
    """The records of an event log's content; `name` is what errors call it."""
    return [
        parse_line(line, f"{name}, line {number}") for number, line in enumerate(content.split(b"\n")[:-1], start=1)
    ]


def parse_line(line: bytes, name: str) -> dict[str, Any]:
    """One record; ValueError where the line holds none."""
    try:
        return parse_json(line, name, Record)
    except ValueError as error:
        raise ValueError(f"{error}; delete that line to read the rest") from None


def _drop_torn_line(path: Path) -> None:
    """Cut off what a killed process left after the last complete line; the next record would continue that line."""
    if not path.exists():
        return
    with require_own_file(path).open("r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):  # else leave the file alone: another process may be appending
            file.truncate(content.rfind(b"\n") + 1)
