"""A search in MLflow: one parent run, and a child of it for every trial. Knows no MLflow itself (`tracking.py` does).

Records of a search's spool that carry `child` belong to that trial; a trial's last one is `closed`, since `end` ends
the spool.
"""

import json
import os
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

ChildRunRecord = Callable[[str], dict[str, Any]]
PARENT_TAG = "mlflow.parentRunId"  # by this MLflow's pages nest runs
NAMES = "mlflow.json"  # beside the spool: which MLflow run a trial is, for links; the parent's name is empty


class NestedRuns:
    """Hands records to the parent's run or to a child's; children are made when their first record comes.

    `birth` finds the `run` record of a child: a replayer that was killed goes on in the middle of the spool. Once there
    is a child, `folder` holds everybody's MLflow run.
    """

    def __init__(
        self,
        record: dict[str, Any],
        make: Callable[[dict[str, Any]], Any],
        child_run_record: ChildRunRecord,
        folder: Path,
    ) -> None:
        self._parent, self._make, self._child_run_record, self._names = (
            make(record),
            make,
            child_run_record,
            folder / NAMES,
        )
        self._children: dict[str, Any] = {}
        self._closed: set[str] = set()

    @property
    def run_id(self) -> str:
        return str(self._parent.run_id)

    @property
    def points_sent(self) -> int:
        return sum(run.points_sent for run in self._runs())

    @property
    def points_held(self) -> int:
        return sum(run.points_held for run in self._runs())

    def accept(self, records: Sequence[dict[str, Any]]) -> None:
        for child, own in groupby(records, key=lambda record: record.get("child", "")):
            self._accept(child, list(own))

    def lost_writer(self, end_ms: int) -> None:
        """Say of the parent, and of the children that were not over, that the driver is gone."""
        for child, run in self._children.items():
            if child not in self._closed:
                run.lost_writer(end_ms)
        self._parent.lost_writer(end_ms)

    def _runs(self) -> list[Any]:
        return [*self._children.values(), self._parent]

    def _accept(self, child: str, records: list[dict[str, Any]]) -> None:
        if not child:
            self._parent.accept(records)
            return
        if child not in self._children:
            self._children[child] = self._make(self._born(self._child_run_record(child)))
            self._tell_names()
        self._children[child].accept([self._born(record) for record in records])
        for record in records:
            (self._closed.add if record["kind"] == "closed" else self._closed.discard)(child)

    def _tell_names(self) -> None:
        """Add those at hand to the names that are told already, by this replayer or by one before it."""
        names = json.loads(self._names.read_text()) if self._names.exists() else {"": self.run_id}
        names |= {child: run.run_id for child, run in self._children.items()}
        temporary = self._names.with_name(NAMES + ".tmp")
        temporary.write_text(json.dumps(names, indent=1))
        os.replace(temporary, self._names)

    def _born(self, record: dict[str, Any]) -> dict[str, Any]:
        """A child's record as that of a run of its own."""
        if record["kind"] == "closed":
            return record | {"kind": "end"}
        if record["kind"] == "run":
            return record | {"tags": record["tags"] | {PARENT_TAG: self.run_id}}
        return record
