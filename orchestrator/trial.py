"""One trial of a search: a recipe with some values set, learned and judged in the process that calls.

Knows neither who proposes nor who stops: it says how it does at every rung, and what it is told then ends it. Its
result is committed once (`search_files.py`); asked again, it tells what it told before and learns nothing.
"""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator import storage
from orchestrator.recipe import changed
from orchestrator.search_files import Task, read_result, write_result, write_settings
from workloads import roles
from workloads.config import Recipe
from workloads.schedules import Alternate
from workloads.space import Search
from workloads.spool import Spool, read_spool

Report = Callable[[dict[str, Any]], None]
KEPT = 3  # checkpoints of a trial: another may be about to go on from one


@dataclass(frozen=True)
class Rung:
    """How a trial stands after `step` steps; `objective` is smaller when it is better."""

    step: int
    objective: float
    values: dict[str, float]
    records: list[dict[str, Any]]  # what happened since the rung before
    past: bool  # whether it was reached before the trial was paused
    end: dict[str, Any] | None  # what else the result says; None: it is not the last rung
    kept: str  # URI of the checkpoint taken here, if any

    def as_dict(self) -> dict[str, Any]:
        return {"step": self.step, "objective": self.objective, "values": self.values}


def trial_recipe(recipe: Recipe, settings: dict[str, Any], *, seed: int | None = None, slice_: int = 0) -> Recipe:
    """The recipe that a trial learns: its values set, judged at every rung, saved there only if trials pause.

    `slice_` counts validation slices from the recipe's own on, around the training folds.

    Raises ValueError where the values make no recipe, or where its rungs do not cut its schedule into equal turns.
    """
    search = searched(recipe)
    made = changed(recipe, settings)
    steps = rungs(made, search)
    train = replace(
        made.train,
        eval_every=steps[0],
        checkpoint_every=steps[0] if search.pauses else steps[-1],
        seed=made.train.seed if seed is None else seed,
    )
    slices = round(1 / made.data.val_share)
    if search.slices > slices:
        raise ValueError(
            f"search.slices = {search.slices}: data.val_share = {made.data.val_share:g} makes {slices} slices"
        )
    data = replace(made.data, val_slice=(made.data.val_slice + slice_) % slices)
    return replace(made, train=train, data=data, search=None)


def searched(recipe: Recipe) -> Search:
    """The recipe's search table; ValueError where it has none."""
    if recipe.search is None:
        raise ValueError(
            f"recipe {recipe.name!r}: has no [search.space]; say there what to vary, such as "
            '"edges.0.weight" = { low = 0.1, high = 0.9 }'
        )
    return recipe.search


