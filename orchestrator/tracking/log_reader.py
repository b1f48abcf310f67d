"""Reading an event log while it is written, and sending its records until the destination has all of them.

Contract: runs in the replayer process, or in that of `antiphon track replay`; a lock file beside the log, which the
caller holds, keeps the two apart. Records are sent in order and at least once: the position is saved in a file beside
the log after the destination has taken a batch, so that after a kill in between the next process sends that batch
again. Destinations must therefore be idempotent.

Depends neither on MLflow nor on what the records mean.
"""

import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import psutil
from annotated_types import Interval
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from workloads.runtime.atomic_files import replace_text
from workloads.runtime.json_files import Record, json_text, parse_json

POLL_S = 0.3
RETRY_S = 2.0
BATCH_LINES = 200  # lines between two saved positions


class TrackingUnavailable(Exception):
    """The destination did not store what it was sent; try again later."""


class TrackingRefused(TrackingUnavailable):
    """The destination answered that it will not: wrong credentials, no such address on its server."""


class Destination(Protocol):
    """Where records go. Both methods are safe to repeat and raise TrackingUnavailable."""

    def log_records(self, records: Sequence[dict[str, Any]]) -> None:
        """Store these records; those that are stored already stay as they are."""
        ...

    def mark_killed(self, end_ms: int) -> None:
        """Record that the driver ended at `end_ms` (milliseconds since the epoch) without an `end` record."""
        ...


@dataclass(frozen=True, kw_only=True)
class Writer:
    """The process that writes the event log; its start time is compared too, since pids are reused."""

    pid: int  # 0: no process writes the log any more
    started: float  # seconds since the epoch

    def has_exited(self) -> bool:
        """Whether the process has ended, or is a zombie."""
        try:
            process = psutil.Process(self.pid) if self.pid else None
            if process is None or process.status() == psutil.STATUS_ZOMBIE:
                return True
            return abs(process.create_time() - self.started) > 2.0
        except psutil.NoSuchProcess:
            return True


class _Offset(TypedDict):
    """The file beside an event log that holds how far its records were sent."""

    whom: str
    start: Annotated[int, Interval(ge=0, lt=2**62)]
    end: Annotated[int, Interval(ge=0, lt=2**62)]
    sha256: str


class Cursor:
    """A position in an event log: the destination `destination_id` has acknowledged every line before it."""

    def __init__(self, event_log: Path, destination_id: str) -> None:
        self.event_log = event_log
        self.destination_id = destination_id
        self.file = event_log.with_name(event_log.name + ".offset")
        self.start = 0  # of the last acknowledged line, in bytes
        self.end = 0
        self.last: dict[str, Any] = {}  # the last acknowledged record
        self._end_record_at = -1  # where the last acknowledged `end` record begins, unless a `run` record follows

    def resume(self) -> None:
        """Move to the saved position if it belongs to this log and destination; else stay at the beginning."""
        if not self.file.exists():
            return
        try:
            saved = parse_json(self.file.read_bytes(), str(self.file), _Offset)
        except ValueError as error:  # sent again, what is stored stays
            log_line(f"sending from the beginning: {error}")
            return
        with self.event_log.open("rb") as file:
            file.seek(saved["start"])
            line = file.read(saved["end"] - saved["start"])
        # a log fetched from a bucket may have other lines here than the one whose position was saved
        if saved["whom"] == self.destination_id and saved["sha256"] == hashlib.sha256(line).hexdigest():
            self.start, self.end, self.last = saved["start"], saved["end"], _parse(line) or {}
            with self.event_log.open("rb") as file:
                self._end_record_at = _end_record_at(file.read(self.end).splitlines(keepends=True), 0, -1)

    def read_lines(self, limit: int) -> list[bytes]:
        """Up to `limit` whole lines after the position; a last line without newline is still being written."""
        lines: list[bytes] = []
        with self.event_log.open("rb") as file:
            file.seek(self.end)
            while len(lines) < limit and (line := file.readline()).endswith(b"\n"):
                lines.append(line)
        return lines

    def log_has_ended(self, old_bytes: int) -> bool:
        """Whether there is an `end` record after the first `old_bytes` bytes; a late record may follow it."""
        return _end_record_at(self.read_lines(sys.maxsize), self.end, self._end_record_at) >= old_bytes

    def acknowledge(self, lines: list[bytes]) -> None:
        """Move past `lines` and save the position."""
        self._end_record_at = _end_record_at(lines, self.end, self._end_record_at)
        self.end += sum(map(len, lines))
        self.start = self.end - len(lines[-1])
        self.last = _parse(lines[-1]) or self.last
        digest = hashlib.sha256(lines[-1]).hexdigest()
        position = {"whom": self.destination_id, "start": self.start, "end": self.end, "sha256": digest}
        replace_text(self.file, json_text(position))


def replay_until_complete(
    cursor: Cursor, destination: Destination, *, writer: Writer, old_bytes: int, grace_s: float
) -> int:
    """Send records until the log is complete. Exit code: 0 all sent, 3 gave up `grace_s` after it was complete.

    Complete: the log ends with an `end` record after its first `old_bytes` bytes (one before that belongs to an earlier
    attempt), or its writer has exited. While the destination is unavailable, it retries every RETRY_S seconds.
    """
    unavailable = False
    complete_since: float | None = None
    while True:
        exited = writer.has_exited()  # checked before reading, so that the writer's last records are read
        try:
            send_pending(cursor, destination)
            if exited and not cursor.log_has_ended(0):
                destination.mark_killed(cursor.last["t"])
            if unavailable:
                log_line("sending again")
            unavailable, complete_since = False, None
            if exited or cursor.log_has_ended(old_bytes):
                return 0
            time.sleep(POLL_S)
        except TrackingUnavailable as error:
            if not unavailable:
                log_line(f"not delivered, trying again: {error}")
            unavailable = True
            if complete_since is None and (exited or cursor.log_has_ended(old_bytes)):
                complete_since = time.monotonic()
            if complete_since is not None and time.monotonic() - complete_since >= grace_s:
                return 3
            time.sleep(RETRY_S)


def _end_record_at(lines: list[bytes], start: int, before: int) -> int:
    """Where the last `end` record begins, after lines that begin at `start`; -1 where a `run` record follows it."""
    for line in lines:
        record = (_parse(line) or {}) if b'"end"' in line or b'"run"' in line else {}
        if "child" not in record:  # of a search's trial
            before = {"end": start, "run": -1}.get(record.get("kind", ""), before)
        start += len(line)
    return before


def send_pending(cursor: Cursor, destination: Destination, *, as_one_batch: bool = False) -> None:
    """Send every record that is in the log now. Raises TrackingUnavailable; acknowledged batches stay acknowledged."""
    while lines := cursor.read_lines(sys.maxsize if as_one_batch else BATCH_LINES):
        records = [_parse(line) for line in lines]
        destination.log_records([record for record in records if record is not None])
        cursor.acknowledge(lines)


def log_line(text: str) -> None:
    """Print one dated line to stderr, which is the replayer's log file."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = parse_json(line, f"{line[:60]!r}", Record)
        return record
    except ValueError as error:  # one damaged line must not keep the others from being sent
        log_line(f"skipped a line that is no record: {error}")
        return None
