"""How Ray Tune runs a search's tasks: the only user of ray.tune.

A trial is a function in one of Tune's processes, which are kept from trial to trial. What it says arrives here, in the
driver, and goes to the search's spool; a trial that the scheduler stops at a rung is committed here, since its process
is not asked.
"""

import math
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from orchestrator.search.request import Budget
from orchestrator.search.samplers import Proposals
from orchestrator.search.schedulers import _scheduler
from orchestrator.search.store import PATIENCE_S, read_result
from orchestrator.search.trial_in_process import even_out
from orchestrator.search.trial_ledger import Source, TrialLedger
from orchestrator.search.trial_runner import learn
from orchestrator.search.trial_spec import Task, searched
from orchestrator.storage import object_store
from orchestrator.training.ray_trainer import ray_storage
from workloads.config.recipe import Recipe
from workloads.config.search import Search
from workloads.runtime.event_log import EventLog

POINTER = "checkpoint"  # Tune moves a file that holds the URI of ours
RETRIES = 2  # of a trial whose process or node was lost
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our own records hold what happened
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # else Ctrl-C ends the trials, and the search goes on
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its tables: a line for every trial is enough


class Listed:
    """Tasks that are known beforehand, one after the other."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)

    def propose(self, slot: int) -> Task | None:
        task = next(self._tasks, None)
        return None if task is None else replace(task, slot=slot)

    def tell(self, number: int, objectives: list[float] | None, *, stopped: bool = False) -> None:
        pass


def count_slots(nodes: list[dict[str, float]], need: dict[str, float], wanted: int) -> int:
    """How many trials fit on the nodes at once; ValueError where it is none, or fewer than wanted."""
    most = sum(min(int(have.get(what, 0.0) // amount) for what, amount in need.items()) for have in nodes)
    if most < max(1, wanted):
        said = ", ".join(f"{amount:g} {resource}" for resource, amount in need.items())
        raise ValueError(
            f"--slots {max(1, wanted)}: the cluster holds {most} trials of {said} each at once; ask for fewer, or set "
            "train.threads"
        )
    return wanted or most


class TuneRunner:
    """Runs tasks of one search on the cluster at hand, `slots` at a time."""

    def __init__(
        self,
        recipe: Recipe,
        search_uri: str,
        event_log: EventLog,
        *,
        resources: dict[str, float],
        slots: int,
        workers: int,
    ) -> None:
        self.slots = slots
        self._recipe, self._search_uri, self._event_log = recipe, search_uri, event_log
        self._resources, self._workers = resources, workers

    def run_trials(self, known: list[tuple[Task, dict[str, Any] | None]], budget: Budget) -> float:
        """Try what is proposed until nothing more is, or the budget is spent; returns seconds of wall time."""
        search = searched(self._recipe)
        proposals = Proposals(search, [task for task, _ in known], limit=budget.trials)
        seconds = budget.wall_seconds(gpus=self.slots * self._workers)
        if search.pauses:
            return self._run_at_once(proposals, search, seconds=seconds)
        return self._run(proposals, scheduler=_scheduler(search), seconds=seconds)

    def run_listed(self, tasks: list[Task]) -> float:
        """Run tasks that are known beforehand; returns seconds of wall time."""
        return self._run(Listed(tasks)) if tasks else 0.0

    def _run(self, source: Source, *, scheduler: Any = None, seconds: float | None = None) -> float:
        """Ask for tasks one by one."""
        ledger = TrialLedger(source, self._recipe, self._search_uri, self._event_log, self.slots)
        order = {"search_alg": TrialSearcher(ledger), "num_samples": -1, "max_concurrent_trials": self.slots}
        with tempfile.TemporaryDirectory(prefix="antiphon-") as scratch:  # Tune's own state, which is never read
            return self._fit(ledger, {}, where={"storage_path": scratch}, scheduler=scheduler, seconds=seconds, **order)

    def _run_at_once(self, source: Source, search: Search, *, seconds: float | None) -> float:
        """Give all tasks to the scheduler, which lets them take turns and moves pointers to our checkpoints.

        Those that are over are not given to it, and the others go on from the newest rung that all of them have
        reached: it waits for ever for trials that begin at different rungs.
        """
        ledger = TrialLedger(source, self._recipe, self._search_uri, self._event_log, self.slots)
        waiting = []
        for task in iter(lambda: source.propose(0), None):
            if read_result(self._search_uri, task) is None:
                waiting.append(task)
            else:
                ledger.begin(task)
                ledger.end(task)
        if not waiting:
            return 0.0
        height = even_out(self._recipe, waiting, self._search_uri)
        space = {"task": tune.grid_search([asdict(task) for task in waiting])}
        where = ray_storage(object_store.join(self._search_uri, "tune"), patience_s=PATIENCE_S)
        return self._fit(ledger, space, where=where, scheduler=_scheduler(search, height), seconds=seconds)

    def _fit(
        self,
        ledger: "TrialLedger",
        space: dict[str, Any],
        *,
        where: dict[str, Any],
        scheduler: Any,
        seconds: float | None,
        **order: Any,
    ) -> float:
        began = time.monotonic()
        trainable = tune.with_resources(
            tune.with_parameters(_learn, recipe=self._recipe, search_uri=self._search_uri, workers=self._workers),
            self._resources,
        )
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                scheduler=scheduler,
                time_budget_s=seconds,
                reuse_actors=True,
                trial_name_creator=lambda trial: Task(**trial.config["task"]).name,
                **order,
            ),
            run_config=tune.RunConfig(
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[TrialCallback(ledger)],
                **where,
            ),
        )
        try:
            tuner.fit()
        except KeyboardInterrupt:
            ledger.leave()
            raise
        ledger.leave()
        return time.monotonic() - began


def _learn(config: dict[str, Any], *, recipe: Recipe, search_uri: str, workers: int) -> None:
    """A trial, in a process of Tune's."""
    import torch

    torch.set_num_threads(recipe.train.threads)

    def report(news: dict[str, Any]) -> None:
        objective = news["rung"]["objective"] if news["rung"] else math.inf  # of a trial that failed for good
        kept = news.get("kept", "")
        with tempfile.TemporaryDirectory(prefix="antiphon-") as folder:
            (Path(folder) / POINTER).write_text(kept)
            pointer = tune.Checkpoint.from_directory(folder) if kept else None
            tune.report({**news, "objective": objective}, checkpoint=pointer)

    start = ""
    if (given := tune.get_checkpoint()) is not None:
        with given.as_directory() as folder:
            start = (Path(folder) / POINTER).read_text()
    name = tune.get_context().get_trial_name()
    assert name is not None
    learn(recipe, _task(config, name), search_uri, report, workers=workers, start=start)