def rungs(recipe: Recipe, search: Search) -> list[int]:
    """The steps at which a trial is judged, the last one its end.

    Raises ValueError where they are no whole steps, or where they would judge models that had different numbers of
    turns.
    """
    total = roles.plan(recipe)[-1].end
    if total % search.rungs:
        raise ValueError(f"search.rungs = {search.rungs}: must divide the schedule's {total} steps")
    steps = [total // search.rungs * number for number in range(1, search.rungs + 1)]
    schedule = recipe.schedule
    if search.rungs > 1 and isinstance(schedule, Alternate):
        cycle = schedule.period * len(schedule.order or recipe.models)
        uneven = [step for step in steps if step > schedule.burn_in and (step - schedule.burn_in) % cycle]
        if uneven:
            raise ValueError(
                f"schedule.period = {schedule.period}: at step {uneven[0]}, where a trial is judged, the models would "
                f"have had different numbers of turns; burn_in = {schedule.burn_in} and whole cycles of {cycle} steps "
                f"must end at every {steps[0]} steps (search.rungs = {search.rungs})"
            )
    return steps


def judge(search: Search, recipe: Recipe, values: dict[str, float]) -> float:
    """The mean over the models of the search's metric, turned so that less is better."""
    models = search.models or tuple(recipe.models)
    mean = sum(values[f"{name}/val/{search.metric}"] for name in models) / len(models)
    return mean if search.lower_is_better else 1 - mean


def learn(recipe: Recipe, task: Task, home: str, report: Report, *, start: str = "") -> None:
    """Learn and judge a task of the search at `home`; `report` hears every rung and may end it by raising.

    It goes on from the checkpoint at `start`, another trial's, or from its own newest where trials pause. What goes
    wrong for good (a recipe that cannot be, numbers that are not finite) is the trial's result; what may go better
    another time is raised.
    """
    from workloads.predict import BadNumbers

    done = read_result(home, task)
    if done is not None:
        for height, rung in enumerate(done["history"], start=1):
            report({"rung": rung, "height": height, "records": []})
        return
    began, clock = time.time(), _Clock()
    write_settings(home, task, began=began)
    history: list[dict[str, Any]] = []

    def commit(status: str, reason: str = "", **more: Any) -> None:
        objective = history[-1]["objective"] if status == "done" else None
        result = {"status": status, "reason": reason, "objective": objective, "history": history, "began": began}
        write_result(home, task, result | {"loop_seconds": round(clock.seconds, 3)} | more)

    try:
        with tempfile.TemporaryDirectory(prefix="antiphon-") as scratch:
            for rung in climb(recipe, task, home, Path(scratch), clock, start=start):
                history.append(rung.as_dict())
                if rung.end is not None:
                    commit("done", **rung.end)  # before it is told: whoever hears of it finds it
                if not rung.past:
                    kept = {"kept": rung.kept, "loop_seconds": round(clock.seconds, 3)}
                    report({"rung": history[-1], "height": len(history), "records": rung.records, **kept})
    except (ValueError, BadNumbers) as error:
        commit("failed", f"{type(error).__name__}: {error}")
        report({"rung": None, "height": len(history) + 1, "records": []})


class _Clock:
    """Seconds spent inside the loop."""

    seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began


def climb(recipe: Recipe, task: Task, home: str, scratch: Path, clock: _Clock, *, start: str) -> Iterator[Rung]:
    """Rung after rung: how it stands, what happened since, and at the end what else its result says."""
    from workloads.train import advance, loop

    search, final = searched(recipe), task.kind in ("winner", "control")
    steps = rungs(changed(recipe, task.settings), search)
    shelf = TrialShelf(storage.join(home, task.folder), keeps=steps if search.pauses and not final else [], start=start)
    slices = range(1 if final else search.slices)
    runs = [_set_up(recipe, task, shelf, scratch / str(number), slice_=number) for number in slices]
    ways, past, told = [advance(run) for run in runs], runs[0].step, runs[0].step
    for step in steps:
        for run, way in zip(runs, ways, strict=True):
            with clock.running():
                while run.step < step:
                    next(way)
        values = _mean_values(runs, step)
        end: dict[str, Any] | None = None
        if step == steps[-1]:
            end = {"second": _second(search, runs[0])}
            if final:
                loop(runs[0])  # every step is done: it scores and delivers
                end["test"] = _tests(_said(runs[0]))
        records = [record for record in _said(runs[0]) if told < record.get("step", record.get("steps", 0)) <= step]
        told = max(told, step)
        yield Rung(step, judge(search, recipe, values), values, records, past=step <= past, end=end, kept=shelf.newest)


def _set_up(recipe: Recipe, task: Task, shelf: "TrialShelf", folder: Path, *, slice_: int) -> Any:
    from workloads.session import LocalSession
    from workloads.train import set_up

    made = trial_recipe(recipe, task.settings, seed=task.seed, slice_=slice_)
    if task.kind == "control":
        made = replace(made, edges=())
    session = LocalSession(work_dir=folder, spool=Spool(folder / "spool.jsonl"), shelf=shelf, device=made.train.device)
    run = set_up(made, session, files=storage.FsspecFiles())
    if shelf.keeps:  # values may change at every rung: their course belongs to what was learned
        values = {f"set/{place}": float(value) for place, value in task.settings.items()}
        run.note("metrics", step=run.step + 1, values=values)
    return run


def _said(run: Any) -> list[dict[str, Any]]:
    """What a run said, also before it was paused; of the first slice's run, the others would draw the same curves."""
    shown = ("metrics", "phase", "result", "bad")
    return [record for record in read_spool(run.history.path) if record["kind"] in shown]


def _mean_values(runs: list[Any], step: int) -> dict[str, float]:
    """Every model's newest validation scores up to a step, the mean over the slices."""
    newest: list[dict[str, float]] = []
    for run in runs:
        own: dict[str, float] = {}
        for record in _said(run):
            if record["kind"] == "metrics" and record["step"] <= step:
                own |= {key: value for key, value in record["values"].items() if "/val/" in key}
        newest.append(own)
    return {key: sum(own[key] for own in newest) / len(newest) for key in newest[0]}


def _second(search: Search, run: Any) -> float | None:
    """The second objective of what was learned: multiply-adds, or milliseconds, per clip; the sum over the models."""
    if not search.second:
        return None
    from workloads.models.size import count, seconds_per_clip

    recipe, total = run.recipe, 0.0
    for name in search.models or tuple(recipe.models):
        shape: dict[str, Any] = {
            "num_classes": len(run.prepared.corpus.tags),
            "clip_seconds": recipe.data.clip_seconds,
            "clip_rate": recipe.rate,
        }
        model = recipe.models[name]
        total += count(model, **shape).macs if search.second == "macs" else 1000 * seconds_per_clip(model, **shape)
    return total


def _tests(records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    (result,) = (record for record in records if record["kind"] == "result")
    return {name: row["test"] for name, row in result["models"].items()}


class TrialShelf:
    """Where a trial keeps things, at `uri`: checkpoints of the steps in `keeps`, the newest of them; published models.

    It goes on from the checkpoint at `start`, if there is one, else from its own newest.
    """

    attempt = 1

    def __init__(self, uri: str, *, keeps: list[int], start: str = "") -> None:
        self._uri, self.keeps, self._start = uri, keeps, start
        self.newest = ""  # URI of what was kept last

    def publish(self, folder: Path) -> None:
        if int(folder.name.split("-")[1]) in self.keeps:  # its name is step-S-attempt-A
            self.newest = storage.publish(folder, self._place(folder.name))
            for name in storage.committed(storage.join(self._uri, "checkpoints"))[:-KEPT]:
                storage.remove(self._place(name))
        shutil.rmtree(folder)

    def deliver(self, folder: Path) -> str:
        return storage.publish(folder, storage.join(self._uri, "models", folder.name))

    def names(self) -> list[str]:
        if self._start:
            return [self._start.rsplit("/", 1)[-1]]
        return storage.committed(storage.join(self._uri, "checkpoints"))[::-1] if self.keeps else []

    def fetch(self, name: str, work_dir: Path) -> Path:
        return storage.fetch(self._start or self._place(name), work_dir)

    def _place(self, name: str) -> str:
        return storage.join(self._uri, "checkpoints", name)
