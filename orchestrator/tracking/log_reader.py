"""Following a spool: what was read, what was acknowledged, when to stop.

Knows neither MLflow nor what the records mean: it hands them to a destination (`tracking.py`) until that has taken
all of them. The place is kept in a file beside the spool, so a killed replayer goes on where it was.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

POLL_S = 0.3
RETRY_S = 2.0
LINES = 200  # records between two acknowledgements


class TrackingUnavailable(Exception):
    """The destination did not take what it was given; try again later."""


class Destination(Protocol):
    """Where records go. `accept` may be repeated with the same records; both raise TrackingUnavailable."""

    def accept(self, records: Sequence[dict[str, Any]]) -> None: ...

    def lost_writer(self, end_ms: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Writer:
    """The process that writes the spool; a pid alone may have been given to somebody else since."""

    pid: int
    started: float  # seconds since the epoch

    def gone(self) -> bool:
        """Whether it has ended; pid 0 stands for a spool that nobody writes any more."""
        try:
            process = psutil.Process(self.pid) if self.pid else None
            if process is None or process.status() == psutil.STATUS_ZOMBIE:
                return True
            return abs(process.create_time() - self.started) > 2.0
        except psutil.NoSuchProcess:
            return True


class Cursor:
    """A place in a spool: everything before it was acknowledged by the destination called `whom`."""

    def __init__(self, event_log: Path, whom: str) -> None:
        self.event_log = event_log
        self.whom = whom
        self.file = event_log.with_name(event_log.name + ".offset")
        self.start = 0  # of the last acknowledged line, in bytes
        self.end = 0
        self.last: dict[str, Any] = {}  # the last acknowledged record

    def resume(self) -> None:
        """Go to the saved place, if it is one of this very file and destination; else stay at the beginning."""
        if not self.file.exists():
            return
        saved = json.loads(self.file.read_text())
        with self.event_log.open("rb") as file:
            file.seek(saved["start"])
            line = file.read(saved["end"] - saved["start"])
        # a spool fetched from a bucket may have other lines here than the one whose place was saved
        if saved["whom"] == self.whom and saved["sha256"] == hashlib.sha256(line).hexdigest():
            self.start, self.end, self.last = saved["start"], saved["end"], _record(line) or {}

    def ahead(self, limit: int) -> list[bytes]:
        """Up to `limit` whole lines behind the place; a torn last line is waited for."""
        lines: list[bytes] = []
        with self.event_log.open("rb") as file:
            file.seek(self.end)
            while len(lines) < limit and (line := file.readline()).endswith(b"\n"):
                lines.append(line)
        return lines

    def ended(self, old_bytes: int) -> bool:
        """Whether the file ends with an `end` record that begins behind its first `old_bytes` bytes."""
        lines = self.ahead(sys.maxsize)
        if not lines:
            return self.last.get("kind") == "end" and self.start >= old_bytes
        start = self.end + sum(map(len, lines)) - len(lines[-1])
        return (_record(lines[-1]) or {}).get("kind") == "end" and start >= old_bytes

    def acknowledge(self, lines: list[bytes]) -> None:
        """Move behind `lines` and save the place: temporary file, then rename."""
        self.end += sum(map(len, lines))
        self.start = self.end - len(lines[-1])
        self.last = _record(lines[-1]) or self.last
        digest = hashlib.sha256(lines[-1]).hexdigest()
        place = {"whom": self.whom, "start": self.start, "end": self.end, "sha256": digest}
        temporary = self.file.with_name(self.file.name + ".tmp")
        temporary.write_text(json.dumps(place))
        os.replace(temporary, self.file)


def follow(cursor: Cursor, destination: Destination, *, writer: Writer, old_bytes: int, grace_s: float) -> int:
    """Deliver until the spool is complete. Exit code: 0 all delivered, 3 gave up `grace_s` after it was complete.

    Complete: it ends with an `end` record behind its first `old_bytes` bytes (an earlier one belongs to an earlier
    attempt), or its writer is gone.
    """
    away = False
    complete_since: float | None = None
    while True:
        gone = writer.gone()  # asked before reading, so that what it wrote last is seen
        try:
            deliver(cursor, destination)
            if gone and cursor.last["kind"] != "end":
                destination.lost_writer(cursor.last["t"])
            if away:
                say("delivering again")
            away, complete_since = False, None
            if gone or cursor.ended(old_bytes):
                return 0
            time.sleep(POLL_S)
        except TrackingUnavailable as error:
            if not away:
                say(f"not delivered, trying again: {error}")
            away = True
            if complete_since is None and (gone or cursor.ended(old_bytes)):
                complete_since = time.monotonic()
            if complete_since is not None and time.monotonic() - complete_since >= grace_s:
                return 3
            time.sleep(RETRY_S)


def deliver(cursor: Cursor, destination: Destination, *, at_once: bool = False) -> None:
    """Hand over everything that is there. Raises TrackingUnavailable; what was acknowledged before stays so."""
    while lines := cursor.ahead(sys.maxsize if at_once else LINES):
        records = [_record(line) for line in lines]
        destination.accept([record for record in records if record is not None])
        cursor.acknowledge(lines)


def say(text: str) -> None:
    """One dated line on stderr, which is the replayer's log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:  # a damaged disk must not keep the rest from being delivered
        say(f"skipped a line that is not JSON: {line[:60]!r}")
        return None
    return record
