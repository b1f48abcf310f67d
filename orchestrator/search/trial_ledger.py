"""The state of a search's running tasks. Lives in the driver's process; writes to the event log and to the search's
storage."""

import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.recipes.loader import flatten
from orchestrator.search.rungs import RungScore
from orchestrator.search.store import SearchStore, upload_beside
from orchestrator.search.trial_spec import Task
from orchestrator.storage.retry import print_status
from orchestrator.tracking.nested_runs import RUN_PATHS_FILE
from workloads.config.recipe import Recipe
from workloads.runtime.event_log import EventLog, read_event_log, timestamped

RUN_STATUS = {"done": "done", "stopped": "preempted", "failed": "failed"}  # of a result -> of its run in the event log


class TaskSource(Protocol):
    """Decides which task comes next. Called by the ledger alone."""

    def next_task(self, slot: int) -> Task | None:
        """The next task, for that slot; None when there are no more."""
        ...

    def on_task_end(self, number: int, objectives: list[float] | None, *, stopped: bool = False) -> None:
        """A trial has ended: its objectives, None if it failed; if it was stopped, its objective at each rung."""
        ...


@dataclass
class _RunningTask:
    """What the trial's process has reported so far."""

    began: float = field(default_factory=time.time)
    history: list[RungScore] = field(default_factory=list)
    loop_seconds: float = 0.0
    host: str = ""


