"""Runs a search's tasks with Ray Tune. The only user of ray.tune besides `schedulers.py`.

Tune's loop runs in the driver's process, within `tuner.fit()`, and calls `TrialSearcher` and `TrialCallback` there;
they hand everything to the `TrialLedger`. A trial is `_run_tune_trial`, in a process of Tune's that is reused from
trial to trial. A trial that the scheduler stops at a rung gets its result from the driver, since its process is not
asked.
"""

import math
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from orchestrator.search.request import Budget
from orchestrator.search.samplers import TrialSampler
from orchestrator.search.schedulers import build_scheduler
from orchestrator.search.store import PATIENCE_S, SearchStore
from orchestrator.search.trial_in_process import align_to_common_rung
from orchestrator.search.trial_ledger import TaskSource, TrialLedger
from orchestrator.search.trial_runner import run_trial
from orchestrator.search.trial_spec import SearchPlan, Task
from orchestrator.storage import object_store
from orchestrator.training.ray_trainer import ray_storage
from workloads.runtime.cpu import use_cpu
from workloads.runtime.event_log import EventLog
from workloads.runtime.scratch import scratch_folder

POINTER = "checkpoint"  # the only file in Tune's checkpoints: the URI of one of ours
RETRIES = 2  # of a trial whose process or node was lost
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the event log holds what happened
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # else Ctrl-C ends the trials, and the search continues
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its tables: a line for every trial is enough


class TaskList:
    """Tasks that are known beforehand, in order."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)

    def next_task(self, slot: int) -> Task | None:
        task = next(self._tasks, None)
        return None if task is None else replace(task, slot=slot)

    def on_task_end(self, number: int, objectives: list[float] | None, *, stopped: bool = False) -> None:
        pass


class TuneRunner:
    """Runs tasks of one search on the connected cluster, `slots` at a time. Lives in the driver's process."""

    def __init__(
        self,
        plan: SearchPlan,
        store: SearchStore,
        event_log: EventLog,
        *,
        resources: dict[str, float],
        slots: int,
        workers: int,
    ) -> None:
        self.slots = slots
        self._plan, self._store, self._event_log = plan, store, event_log
        self._resources, self._workers = resources, workers

    def run_trials(self, known: list[tuple[Task, dict[str, Any] | None]], budget: Budget) -> float:
        """Run what the sampler proposes until nothing is left, or the budget is spent; returns seconds of wall time.

        `known` are the trials that an earlier driver started. KeyboardInterrupt where the user stops it; the ledger is
        closed by then.
        """
        search = self._plan.search
        sampler = TrialSampler(search, [task for task, _ in known], limit=budget.trials)
        seconds = budget.wall_seconds(gpus=self.slots * self._workers)
        if search.pauses:
            return self._run_in_turns(sampler, seconds=seconds)
        return self._run_one_by_one(sampler, scheduler=build_scheduler(search), seconds=seconds)

    def run_listed(self, tasks: list[Task]) -> float:
        """Run tasks that are known beforehand; returns seconds of wall time."""
        return self._run_one_by_one(TaskList(tasks)) if tasks else 0.0

    def _run_one_by_one(self, source: TaskSource, *, scheduler: Any = None, seconds: float | None = None) -> float:
        """Ask the source for a task whenever a slot is free."""
        ledger = self._new_ledger(source)
        options = {"search_alg": TrialSearcher(ledger), "num_samples": -1, "max_concurrent_trials": self.slots}
        with scratch_folder() as scratch:  # Tune's own state, which is never read
            return self._fit(
                ledger, {}, storage={"storage_path": str(scratch)}, scheduler=scheduler, seconds=seconds, **options
            )

    def _run_in_turns(self, source: TaskSource, *, seconds: float | None) -> float:
        """Give all tasks to the scheduler, which lets them take turns and moves pointers to our checkpoints.

        Tasks that have a result are not given to it, and the others resume from the newest rung that all of them have
        reached: it waits for ever for trials that start at different rungs. It cannot be given one again that was lost
        as it was handed to a process: those run once the others have ended.
        """
        ledger = self._new_ledger(source)
        tasks, took = ledger.remaining_tasks(), 0.0
        for repeats in reversed(range(RETRIES + 1)):
            if tasks and (seconds is None or took < seconds):
                ledger = self._new_ledger(source, repeats=repeats)
                took += self._take_turns(ledger, tasks, seconds=None if seconds is None else seconds - took)
                tasks = ledger.lost
        return took

    def _take_turns(self, ledger: TrialLedger, tasks: list[Task], *, seconds: float | None) -> float:
        rungs_done = align_to_common_rung(self._plan, tasks, self._store)
        space = {"task": tune.grid_search([task.as_json() for task in tasks])}
        storage = ray_storage(object_store.join(self._store.uri, "tune"), patience_s=PATIENCE_S)
        scheduler = build_scheduler(self._plan.search, rungs_done)
        return self._fit(ledger, space, storage=storage, scheduler=scheduler, seconds=seconds)

    def _new_ledger(self, source: TaskSource, *, repeats: int = RETRIES) -> TrialLedger:
        recipe = self._plan.recipe
        return TrialLedger(source, recipe, self._store, self._event_log, slots=self.slots, repeats=repeats)

    def _fit(
        self,
        ledger: TrialLedger,
        space: dict[str, Any],
        *,
        storage: dict[str, Any],
        scheduler: Any,
        seconds: float | None,
        **options: Any,
    ) -> float:
        """Run Tune's loop until no trial is left or `seconds` have passed; returns the seconds it took."""
        started = time.monotonic()
        trainable = tune.with_resources(
            tune.with_parameters(_run_tune_trial, plan=self._plan, store=self._store, workers=self._workers),
            self._resources,
        )
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                scheduler=scheduler,
                time_budget_s=seconds,
                reuse_actors=True,
                trial_name_creator=lambda trial: Task.from_json(trial.config["task"]).name,
                **options,
            ),
            run_config=tune.RunConfig(
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[TrialCallback(ledger)],
                **storage,
            ),
        )
        try:
            tuner.fit()
        except KeyboardInterrupt:
            ledger.on_shutdown()
            raise
        ledger.on_shutdown()
        return time.monotonic() - started


