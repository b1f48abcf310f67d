"""A trial from rung to rung, in the process that calls: how it stands at each of them."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.search.rungs import (
    SET,
    Clock,
    Rung,
    delivered,
    judge,
    mean_values,
    rung_steps,
    said_of,
    second_objective,
)
from orchestrator.search.store import PATIENCE_S, read_rungs
from orchestrator.search.trial_spec import Task, goes_on, searched, task_recipe
from orchestrator.storage import object_store
from orchestrator.storage.retry import retry_while_unavailable
from workloads.config.recipe import Recipe
from workloads.runtime.event_log import EventLog

Value = TypeVar("Value")
KEPT = 3  # checkpoints of a trial: another may be about to go on from one


def climb(recipe: Recipe, task: Task, search_uri: str, scratch: Path, clock: Clock, *, start: str) -> Iterator[Rung]:
    """Rung after rung: how it stands, what happened since, and at the end what else its result says."""
    from workloads.train import advance, loop

    search = searched(recipe)
    steps = rung_steps(task_recipe(recipe, task), search)
    store = TrialCheckpointStore(
        object_store.join(search_uri, task.folder), keeps=steps if goes_on(search, task) else [], start=start
    )
    slices = range(search.slices if task.ranked else 1)

    def begin(at: int) -> list[Any]:
        folder = scratch / str(at)
        runs = [_set_up(recipe, task, store, folder / str(number), slice_=number, at=at) for number in slices]
        there = runs[0].step
        if task.at(there) == task.at(at):
            return runs
        runs.clear()  # before others take as much memory; the newest checkpoint was damaged
        return begin(there)

    runs = begin(store.height())
    iterators, held = [advance(run) for run in runs], task.at(runs[0].step)
    past = _told_step(search_uri, task) if task.course else runs[0].step
    told = _told_up_to(past, said_of(runs[0].history.path))
    for step in steps:
        if task.at(at := runs[0].step) != held:  # what was kept there goes on with other values
            iterators.clear()
            runs.clear()
            runs = begin(at)
            iterators, held = [advance(run) for run in runs], task.at(at)
        _advance_to(step, runs, iterators, clock)
        values = mean_values([said_of(run.history.path) for run in runs], step)
        end: dict[str, Any] | None = None
        if step == steps[-1]:
            end = {"second": second_objective(search, runs[0].recipe, len(runs[0].prepared.dataset.tags))}
            if search.searcher == "pbt" and task.kind == "trial":
                end["course"] = _course(said_of(runs[0].history.path))
            if task.final:
                loop(runs[0])  # every step is done: it scores and delivers
                end |= delivered(said_of(runs[0].history.path))
        said = said_of(runs[0].history.path)  # the other slices would draw the same curves
        records: list[dict[str, Any]] = []
        if step > past:  # what belongs to earlier rungs was told before the pause
            records, told = [record for record in said[told:] if record["kind"] != "data"], len(said)
        kept = store.newest if task.kind == "trial" else ""  # nobody else goes on from those of a final
        yield Rung(step, judge(search, runs[0].recipe, values), values, records, past=step <= past, end=end, kept=kept)


def _advance_to(step: int, runs: list[Any], iterators: list[Iterator[int]], clock: Clock) -> None:
    for run, iterator in zip(runs, iterators, strict=True):
        with clock.running():
            while run.step < step:
                next(iterator)


def _told_step(search_uri: str, task: Task) -> int:
    """The last rung that a task told, before it was lost."""
    before = read_rungs(search_uri, task)
    return before["history"][-1]["step"] if before else 0


def _told_up_to(step: int, said: list[dict[str, Any]]) -> int:
    """How many of a run's records were there before it was paused at `step`; none of a run that is new."""
    return sum(record.get("step", record.get("steps", 0)) <= step for record in said) if step else 0


def _course(said: list[dict[str, Any]]) -> list[tuple[int, dict[str, float]]]:
    """The settings that led here, each with the step from which it held; nothing where they never changed."""
    course: list[tuple[int, dict[str, float]]] = []
    for record in said:
        values = record.get("values", {})
        settings = {key.removeprefix(SET): value for key, value in values.items() if key.startswith(SET)}
        if settings and (not course or course[-1][1] != settings):
            course.append((record["step"] - 1, settings))
    return course if len(course) > 1 else []


def _set_up(recipe: Recipe, task: Task, store: "TrialCheckpointStore", folder: Path, *, slice_: int, at: int) -> Any:
    from workloads.runtime.session import LocalSession
    from workloads.train import set_up

    made = task_recipe(recipe, task, slice_=slice_, at=at)
    session = LocalSession(
        work_dir=folder, event_log=EventLog(folder / "events.jsonl"), store=store, device=made.train.device
    )
    run = set_up(made, session, files=object_store.FsspecFiles())
    if searched(recipe).searcher == "pbt":  # values change at rungs: their course belongs to what it is
        values = {SET + place: float(value) for place, value in task.at(run.step).items()}  # all of them are numbers
        run.record("metrics", step=run.step + 1, values=values)
    return run


def even_out(recipe: Recipe, tasks: list[Task], search_uri: str) -> int:
    """Take trials that wait for one another back to the newest rung whose checkpoint all of them have; its height."""
    stores = [object_store.join(search_uri, task.folder, "checkpoints") for task in tasks]
    kept = [{_step_of(name): name for name in object_store.list_committed(store)} for store in stores]
    newest = max(set.intersection(*(set(names) for names in kept)), default=0)
    for store, names in zip(stores, kept, strict=True):
        for step, name in names.items():
            if step > newest:
                object_store.remove_folder(object_store.join(store, name))
    return rung_steps(task_recipe(recipe, tasks[0]), searched(recipe)).index(newest) + 1 if newest else 0


def _step_of(checkpoint: str) -> int:
    """step-S-attempt-A"""
    return int(checkpoint.split("-")[1])


class TrialCheckpointStore:
    """Where a trial keeps things, at `uri`: checkpoints of the steps in `keeps`, the newest of them; published models.

    It goes on from the checkpoint at `start`, if there is one, else from its own newest.
    """

    attempt = 1

    def __init__(self, uri: str, *, keeps: list[int], start: str = "") -> None:
        self._uri, self.keeps, self._start = uri, keeps, start
        self.newest = ""  # URI of what was kept last

    def publish(self, folder: Path) -> None:
        if _step_of(folder.name) in self.keeps:
            self.newest = self._retry(lambda: object_store.publish(folder, self._place(folder.name)))
            for name in self._committed()[:-KEPT]:
                self._retry(partial(object_store.remove_folder, self._place(name)))
        shutil.rmtree(folder)

    def deliver(self, folder: Path) -> str:
        return self._retry(lambda: object_store.publish(folder, object_store.join(self._uri, "models", folder.name)))

    def names(self) -> list[str]:
        if self._start:
            return [self._start.rsplit("/", 1)[-1]]
        return self._committed()[::-1] if self.keeps else []

    def height(self) -> int:
        """The step of the checkpoint from which it goes on; 0 where there is none."""
        return _step_of(names[0]) if (names := self.names()) else 0

    def fetch(self, name: str, work_dir: Path) -> Path:
        return self._retry(lambda: object_store.fetch(self._start or self._place(name), work_dir))

    def _committed(self) -> list[str]:
        return self._retry(lambda: object_store.list_committed(object_store.join(self._uri, "checkpoints")))

    def _retry(self, call: Callable[[], Value]) -> Value:
        return retry_while_unavailable(call, what=self._uri, patience_s=PATIENCE_S)

    def _place(self, name: str) -> str:
        return object_store.join(self._uri, "checkpoints", name)
