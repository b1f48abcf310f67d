"""The rungs of a trial: the steps at which it is judged, its scores there, and what it reports there.

Pure but for `LoopTimer`, and without torch except within `second_objective`. Does not depend on Ray or on the search's
files.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.config.recipe import Recipe
from workloads.config.schedules import Alternate
from workloads.config.search import Search
from workloads.distill.schedule import own_steps, plan_phases
from workloads.runtime.event_log import read_event_log

SETTING_PREFIX = "set/"  # of the metrics that record how the settings of a population's member change
# of a trial's records, those that the search reads or forwards
FORWARDED_KINDS = ("data", "replaced", "metrics", "phase", "result", "bad")


@dataclass(frozen=True)
class RungScore:
    """The scores of a trial at one rung, after `step` steps."""

    step: int
    objective: float | None  # smaller is better; None: read from a file where it was missing or not finite
    values: Mapping[str, float]  # every model's validation scores

    def as_json(self) -> dict[str, Any]:
        """An entry of `history` in rungs.json and result.json."""
        return {"step": self.step, "objective": self.objective, "values": self.values}


@dataclass(frozen=True)
class RungReport:
    """What a trial reports at a rung."""

    score: RungScore
    records: list[dict[str, Any]]  # event-log records since the previous rung
    already_reported: bool  # before the trial was paused, or its process lost
    final_fields: dict[str, Any] | None  # further fields of the result; None: this is not the last rung
    checkpoint_uri: str  # of the checkpoint taken at this rung, if any


class LoopTimer:
    """Adds up the seconds spent inside the training loop."""

    seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


def forwarded_records(event_log: Path) -> list[dict[str, Any]]:
    """The records of a training run that the search reads or forwards; those from before a pause included."""
    return [record for record in read_event_log(event_log) if record["kind"] in FORWARDED_KINDS]


def mean_validation_scores(records_by_slice: list[list[dict[str, Any]]], step: int) -> dict[str, float]:
    """Every model's newest validation scores up to a step, each the mean over the slices."""
    newest: list[dict[str, float]] = []
    for records in records_by_slice:
        scores: dict[str, float] = {}
        for record in records:
            if record["kind"] == "metrics" and record["step"] <= step:
                scores |= {key: value for key, value in record["values"].items() if "/val/" in key}
        newest.append(scores)
    return {key: sum(scores[key] for scores in newest) / len(newest) for key in newest[0]}


def second_objective(search: Search, trial_recipe: Recipe, num_tags: int) -> float | None:
    """Multiply-adds, or milliseconds, per clip: the sum over the judged models; None without `search.second`."""
    if not search.second:
        return None
    from workloads.models.size import model_size, seconds_per_clip

    total = 0.0
    for name in judged_models(search, trial_recipe):
        shape: dict[str, Any] = {
            "num_classes": num_tags,
            "clip_seconds": trial_recipe.data.clip_seconds,
            "clip_rate": trial_recipe.rate,
        }
        model = trial_recipe.models[name]
        total += model_size(model, **shape).macs if search.second == "macs" else 1000 * seconds_per_clip(model, **shape)
    return total


def delivery_fields(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Result fields of a task that delivers its models: test scores, and the record that the registry reads."""
    *_, result = (record for record in records if record["kind"] == "result")
    return {"test": {name: row["test"] for name, row in result["models"].items()}, "delivered": result}


def rung_steps(trial_recipe: Recipe, search: Search) -> list[int]:
    """The steps at which a trial is judged; the last one is its last step.

    Raises ValueError where the schedule does not divide into whole steps, or where models would be judged after
    different numbers of turns.
    """
    total = plan_phases(trial_recipe)[-1].end
    if total % search.rungs:
        raise ValueError(f"search.rungs = {search.rungs}: must divide the schedule's {total} steps")
    steps = [total // search.rungs * number for number in range(1, search.rungs + 1)]
    schedule = trial_recipe.schedule
    if search.rungs > 1 and isinstance(schedule, Alternate):
        cycle = schedule.period * len(schedule.order or trial_recipe.models)
        uneven = [step for step in steps if step > schedule.burn_in and (step - schedule.burn_in) % cycle]
        if uneven:
            raise ValueError(
                f"schedule.period = {schedule.period}: at step {uneven[0]}, where a trial is judged, the models would "
                f"have had different numbers of turns; burn_in = {schedule.burn_in} and whole cycles of {cycle} steps "
                f"must end at every {steps[0]} steps (search.rungs = {search.rungs})"
            )
    return steps


def judged_models(search: Search, trial_recipe: Recipe) -> tuple[str, ...]:
    """The models whose metric counts: those that the search names, else all that are trained.

    Raises ValueError for a model that the recipe does not have, or that has not been trained at the first rung.
    """
    trial_recipe.require_known_models("search.models", search.models)
    phases, first = plan_phases(trial_recipe), rung_steps(trial_recipe, search)[0]
    in_all, at_first = own_steps(phases), own_steps(phases, until=first)
    names = search.models or tuple(name for name in trial_recipe.models if in_all[name])
    if untrained := [name for name in names if not at_first.get(name)]:
        raise ValueError(
            f"search.rungs = {search.rungs}: at step {first}, where a trial is first judged, {', '.join(untrained)} "
            "has not been trained yet; use fewer rungs, or name in search.models only models that have"
        )
    return names


def objective(search: Search, trial_recipe: Recipe, values: Mapping[str, float]) -> float:
    """The mean of the search's metric over the judged models; 1 minus it where more is better, so less always is."""
    models = judged_models(search, trial_recipe)
    mean = sum(values[f"{name}/val/{search.metric}"] for name in models) / len(models)
    return mean if search.lower_is_better else 1 - mean