class TrialLedger:
    """The tasks of a search that are running: their slots, and what they have reported.

    Its methods are called by Tune's loop, in the driver's process, from one thread: for each task `next_task` once,
    `on_start` once or more (after each pause, and after each loss), `on_result` once or more for each rung (a retry
    repeats some), `on_end` at most once; `on_shutdown` once, last. In the driver this is the only place that decides
    how a task ended and writes its result. A task that was lost at a moment at which Tune does not start it again
    (`on_lost_at_start`) keeps its slot and is the next one, at most `repeats` times.

    A kill loses the scores and times in memory: a task that was running has neither a result nor a `closed` record
    then, and the driver that resumes the search runs it again. Of tasks that an earlier driver has closed nothing is
    logged again.
    """

    def __init__(
        self, source: TaskSource, recipe: Recipe, store: SearchStore, event_log: EventLog, *, slots: int, repeats: int
    ) -> None:
        self.source, self.event_log = source, event_log
        self._recipe, self._store = recipe, store
        self._slots, self._free_slots = slots, list(range(slots))
        self._repeats_left: dict[str, int] = defaultdict(lambda: repeats)
        self.lost: list[Task] = []  # to be run again, by this ledger or by the next one
        self._open: dict[str, Task] = {}  # by name: started and not ended
        self._progress: dict[str, _RunningTask] = {}  # by name, of every task that was started
        self._closed_earlier = {  # by an earlier driver, for good
            record["child"]
            for record in read_event_log(event_log.path)
            if record["kind"] == "closed" and record["status"] != "preempted"
        }

    @property
    def can_start(self) -> bool:
        """Whether there is room for a task."""
        return bool(self._free_slots or self.lost)

    @property
    def is_idle(self) -> bool:
        """Whether no task has a slot: one that has may be lost, and is then the next."""
        return len(self._free_slots) == self._slots

    def next_task(self) -> Task | None:
        """The next task, for the lowest slot that is free; None when there is none now."""
        if self.lost:
            return self.lost.pop(0)
        self._free_slots.sort()
        task = self.source.next_task(self._free_slots[0])
        if task is not None:
            self._free_slots.pop(0)
        return task

    def remaining_tasks(self) -> list[Task]:
        """All tasks of the source that have no result yet; records the end of those that have one.

        For tasks that take turns, which all start together and share the slots.
        """
        remaining = []
        for task in iter(lambda: self.source.next_task(0), None):
            if self._store.read_result(task) is None:
                remaining.append(task)
            else:
                self.on_start(task)
                self.on_end(task)
        return remaining

    def on_start(self, task: Task) -> None:
        """A process has started to run the task; not for the first time after a pause or a loss."""
        self._open[task.name] = task
        if task.name not in self._progress:
            self._progress[task.name] = _RunningTask()
            self._log(task, "run", **self._run_fields(task))

    def on_lost(self, task: Task, error: str) -> None:
        """The task's process was lost, or failed; it is started again."""
        print_status(f"{task.kind} {task.name}: {error}; it is started again")

    def on_lost_at_start(self, task: Task, error: str) -> None:
        """The process was lost as it was handed the task; Tune does not start it again."""
        if not self._repeats_left[task.name]:
            return self.on_end(task, error)
        self._repeats_left[task.name] -= 1
        self.lost.append(task)
        self.on_lost(task, error)

    def on_result(self, task: Task, report: dict[str, Any]) -> None:
        """The task's process reports a rung and the records up to it; see `trial_runner.run_trial`."""
        for record in report["records"]:
            if record["kind"] != "result":  # logged by `on_end`, also when another driver has the report
                self.event_log.append(record | {"child": task.name})
        progress = self._progress.setdefault(task.name, _RunningTask())
        progress.host = report.get("host", "")
        if report["rung"]:
            score = RungScore(**report["rung"])
            earlier = [rung for rung in progress.history if rung.step < score.step]  # a retry repeats some rungs
            progress.history = [*earlier, score]
            progress.loop_seconds = report.get("loop_seconds", 0.0)
            self._log(task, "metrics", step=score.step, values={**score.values, "objective": score.objective})
        self._upload_mlflow_paths()

    def on_end(self, task: Task, error: str = "") -> None:
        """The task is over: finished, stopped at a rung, or failed for good with `error`."""
        if task.name not in self._progress:  # its process could not even be started
            self.on_start(task)
        self._open.pop(task.name, None)
        result = self._final_result(task, error)
        if task.kind == "winner" and task.name not in self._closed_earlier and "delivered" in result:
            self.event_log.append(result["delivered"] | {"child": task.name})  # only a winner's models are registered
        if task.kind == "trial":
            self._report_to_source(task, result)
        if task.slot not in self._free_slots:  # tasks that take turns share theirs
            self._free_slots.append(task.slot)
        objective = "-" if result["objective"] is None else f"{result['objective']:.4f}"
        print_status(f"{task.kind} {task.name}: {result['status']} {objective} {result['reason']}".rstrip())
        self._log(task, "closed", status=RUN_STATUS[result["status"]], error=result["reason"])
        self._upload_mlflow_paths()

    def on_shutdown(self) -> None:
        """Tune has stopped: close the tasks that are still open. One without a result is run again on resume."""
        for task in list(self._open.values()):
            if self._store.read_result(task) is not None:  # it finished while Tune was stopping
                self.on_end(task)
            else:
                self._log(task, "closed", status="preempted", error="the search ended before it")

    def _report_to_source(self, task: Task, result: dict[str, Any]) -> None:
        stopped = result["status"] == "stopped"
        scores = [result["objective"], result["second"]]
        if stopped:
            scores = [rung["objective"] for rung in result["history"]]
        objectives = [score for score in scores if score is not None]
        self.source.on_task_end(task.number, None if result["status"] == "failed" else objectives, stopped=stopped)

    def _final_result(self, task: Task, error: str) -> dict[str, Any]:
        """The task's result; written here if its process was stopped or lost and has not written one."""
        if self._store.read_result(task) is None:
            progress = self._progress[task.name]
            history = progress.history
            fields = {
                "status": "failed" if error else "stopped",
                "reason": error,
                "objective": history[-1].objective if history and not error else None,
                "began": progress.began,
                "loop_seconds": progress.loop_seconds,
                "host": progress.host,
            }
            self._store.write_result(task, fields, history)
        result = self._store.read_result(task)  # the one that counts, whichever process wrote it
        assert result is not None
        return result

    def _upload_mlflow_paths(self) -> None:
        """Copy the replayer's file of MLflow runs to the search's storage, where the live page reads it."""
        with suppress(Exception):  # links must not end a search; the next call tries again
            upload_beside(self._store.uri, self.event_log.path.with_name(RUN_PATHS_FILE))

    def _log(self, task: Task, kind: str, **fields: Any) -> None:
        if task.name not in self._closed_earlier:
            self.event_log.append(timestamped(kind, **fields, child=task.name))

    def _run_fields(self, task: Task) -> dict[str, Any]:
        search_uri = self._store.uri
        return {
            "experiment": "antiphon",
            "run_id": f"{search_uri.rstrip('/').rsplit('/', 1)[-1]}/{task.name}",
            "name": task.name,
            "recipe": self._recipe.name,
            "params": {key: str(value) for key, value in flatten(task.settings).items()}
            | {"seed": str(self._recipe.train.seed if task.seed is None else task.seed)},
            "tags": {"antiphon.kind": task.kind, "storage": f"{search_uri}/{task.folder}"},
        }
