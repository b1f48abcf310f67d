"""How a trial stands at its rungs: the steps at which it is judged, and what is reported of it there."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.config.recipe import Recipe
from workloads.config.schedules import Alternate
from workloads.config.search import Search
from workloads.distill.schedule import own_steps, plan_phases
from workloads.runtime.event_log import read_event_log

SET = "set/"  # a metric's name before a setting's: how a population's values changed


@dataclass(frozen=True)
class Rung:
    """How a trial stands after `step` steps; `objective` is smaller when it is better."""

    step: int
    objective: float
    values: dict[str, float]
    records: list[dict[str, Any]]  # what happened since the rung before
    past: bool  # whether it was told before the trial was paused or lost
    end: dict[str, Any] | None  # what else the result says; None: it is not the last rung
    kept: str  # URI of the checkpoint taken here, if any

    def as_dict(self) -> dict[str, Any]:
        return {"step": self.step, "objective": self.objective, "values": self.values}


class Clock:
    """Seconds spent inside the loop."""

    seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began


def said_of(event_log: Path) -> list[dict[str, Any]]:
    """What a run said, also before it was paused, that the search tells on."""
    shown = ("data", "metrics", "phase", "result", "bad")
    return [record for record in read_event_log(event_log) if record["kind"] in shown]


def mean_values(said: list[list[dict[str, Any]]], step: int) -> dict[str, float]:
    """Every model's newest validation scores up to a step, the mean over the slices' records."""
    newest: list[dict[str, float]] = []
    for records in said:
        own: dict[str, float] = {}
        for record in records:
            if record["kind"] == "metrics" and record["step"] <= step:
                own |= {key: value for key, value in record["values"].items() if "/val/" in key}
        newest.append(own)
    return {key: sum(own[key] for own in newest) / len(newest) for key in newest[0]}


def second_objective(search: Search, recipe: Recipe, num_tags: int) -> float | None:
    """The second objective of what was learned: multiply-adds, or milliseconds, per clip; the sum over the models."""
    if not search.second:
        return None
    from workloads.models.size import model_size, seconds_per_clip

    total = 0.0
    for name in judged_models(search, recipe):
        shape: dict[str, Any] = {
            "num_classes": num_tags,
            "clip_seconds": recipe.data.clip_seconds,
            "clip_rate": recipe.rate,
        }
        model = recipe.models[name]
        total += model_size(model, **shape).macs if search.second == "macs" else 1000 * seconds_per_clip(model, **shape)
    return total


def delivered(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What a task says that delivers its models: their test scores, and the record of which MLflow makes versions."""
    *_, result = (record for record in records if record["kind"] == "result")
    return {"test": {name: row["test"] for name, row in result["models"].items()}, "delivered": result}


def rung_steps(recipe: Recipe, search: Search) -> list[int]:
    """The steps at which a trial is judged, the last one its end.

    Raises ValueError where they are no whole steps, or where they would judge models that had different numbers of
    turns.
    """
    total = plan_phases(recipe)[-1].end
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


def judged_models(search: Search, made: Recipe) -> tuple[str, ...]:
    """Whose metric counts: the models that the search names, else all that learn.

    Raises ValueError for one that the recipe does not have, or that has not learned yet where it is first judged.
    """
    made.require_known_models("search.models", search.models)
    phases, first = plan_phases(made), rung_steps(made, search)[0]
    whole, early = own_steps(phases), own_steps(phases, until=first)
    names = search.models or tuple(name for name in made.models if whole[name])
    if unready := [name for name in names if not early.get(name)]:
        raise ValueError(
            f"search.rungs = {search.rungs}: at step {first}, where a trial is first judged, {', '.join(unready)} has "
            "not learned yet; have fewer rungs, or name in search.models those that have"
        )
    return names


def judge(search: Search, made: Recipe, values: dict[str, float]) -> float:
    """The mean over the judged models of the search's metric, turned so that less is better."""
    models = judged_models(search, made)
    mean = sum(values[f"{name}/val/{search.metric}"] for name in models) / len(models)
    return mean if search.lower_is_better else 1 - mean
