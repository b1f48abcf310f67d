"""Runs one task: trains and judges it from rung to rung, reports each rung, commits its result once.

Does not depend on how tasks are proposed or stopped: the caller ends a trial by raising from `report`.
"""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.search.rungs import LoopTimer, RungReport, RungScore
from orchestrator.search.store import SearchStore
from orchestrator.search.trial_distributed import run_rungs_distributed
from orchestrator.search.trial_in_process import run_rungs_in_process
from orchestrator.search.trial_spec import SearchPlan, Task, keeps_checkpoints
from workloads.runtime.scratch import scratch_folder

Report = Callable[[dict[str, Any]], None]


def run_trial(
    plan: SearchPlan, task: Task, store: SearchStore, report: Report, *, workers: int = 1, start: str = ""
) -> None:
    """Train and judge a task; its result is committed when this returns.

    Called in a trial's process: once, and again after each pause, and after a loss of the process (at most
    `tune_runner.RETRIES` times). It resumes from the checkpoint at `start`, another trial's, or from its own newest if
    it keeps any. A kill leaves settings.json, and rungs.json of the rungs so far; but where the result is committed, a
    later call only reports its rungs again.

    `report` is called once for every rung, after the files are written, with `rung` (`RungScore.as_json`),
    `rung_number` from 1, `records` since the previous rung, `checkpoint_uri`, `host` and `loop_seconds`; rungs that
    were reported before a pause or a loss are left out. What can never succeed (a recipe that is not valid, numbers
    that are not finite) becomes a failed result and a report whose `rung` is None; what may succeed on a retry is
    raised.
    """
    from workloads.evaluate.predict import BadNumbers

    result = store.read_result(task)
    if result is not None:
        for number, rung in enumerate(result["history"], start=1):
            report({"rung": rung, "rung_number": number, "records": []})
        return
    timer = LoopTimer()
    progress = _Progress(plan, task, store, timer)
    try:
        with scratch_folder() as scratch:
            for rung in _rungs(plan, task, store, scratch, timer, workers=workers, start=start):
                progress.add(rung)  # before it is reported: whatever reacts to the report finds the files
                if not rung.already_reported:
                    report(progress.as_report(rung))
    except (ValueError, BadNumbers) as error:
        progress.commit("failed", f"{type(error).__name__}: {error}")
        report({"rung": None, "rung_number": len(progress.history) + 1, "records": []})


def _rungs(
    plan: SearchPlan, task: Task, store: SearchStore, scratch: Path, timer: LoopTimer, *, workers: int, start: str
) -> Iterator[RungReport]:
    if workers > 1:
        return run_rungs_distributed(plan, task, store, scratch, timer, workers=workers)
    return run_rungs_in_process(plan, task, store, scratch, timer, start=start)


class _Progress:
    """The files of a task that runs: settings.json at the start, rungs.json at each rung, result.json at the end."""

    def __init__(self, plan: SearchPlan, task: Task, store: SearchStore, timer: LoopTimer) -> None:
        self.history: list[RungScore] = []
        self._task, self._store, self._timer = task, store, timer
        self._began = time.time()
        if keeps_checkpoints(plan.search, task) and (earlier := store.read_rungs(task)):  # it resumes from one of them
            self._began, timer.seconds = earlier["began"], earlier["loop_seconds"]
        store.write_settings(task, began=self._began)

    def add(self, rung: RungReport) -> None:
        """Write a rung; with the last one the result."""
        self.history.append(rung.score)
        if rung.final_fields is not None:
            self.commit("done", **rung.final_fields)
        else:
            self._store.write_rungs(self._task, self.history, began=self._began, loop_seconds=self._loop_seconds)

    def commit(self, status: str, reason: str = "", **final_fields: Any) -> None:
        """Write the result, unless the driver has written one."""
        result = {
            "status": status,
            "reason": reason,
            "objective": self.history[-1].objective if status == "done" else None,
            "began": self._began,
            "loop_seconds": self._loop_seconds,
        }
        self._store.write_result(self._task, result | final_fields, self.history)

    def as_report(self, rung: RungReport) -> dict[str, Any]:
        return {
            "rung": rung.score.as_json(),
            "rung_number": len(self.history),
            "records": rung.records,
            "checkpoint_uri": rung.checkpoint_uri,
            "host": socket.gethostname(),
            "loop_seconds": self._loop_seconds,
        }

    @property
    def _loop_seconds(self) -> float:
        return round(self._timer.seconds, 3)
