"""The files of a search on its storage: their names, writing and reading. The only reader, for search and reports.

    search.json                 written once, first: id, creation time, command, resolved recipe, tracking
    cluster.json                where the search runs now, for reports only
    trials/0000/, finals/NAME/  settings.json when the task starts; rungs.json while it runs; result.json, once, at its
                                end
    outcome.json                written last; renamed to earlier.json when a finished search is resumed
    mlflow.json                 where each trial is in MLflow, for links (`tracking/nested_runs.py`)
    attempts/                   claims and heartbeats of the search's drivers (`runs/lease.py`); trials have their own

A search is resumed from these files; there is no other state. search.json, cluster.json and the outcome are written by
the driver alone. A task's settings and rungs are written by the process that runs it, its result by that process or by
the driver, whichever is first. Every file is replaced whole or created exclusively, so that a kill leaves the old one,
the new one, or none.
"""

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.search.files import Definition, Rungs, SearchCluster, SearchOutcome, TaskResult, TaskSettings
from orchestrator.search.rungs import RungScore
from orchestrator.search.trial_spec import Task
from orchestrator.storage import object_store
from orchestrator.storage.retry import print_status, retry_while_unavailable
from orchestrator.tracking.nested_runs import RUN_PATHS_FILE
from workloads.runtime.json_files import json_text

PATIENCE_S = 300.0  # how long a search waits for its store, wherever it writes or reads
READERS = 8  # threads: an object store takes a while for each of some hundred small files
DEFINITION, CLUSTER, OUTCOME, EARLIER = "search.json", "cluster.json", "outcome.json", "earlier.json"
SETTINGS, RUNGS, RESULT = "settings.json", "rungs.json", "result.json"
TRIALS, FINALS = "trials", "finals"
SHAPES: dict[str, Any] = {
    DEFINITION: Definition,
    CLUSTER: SearchCluster,
    OUTCOME: SearchOutcome,
    EARLIER: SearchOutcome,
    SETTINGS: TaskSettings,
    RUNGS: Rungs,
    RESULT: TaskResult,
    RUN_PATHS_FILE: dict[str, str],
}
Value = TypeVar("Value")


@dataclass(frozen=True)
class TaskFiles:
    """The files of one task, parsed, as they were at one moment."""

    name: str
    mlflow_path: str  # of its page within MLflow's; empty: not tracked, or not known yet
    settings: dict[str, Any] | None = None
    rungs: dict[str, Any] | None = None
    result: dict[str, Any] | None = None  # where there is one, settings and rungs are not read
    unchanged: bool = False  # finished and known to the caller: none of its files was read


@dataclass(frozen=True)
class SearchFiles:
    """The files of a search, parsed, as they were at one moment."""

    definition: dict[str, Any]
    cluster: dict[str, Any] | None
    outcome: dict[str, Any] | None
    mlflow_paths: dict[str, str]  # by task name; the parent's is empty
    trials: Sequence[TaskFiles]
    finals: Sequence[TaskFiles]
    last_heartbeat: float  # of any driver, in seconds since the epoch; 0: none, or the search is over