def _run_tune_trial(config: dict[str, Any], *, plan: SearchPlan, store: SearchStore, workers: int) -> None:
    """A trial, in a process of Tune's; called again after a pause, with Tune's checkpoint, and after a loss."""
    use_cpu(plan.recipe.train.threads)

    def report(rung_report: dict[str, Any]) -> None:
        rung, uri = rung_report["rung"], rung_report.get("checkpoint_uri", "")
        objective = rung["objective"] if rung else math.inf  # of a trial that failed for good
        with scratch_folder() as folder:
            (folder / POINTER).write_text(uri)
            pointer = tune.Checkpoint.from_directory(folder) if uri else None
            tune.report({**rung_report, "objective": objective}, checkpoint=pointer)

    start = ""
    if (checkpoint := tune.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            start = (Path(folder) / POINTER).read_text()
    name = tune.get_context().get_trial_name()
    assert name is not None
    run_trial(plan, _task_of(config, name), store, report, workers=workers, start=start)


class NotPickled:
    """Base of objects that Tune pickles with its own state: they pickle as empty, a search resumes from its files."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class TrialSearcher(NotPickled, Searcher):
    """Gives Tune's loop the next task. `suggest` is called in the driver's process, whenever Tune wants a trial."""

    def __init__(self, ledger: TrialLedger) -> None:
        super().__init__()
        self._ledger = ledger

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        if not self._ledger.can_start:  # all slots are held, some by tasks that are about to be retried
            return None
        task = self._ledger.next_task()
        if task is not None:
            return {"task": task.as_json()}
        return Searcher.FINISHED if self._ledger.is_idle else None  # after FINISHED Tune does not ask again

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: `TrialCallback` is called too, and is given the trial."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the search's files hold everything."""

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a search is resumed from its own files")


class TrialCallback(NotPickled, tune.Callback):
    """Hands events of Tune's loop to the ledger, in the driver's process."""

    def __init__(self, ledger: TrialLedger) -> None:
        self._ledger = ledger

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._ledger.on_start(_task_of(trial.config, str(trial)))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self._ledger.on_result(_task_of(trial.config, str(trial)), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._ledger.on_end(_task_of(trial.config, str(trial)))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._ledger.on_lost(_task_of(trial.config, str(trial)), _error_of(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        task, error = _task_of(trial.config, str(trial)), _error_of(trial)
        if trial.should_recover():  # Tune tries again only what runs: this was being handed to a process
            self._ledger.on_lost_at_start(task, error)
        else:
            self._ledger.on_end(task, error)


def _error_of(trial: Any) -> str:
    """Why a Tune trial failed, in one line."""
    error = trial.get_error()
    return str(error).strip().splitlines()[-1] if error else "its process was lost"


def _task_of(config: dict[str, Any], name: str) -> Task:
    """The task of a Tune trial; its number comes from the trial's name, since PBT gives it another's configuration."""
    task = Task.from_json(config["task"])
    return replace(task, number=int(name)) if task.kind == "trial" else task
