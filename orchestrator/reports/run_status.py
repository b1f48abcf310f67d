"""How one run or search is now, from what its folder or URI holds; read again and again while it is watched.

Does not depend on how it is shown (`cli/status.py`). Reads only. Where the storage is S3, the event log itself is on
the driver's machine, and published when a driver starts and ends; each checkpoint carries a copy of the records up to
its step, so from another machine the records are those of the newest checkpoint.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.reports.overview import RUNNING, Entry, read_entry
from orchestrator.reports.run_shapes import RECORDS, TimedRecord
from orchestrator.reports.search.snapshot import FAILED, SearchSnapshot, read_search
from orchestrator.runs.checkpoint_store import step_of
from orchestrator.runs.location import NAME, location_of
from orchestrator.runs.progress import EventLogTail, RunProgress
from orchestrator.runs.records import records_of
from orchestrator.storage import object_store
from orchestrator.storage.retry import retry_while_unavailable
from workloads.runtime.event_log import EVENT_LOG
from workloads.runtime.json_files import require_shape


@dataclass(frozen=True)
class Status:
    """A run or a search at one moment; what only the other of the two has is empty."""

    entry: Entry
    progress: RunProgress = field(default_factory=RunProgress)
    records: str = ""  # what the progress is from
    search: SearchSnapshot | None = None

    @property
    def alerts(self) -> list[str]:
        """What somebody should know, in order: of the records or the trials, then damaged files."""
        failed = self.search.of_status(FAILED) if self.search else []
        trials = [f"trial {trial.name} has failed: {trial.reason}" for trial in failed]
        return [*self.progress.alerts, *trials, *(f"left out: {problem}" for problem in self.entry.problems)]

    @property
    def seconds_per_step(self) -> float | None:
        """The mean of the newest attempt; None before its first step."""
        return self.progress.seconds_per_step(self.progress.last_ms)

    @property
    def seconds_left(self) -> float | None:
        """Until the end of training, reckoned from the newest record, or of the trials; None where it does not run."""
        if self.entry.status != RUNNING:
            return None
        return self.progress.seconds_left(self.progress.last_ms) if self.search is None else _trials_left(self.search)


class StatusReader:
    """Reads the status of one run or search, each time only what is new; of one thread.

    Waits up to `patience_s` seconds for a storage that is unavailable.
    """

    def __init__(self, uri: str, *, patience_s: float) -> None:
        self._uri, self._patience_s = uri, patience_s
        self._progress = RunProgress()
        self._tail: EventLogTail | None = None
        self._read_at: tuple[Any, ...] = ()  # what the copies of the records were read from
        self._search: SearchSnapshot | None = None
        self._num_damaged = 0

    def read(self) -> Status:
        """The status now. ValueError where there is no run and no search, OSError where the store is unavailable."""
        entry = read_entry(self._uri, patience_s=self._patience_s)
        if entry is None:
            raise ValueError(f"run {self._uri!r}: no recipe.json or search.json there; give STORAGE/ID, or --storage")
        if entry.kind == "search":
            self._search = read_search(self._uri, before=self._search)
            return Status(entry, search=self._search)
        records = self._read_records(entry)
        if self._num_damaged:
            entry.problems.append(f"{self._num_damaged} damaged lines of {records}")
        return Status(entry, self._progress, records)

    def _read_records(self, entry: Entry) -> str:
        """Update the progress; returns what it is from."""
        log = self._event_log(entry)
        if log is not None:
            self._tail = self._tail or EventLogTail(log)
            self._take(self._tail.read())
            self._num_damaged += self._tail.damaged
            self._tail.damaged = 0
            return str(log)
        stamp = (entry.checkpoint, entry.log_written)
        if stamp != self._read_at:
            self._progress, self._num_damaged = RunProgress(), 0
            self._take(
                retry_while_unavailable(lambda: records_of(self._uri), what=self._uri, patience_s=self._patience_s)
            )
            self._read_at = stamp
        if entry.checkpoint and entry.status != "done":
            return f"the checkpoint of step {step_of(entry.checkpoint)}"
        return object_store.join(self._uri, EVENT_LOG)

    def _event_log(self, entry: Entry) -> Path | None:
        """The event log that the driver itself writes, if it is on this machine."""
        if object_store.is_local(self._uri):
            log = object_store.local_path(self._uri) / EVENT_LOG
        elif entry.driver_here:
            log = location_of(self._uri.rsplit("/", 1)[0], entry.id, "none").event_log
        else:
            return None
        return log if log.exists() else None

    def _take(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            try:
                require_shape(record, "", TimedRecord)
                require_shape(record, "", RECORDS.get(record["kind"], TimedRecord))
            except ValueError:
                self._num_damaged += 1
            else:
                self._progress.update(record)


def find(name: str, storage: str, *, default: str) -> str:
    """The URI of a run or search: `name` is its id in `storage`, or without one its folder or URI.

    What is neither is looked for in the storage `default`.
    """
    if storage:
        return object_store.join(storage, name)
    uri = name.rstrip("/")
    if not NAME.fullmatch(uri) or Path(uri).is_dir():
        return str(object_store.local_path(uri)) if object_store.is_local(uri) else uri
    return object_store.join(default, uri)


def _trials_left(search: SearchSnapshot) -> float | None:
    """By the mean of the trials that are over, as many at once as there are slots; None before one, and after all."""
    seconds = [trial.seconds for trial in search.trials if trial.seconds is not None]
    left = search.planned_trials - len(seconds)
    return left * sum(seconds) / len(seconds) / max(search.slots, 1) if seconds and left > 0 else None