@dataclass(frozen=True)
class SearchStore:
    """The files of the search at `uri`, a folder or URI: STORAGE/SEARCH_ID.

    A plain value, which may be pickled to other processes. Every call waits for a store that is unavailable for at most
    `patience_s` seconds, then raises OSError. A file that is damaged raises ValueError with its name, the place
    in it, and what belongs there; what reports can do without is left out, and said.
    """

    uri: str
    patience_s: float = PATIENCE_S

    def create(self, definition: dict[str, Any]) -> bool:
        """Write search.json; False where the search exists already. Does not wait for the store."""
        text = json_text(definition, indent=1)
        return object_store.create_exclusively(self._path(DEFINITION), text.encode())

    def read_definition(self) -> dict[str, Any] | None:
        """The content of search.json; None where there is no search."""
        return self._read(DEFINITION)

    def write_cluster(self, *, slots: int, dashboard: str, trials: int) -> None:
        """Record where the search runs now: trials at once, the address of Ray's dashboard (empty: it has none), and
        the planned number of trials."""
        self._write({"slots": slots, "dashboard": dashboard, "trials": trials}, CLUSTER)

    def reopen(self) -> None:
        """Set an earlier outcome aside, as earlier.json, until this driver's is written, which adds to it.

        Killed between its two steps it leaves both files; a later call repeats them.
        """
        if (outcome := self._read(OUTCOME)) is not None:
            self._write(outcome, EARLIER)
            self._retry(lambda: object_store.remove_file(self._path(OUTCOME)), self._path(OUTCOME))

    def read_earlier_outcome(self) -> dict[str, Any]:
        """The outcome from before the search was reopened; empty where it never had one."""
        return self._read(EARLIER) or {}

    def write_outcome(self, outcome: dict[str, Any]) -> None:
        """Write outcome.json: the search is over."""
        self._write(outcome, OUTCOME)

    def known_trials(self) -> list[tuple[Task, dict[str, Any] | None]]:
        """Every trial that was started, by number, with its result if it has one.

        Raises ValueError for a damaged trial: without it another one could win, and the sampler would propose other
        settings for its number. Settings are read only where there is no result, which repeats them.
        """
        found = []
        for name in self._names(TRIALS):
            result = self._read_or_advise(name, RESULT)
            fields = result or self._read_or_advise(name, SETTINGS)
            if fields is not None:  # without either it is started anew
                found.append((Task("trial", fields["number"], fields["settings"], fields["seed"]), result))
        return found

    def _read_or_advise(self, name: str, file: str) -> dict[str, Any] | None:
        """A file of a trial, if there is one; the ValueError of a damaged one says what to do."""
        try:
            fields: dict[str, Any] | None = self._read(TRIALS, name, file)
            return fields
        except ValueError as error:
            has_finals = any(f"-{name}" in final for final in self._names(FINALS))  # of these very settings
            rerun = "" if has_finals else f", or delete {self._path(TRIALS, name)} to run trial {name} anew"
            raise ValueError(f"{error}; restore it{rerun}") from None

    def winner_numbers(self) -> set[int]:
        """The numbers of the trials for which winner runs were started."""
        return {int(name.split("-")[1]) for name in self._names(FINALS) if name.startswith("winner-")}

    def write_settings(self, task: Task, *, began: float) -> None:
        """Record that a task starts; a later start replaces one that left no result."""
        self._write(task.as_json() | {"began": began}, task.folder, SETTINGS)

    def write_rungs(self, task: Task, history: list[RungScore], *, began: float, loop_seconds: float) -> None:
        """Record the scores so far of a task that still runs, and the seconds spent in its loop."""
        rungs = {"history": _history_json(history), "began": began, "loop_seconds": loop_seconds, "told": time.time()}
        self._write(rungs, task.folder, RUNGS)

    def read_rungs(self, task: Task) -> dict[str, Any] | None:
        """What `write_rungs` wrote last, if anything."""
        return self._read(task.folder, RUNGS)

    def write_result(self, task: Task, result: dict[str, Any], history: list[RungScore]) -> None:
        """Commit a task's result; does nothing where it has one, whichever process wrote that."""
        content = task.as_json() | {"second": None, "host": socket.gethostname()} | result
        content |= {"history": _history_json(history), "ended": time.time()}
        uri = self._path(task.folder, RESULT)
        self._retry(lambda: object_store.create_exclusively(uri, json_text(content).encode()), uri)

    def read_result(self, task: Task) -> dict[str, Any] | None:
        """A task's result, if it has one."""
        try:
            result: dict[str, Any] | None = self._read(task.folder, RESULT)
            return result
        except ValueError as error:
            raise ValueError(f"{error}; delete it to run {task.kind} {task.name} again") from None

    def read_all(self, *, finished: Mapping[str, str] | None = None) -> SearchFiles | None:
        """All files of the search; None where there is none. Called by reports, also while the search runs.

        `finished` holds tasks that the caller has read with a result, name -> MLflow path: their files are not read
        again while that path is the same. The store is waited for once, over the whole reading.
        """
        return self._retry(lambda: self._read_all(finished or {}), f"search {self.uri}")

    def _read_all(self, finished: Mapping[str, str]) -> SearchFiles | None:
        definition = _parsed(self._path(DEFINITION))
        if definition is None:
            return None
        outcome = _parsed(self._path(OUTCOME))  # before the tasks: they are complete once it is there
        paths: dict[str, str] = _parsed_or_skipped(self._path(RUN_PATHS_FILE)) or {}
        trials = self._read_tasks(TRIALS, paths, finished)
        finals = self._read_tasks(FINALS, paths, finished)
        cluster = _parsed_or_skipped(self._path(CLUSTER))
        heartbeat = 0.0 if outcome is not None else self._last_heartbeat()
        return SearchFiles(definition, cluster, outcome, paths, trials, finals, heartbeat)

    def _read_tasks(self, folder: str, paths: dict[str, str], finished: Mapping[str, str]) -> list[TaskFiles]:
        def read(name: str) -> TaskFiles:
            path = paths.get(name, "")
            if finished.get(name) == path:
                return TaskFiles(name, path, unchanged=True)
            result = _parsed_or_skipped(self._path(folder, name, RESULT))  # a broken trial must not hide the others
            if result is not None:
                return TaskFiles(name, path, result=result)
            settings = _parsed_or_skipped(self._path(folder, name, SETTINGS))
            rungs = None if settings is None else _parsed_or_skipped(self._path(folder, name, RUNGS))
            return TaskFiles(name, path, settings, rungs)

        with ThreadPoolExecutor(READERS) as readers:
            return list(readers.map(read, object_store.list_names(self._path(folder))))

    def _last_heartbeat(self) -> float:
        folder = self._path("attempts")
        beats = [name for name in object_store.list_names(folder) if name.endswith(".beat")]
        return max(
            (object_store.modified_at(object_store.join(folder, name)).timestamp() for name in beats), default=0.0
        )

    def _path(self, *parts: str) -> str:
        return object_store.join(self.uri, *parts)

    def _names(self, folder: str) -> list[str]:
        uri = self._path(folder)
        return sorted(self._retry(lambda: object_store.list_names(uri), uri))

    def _read(self, *parts: str) -> Any:
        uri = self._path(*parts)
        return self._retry(lambda: _parsed(uri), uri)

    def _write(self, content: dict[str, Any], *parts: str) -> None:
        uri = self._path(*parts)
        self._retry(lambda: object_store.put_text(uri, json_text(content, indent=1)), uri)

    def _retry(self, call: Callable[[], Value], what: str) -> Value:
        return retry_while_unavailable(call, what=what, patience_s=self.patience_s)


def upload_beside(uri: str, file: Path) -> None:
    """Copy a file of the driver's folder to `uri`, if it exists and `uri` is elsewhere; does not wait for the store."""
    if not object_store.is_local(uri) and file.exists():
        object_store.put_text(object_store.join(uri, file.name), file.read_text())


def _history_json(history: list[RungScore]) -> list[dict[str, Any]]:
    return [score.as_json() for score in history]


def _parsed(uri: str) -> Any:
    """The content of a JSON file; None where there is none."""
    if not object_store.exists(uri):
        return None
    return object_store.read_json(uri, SHAPES[uri.rsplit("/", 1)[-1]])


def _parsed_or_skipped(uri: str) -> Any:
    """The content of a search's file; None where there is none, or where it is damaged, which is printed."""
    try:
        return _parsed(uri)
    except ValueError as error:
        print_status(f"left out: {error}")
        return None
