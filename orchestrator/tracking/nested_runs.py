"""A run in MLflow with its child runs: the trials of a search, or the untaught controls of a run.

Does not depend on MLflow (see `mlflow_run.py`).

Records of a search's event log that have `child` belong to that trial; a trial's last record is `closed`, since `end`
is the last of the whole log.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from orchestrator.tracking.control_run import CHILD, control_run_record, controls_in, split_controls
from orchestrator.tracking.log_reader import log_line
from workloads.runtime.atomic_files import replace_text
from workloads.runtime.json_files import json_text, parse_json

ChildRunRecord = Callable[[str], dict[str, Any]]
PARENT_TAG = "mlflow.parentRunId"  # MLflow's pages nest runs by this tag
RUN_PATHS_FILE = "mlflow.json"  # beside the event log: trial name -> its page's path in MLflow; "" is the parent


class NestedRuns:
    """The destination of a run's or a search's records.

    Contract: used by one thread of the replayer process. A child run is created when its first record arrives; that may
    be any record of it, because a replayer that follows a killed one resumes in the middle of the log, so
    `child_run_record` looks up the child's `run` record. After the first child, `folder` holds RUN_PATHS_FILE, replaced
    by rename each time a child run is opened. Methods are as safe to repeat as those of the runs (`MlflowRun`).
    """

    def __init__(
        self,
        run_record: dict[str, Any],
        open_run: Callable[[dict[str, Any]], Any],
        child_run_record: ChildRunRecord,
        folder: Path,
    ) -> None:
        self._parent = open_run(run_record)
        self._open_run = open_run
        self._child_run_record = child_run_record
        self._paths_file = folder / RUN_PATHS_FILE
        self._children: dict[str, Any] = {}
        self._closed: set[str] = set()
        self._run_record, self._controls = run_record, controls_in(run_record)

    @property
    def run_id(self) -> str:
        return str(self._parent.run_id)

    @property
    def points_sent(self) -> int:
        return sum(run.points_sent for run in self._runs())

    @property
    def points_held(self) -> int:
        return sum(run.points_held for run in self._runs())

    def log_records(self, records: Sequence[dict[str, Any]]) -> None:
        """Send each record to the parent run or to its child's, in order."""
        split = [part for record in records for part in split_controls(record, self._controls)]
        for child, group in groupby(split, key=lambda record: record.get("child", "")):
            if child:
                self._log_to_child(child, list(group))
            else:
                self._parent.log_records(list(group))

    def mark_killed(self, end_ms: int) -> None:
        """Mark the parent and the children that had not finished: the driver ended without an `end` record."""
        for child, run in self._children.items():
            if child not in self._closed:
                run.mark_killed(end_ms)
        self._parent.mark_killed(end_ms)

    def _runs(self) -> list[Any]:
        return [*self._children.values(), self._parent]

    def _log_to_child(self, child: str, records: list[dict[str, Any]]) -> None:
        if child not in self._children:
            is_control = self._controls and child == CHILD
            first = control_run_record(self._run_record) if is_control else self._child_run_record(child)
            self._children[child] = self._open_run(self._as_own_run(first))
            self._write_paths()
        self._children[child].log_records([self._as_own_run(record) for record in records])
        for record in records:
            (self._closed.add if record["kind"] == "closed" else self._closed.discard)(child)

    def _write_paths(self) -> None:
        """Add the open children to the file's paths, which an earlier replayer may have begun."""
        paths = self._paths() | {"": self._parent.path}
        paths |= {child: run.path for child, run in self._children.items()}
        replace_text(self._paths_file, json_text(paths, indent=1))

    def _paths(self) -> dict[str, str]:
        if not self._paths_file.exists():
            return {}
        try:
            paths: dict[str, str] = parse_json(self._paths_file.read_bytes(), str(self._paths_file), dict[str, str])
            return paths
        except ValueError as error:
            log_line(f"written again, without links to trials that ended: {error}")
            return {}

    def _as_own_run(self, record: dict[str, Any]) -> dict[str, Any]:
        """A child's record in the form that a separate run's has."""
        if record["kind"] == "closed":
            return record | {"kind": "end"}
        if record["kind"] == "run":
            return record | {"tags": record["tags"] | {PARENT_TAG: self.run_id}}
        return record