class NotPickled:
    """What Tune pickles with its own state, which is never read: a search is resumed from its own files."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class TrialSearcher(NotPickled, Searcher):
    """Tune asks here what to try."""

    def __init__(self, ledger: TrialLedger) -> None:
        super().__init__()
        self._ledger = ledger

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        if self._ledger.full:  # of tasks that are about to be tried again
            return None
        task = self._ledger.ask()
        return Searcher.FINISHED if task is None else {"task": asdict(task)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Heard by `TrialCallback`, which knows the trial's task."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is known is in the search's files."""

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a search is resumed from its own files")


class TrialCallback(NotPickled, tune.Callback):
    """Tune tells here what happens."""

    def __init__(self, ledger: TrialLedger) -> None:
        self._ledger = ledger

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._ledger.begin(_task(trial.config, str(trial)))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self._ledger.hear(_task(trial.config, str(trial)), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._ledger.end(_task(trial.config, str(trial)))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        error = trial.get_error()
        self._ledger.end(
            _task(trial.config, str(trial)),
            error=str(error).strip().splitlines()[-1] if error else "its process was lost",
        )


def _task(config: dict[str, Any], name: str) -> Task:
    """The task of a trial of Tune's, whose name stays its own where PBT gives it another's configuration."""
    task = Task(**config["task"])
    return replace(task, number=int(name)) if task.kind == "trial" else task
