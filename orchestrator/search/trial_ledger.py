"""What the driver knows of a search's tasks that are under way, and what it tells of them: to the spool, to storage."""

import time
from contextlib import suppress
from typing import Any, Protocol

from orchestrator.recipes.loader import flatten
from orchestrator.search.store import read_result, share, write_result
from orchestrator.search.trial_spec import Task
from orchestrator.storage.retry import print_status
from orchestrator.tracking.nested_runs import RUN_IDS_FILE
from workloads.config.recipe import Recipe
from workloads.runtime.event_log import EventLog, read_event_log, timestamped


class Source(Protocol):
    """Who says what is done next."""

    def propose(self, slot: int) -> Task | None: ...

    def tell(self, number: int, objectives: list[float] | None, *, stopped: bool = False) -> None: ...


class TrialLedger:
    """What the driver knows of the tasks that are under way: which slot, what they said."""

    def __init__(self, source: Source, recipe: Recipe, search_uri: str, event_log: EventLog, slots: int) -> None:
        self.source, self.recipe, self.search_uri, self.event_log = source, recipe, search_uri, event_log
        self._free = list(range(slots))
        self._under_way: dict[str, Task] = {}
        self._heard: dict[str, list[dict[str, Any]]] = {}  # task name -> rungs
        self._began: dict[str, float] = {}
        self._loop_seconds: dict[str, float] = {}
        self._hosts: dict[str, str] = {}
        self._told = {  # by an earlier driver, to the end
            record["child"]
            for record in read_event_log(event_log.path)
            if record["kind"] == "closed" and record["status"] != "preempted"
        }

    @property
    def full(self) -> bool:
        return not self._free

    def ask(self) -> Task | None:
        """The next task, for the lowest slot that is free."""
        self._free.sort()
        task = self.source.propose(self._free[0])
        if task is not None:
            self._free.pop(0)
        return task

    def begin(self, task: Task) -> None:
        """A task's process has started; it may be the second time, after a pause or a loss."""
        self._under_way[task.name] = task
        if task.name not in self._heard:
            self._heard[task.name], self._began[task.name] = [], time.time()
            self._say(task, "run", **self._facts(task))

    def hear(self, task: Task, news: dict[str, Any]) -> None:
        """A rung, and what happened up to it."""
        for record in news["records"]:
            if record["kind"] != "result":  # it is told at the end, by whoever sees that
                self.event_log.append(record | {"child": task.name})
        rung, self._hosts[task.name] = news["rung"], news.get("host", "")
        if rung:
            heard = self._heard.get(task.name, [])  # a retry tells some again
            self._heard[task.name] = [*(earlier for earlier in heard if earlier["step"] < rung["step"]), rung]
            self._loop_seconds[task.name] = news.get("loop_seconds", 0.0)
            self._say(task, "metrics", step=rung["step"], values=rung["values"] | {"objective": rung["objective"]})
        self._share_names()

    def end(self, task: Task, error: str = "") -> None:
        """The task is over: finished, stopped at a rung, or failed for good."""
        if task.name not in self._heard:  # its process could not even be started
            self.begin(task)
        self._under_way.pop(task.name, None)
        result = self._settle(task, error)
        if task.kind == "winner" and task.name not in self._told and "delivered" in result:
            self.event_log.append(result["delivered"] | {"child": task.name})  # only a winner's models are registered
        if task.kind == "trial":
            self._learn_from(task, result)
        if task.slot not in self._free:  # tasks that take turns share theirs
            self._free.append(task.slot)
        shown = "-" if result["objective"] is None else f"{result['objective']:.4f}"
        print_status(f"{task.kind} {task.name}: {result['status']} {shown} {result['reason']}".rstrip())
        status = {"done": "done", "stopped": "preempted", "failed": "failed"}[result["status"]]
        self._say(task, "closed", status=status, error=result["reason"])
        self._share_names()

    def _learn_from(self, task: Task, result: dict[str, Any]) -> None:
        """Tell the source how a trial ended, or how it stood at each rung where it was stopped at one."""
        stopped = result["status"] == "stopped"
        scores = [result["objective"], result["second"]]
        if stopped:
            scores = [rung["objective"] for rung in result["history"]]
        told = [score for score in scores if score is not None]
        self.source.tell(task.number, None if result["status"] == "failed" else told, stopped=stopped)

    def _settle(self, task: Task, error: str) -> dict[str, Any]:
        """The task's result; its process has not written one where it was stopped or lost."""
        history = self._heard.get(task.name, [])  # of one that could not even start there is nothing
        if read_result(self.search_uri, task) is None:
            found = {
                "status": "failed" if error else "stopped",
                "reason": error,
                "objective": history[-1]["objective"] if history and not error else None,
                "history": history,
                "began": self._began.get(task.name, time.time()),
                "loop_seconds": self._loop_seconds.get(task.name, 0.0),
                "host": self._hosts.get(task.name, ""),
            }
            write_result(self.search_uri, task, found)
        result = read_result(self.search_uri, task)
        assert result is not None
        return result

    def leave(self) -> None:
        """No more of the tasks under way: who did not come to its end is learned if the search goes on."""
        for task in list(self._under_way.values()):
            if read_result(self.search_uri, task) is not None:  # it came to its end while Tune ended
                self.end(task)
            else:
                self._say(task, "closed", status="preempted", error="the search ended before it")

    def _share_names(self) -> None:
        """Let the live page know which MLflow runs there are by now, also where it reads from an object store."""
        with suppress(Exception):  # links are not worth a search; what comes next tries again
            share(self.search_uri, self.event_log.path.with_name(RUN_IDS_FILE))

    def _say(self, task: Task, kind: str, **fields: Any) -> None:
        if task.name not in self._told:
            self.event_log.append(timestamped(kind, **fields, child=task.name))

    def _facts(self, task: Task) -> dict[str, Any]:
        return {
            "experiment": "antiphon",
            "run_id": f"{self.search_uri.rstrip('/').rsplit('/', 1)[-1]}/{task.name}",
            "name": task.name,
            "recipe": self.recipe.name,
            "params": {key: str(value) for key, value in flatten(task.settings).items()}
            | {"seed": str(self.recipe.train.seed if task.seed is None else task.seed)},
            "tags": {"antiphon.kind": task.kind, "storage": f"{self.search_uri}/{task.folder}"},
        }
