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


@dataclass(frozen=True)
class Rung:
    """How a trial stands after `step` steps; `objective` is smaller when it is better."""

    step: int
    objective: float
    values: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        return {"step": self.step, "objective": self.objective, "values": self.values}


def trial_recipe(recipe: Recipe, settings: dict[str, Any], *, seed: int | None = None, slice_: int = 0) -> Recipe:
    """The recipe that a trial learns: its values set, judged at every rung, saved nowhere in between.

    `slice_` counts validation slices from the recipe's own on, around the training folds.

    Raises ValueError where the values make no recipe, or where its rungs do not cut its schedule into equal turns.
    """
    search = searched(recipe)
    made = changed(recipe, settings)
    steps = rungs(made, search)
    train = replace(
        made.train,
        eval_every=steps[0],
        checkpoint_every=steps[-1],
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


def learn(recipe: Recipe, task: Task, home: str, report: Report) -> None:
    """Learn and judge a task of the search at `home`; `report` hears every rung and may end it by raising.

    What goes wrong for good (a recipe that cannot be, numbers that are not finite) is the trial's result; what may go
    better another time is raised.
    """
    from workloads.predict import BadNumbers

    done = read_result(home, task)
    if done is not None:
        for rung in done["history"]:
            report({"rung": rung, "records": []})
        return
    began, clock = time.time(), _Clock()
    write_settings(home, task, began=began)
    history: list[dict[str, Any]] = []

    def commit(status: str, reason: str = "", **more: Any) -> None:
        objective = history[-1]["objective"] if status == "done" and history else None
        result = {"status": status, "reason": reason, "objective": objective, "history": history, "began": began}
        write_result(home, task, result | {"loop_seconds": round(clock.seconds, 3)} | more)

    try:
        with tempfile.TemporaryDirectory(prefix="antiphon-") as scratch:
            for rung, records, more in _climb(recipe, task, home, Path(scratch), clock):
                history.append(rung.as_dict())
                if more is not None:
                    commit("done", **more)  # before it is told: whoever hears of it finds it
                report({"rung": history[-1], "records": records, "loop_seconds": round(clock.seconds, 3)})
    except (ValueError, BadNumbers) as error:
        commit("failed", f"{type(error).__name__}: {error}")
        report({"rung": None, "records": [], "reason": str(error)})


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


def _climb(
    recipe: Recipe, task: Task, home: str, scratch: Path, clock: _Clock
) -> Iterator[tuple[Rung, list[dict[str, Any]], dict[str, Any] | None]]:
    """Rung after rung: how it stands, what happened since, and at the end what else its result says."""
    from workloads.session import LocalSession
    from workloads.train import advance, loop, set_up

    search = searched(recipe)
    final = task.kind in ("winner", "control")
    runs = []
    for number in range(1 if final else search.slices):
        made = trial_recipe(recipe, task.settings, seed=task.seed, slice_=number)
        if task.kind == "control":
            made = replace(made, edges=())
        folder = scratch / str(number)
        session = LocalSession(
            work_dir=folder,
            spool=Spool(folder / "spool.jsonl"),
            shelf=TrialShelf(storage.join(home, task.folder)),
            device=made.train.device,
        )
        runs.append(set_up(made, session, files=storage.FsspecFiles()))
    steps = rungs(runs[0].recipe, search)
    ways = [advance(run) for run in runs]
    told = [0] * len(runs)
    for step in steps:
        for run, way in zip(runs, ways, strict=True):
            with clock.running():
                while run.step < step:
                    next(way)
        news = _news(scratch, told)
        values = _mean_values(scratch, len(runs))
        more: dict[str, Any] | None = None
        if step == steps[-1]:
            more = {"second": _second(search, runs[0])}
            if final:
                loop(runs[0])  # every step is done: it scores and delivers
                news += _news(scratch, told)
                more["test"] = _tests(news)
        yield Rung(step, judge(search, recipe, values), values), news, more


def _news(scratch: Path, told: list[int]) -> list[dict[str, Any]]:
    """What the first slice's run said since the last time; the others would draw the same curves again."""
    records = read_spool(scratch / "0" / "spool.jsonl")
    fresh, told[0] = records[told[0] :], len(records)
    return [record for record in fresh if record["kind"] in ("metrics", "phase", "result", "bad")]


def _mean_values(scratch: Path, slices: int) -> dict[str, float]:
    """Every model's newest validation scores, the mean over the slices."""
    newest: list[dict[str, float]] = []
    for number in range(slices):
        own: dict[str, float] = {}
        for record in read_spool(scratch / str(number) / "spool.jsonl"):
            if record["kind"] == "metrics":
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
    """Where a trial keeps things: no checkpoints, and published models (of a winner and its control) at `uri`."""

    attempt = 1

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def publish(self, folder: Path) -> None:
        shutil.rmtree(folder)

    def deliver(self, folder: Path) -> str:
        return storage.publish(folder, storage.join(self._uri, "models", folder.name))

    def names(self) -> list[str]:
        return []

    def fetch(self, name: str, work_dir: Path) -> Path:
        raise AssertionError("a trial has no checkpoints")
