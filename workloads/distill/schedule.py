"""Who learns and who teaches, when: a recipe's schedule becomes a list of phases.

Pure functions of the recipe and of logged validation scores, so a resumed run takes the same decisions. Knows no torch.
Schemes and their sources: reference/cmkd.md section 3.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from workloads.config.recipe import Edge, Recipe
from workloads.config.schedules import Alternate, Gated, Generations, Mutual, OneWay, PerSample


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of steps in which the roles stand still; `start` counts the loop's steps."""

    start: int
    steps: int
    trains: tuple[str, ...]
    edges: tuple[Edge, ...] = ()
    ramp: int = 0  # steps over which the edges' weights grow to full ...
    ramp_from: int = 0  # ... counted from this step of the loop

    @property
    def end(self) -> int:
        return self.start + self.steps

    @property
    def teachers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(edge.teacher for edge in self.edges))

    @property
    def needs(self) -> tuple[str, ...]:
        """The models that must be in memory: those that learn and those that teach."""
        return tuple(dict.fromkeys((*self.trains, *self.teachers)))


def plan_phases(recipe: Recipe) -> tuple[Phase, ...]:
    """Lay out the whole run; budgets are fixed here, before anything expensive starts.

    Raises ValueError for a schedule that names unknown models, shares its turns unevenly, lets a student's weights
    exceed 1, or never opens an edge or uses a model of the recipe.
    """
    planner: Callable[..., list[Phase]] = PLANNERS[recipe.schedule.kind]
    phases = tuple(phase for phase in planner(recipe, recipe.schedule) if phase.steps)
    _check(recipe, phases)
    return phases


def own_steps(phases: tuple[Phase, ...], *, until: int | None = None) -> dict[str, int]:
    """How many optimizer steps each model takes in the whole run, or in its first `until` steps."""
    totals: dict[str, int] = {}
    for phase in phases:
        steps = phase.steps if until is None else min(max(until - phase.start, 0), phase.steps)
        for name in phase.needs:
            totals[name] = totals.get(name, 0) + (steps if name in phase.trains else 0)
    return totals


def edge_weights(recipe: Recipe, phase: Phase, step: int, scores: Mapping[str, float]) -> dict[str, float]:
    """The weight of each open edge in this step, by edge key.

    `scores` are smoothed validation scores by model (empty before the first validation); only `gated` looks at them.
    """
    ramp = min(1.0, (step - phase.ramp_from + 1) / phase.ramp) if phase.ramp else 1.0
    weights = {edge.key: edge.weight * ramp for edge in phase.edges}
    schedule = recipe.schedule
    if isinstance(schedule, Gated) and scores:
        for edge in phase.edges:
            lead = (scores[edge.teacher] - scores[edge.student]) / schedule.margin
            share = 0.5 * (1 + math.tanh(lead / 2))  # the logistic function, without its overflow
            weights[edge.key] *= schedule.floor + (1 - schedule.floor) * share
    return weights


def smooth_scores(recipe: Recipe, scores: Mapping[str, float], new: Mapping[str, float]) -> dict[str, float]:
    """Validation scores as the weights see them: a moving average under `gated`, the newest otherwise."""
    keep = recipe.schedule.smoothing if isinstance(recipe.schedule, Gated) else 0.0
    return {**scores, **{name: keep * scores.get(name, value) + (1 - keep) * value for name, value in new.items()}}


def _one_way(recipe: Recipe, schedule: OneWay) -> list[Phase]:
    recipe.require_known_models("schedule.teachers", schedule.teachers)
    if not schedule.teachers or set(schedule.teachers) == set(recipe.models):
        raise ValueError(f"schedule.teachers = {list(schedule.teachers)}: name one or more models, and leave a student")
    students = tuple(name for name in recipe.models if name not in schedule.teachers)
    edges = tuple(edge for edge in recipe.edges if edge.teacher in schedule.teachers and edge.student in students)
    first = schedule.teacher_steps
    return [
        Phase(start=0, steps=first, trains=schedule.teachers),
        Phase(start=first, steps=schedule.steps, trains=students, edges=edges, ramp=schedule.ramp, ramp_from=first),
    ]


def _generations(recipe: Recipe, schedule: Generations) -> list[Phase]:
    recipe.require_known_models("schedule.order", schedule.order)
    phases = []
    for number, name in enumerate(schedule.order):
        earlier = schedule.order[:number]
        edges = tuple(edge for edge in recipe.edges if edge.student == name and edge.teacher in earlier)
        start = number * schedule.steps
        phases.append(
            Phase(start=start, steps=schedule.steps, trains=(name,), edges=edges, ramp=schedule.ramp, ramp_from=start)
        )
    return phases


def _alternate(recipe: Recipe, schedule: Alternate) -> list[Phase]:
    order = schedule.order or tuple(recipe.models)
    if sorted(order) != sorted(recipe.models):
        raise ValueError(f"schedule.order = {list(order)}: must name each model once: {', '.join(recipe.models)}")
    phases = [Phase(start=0, steps=schedule.burn_in, trains=tuple(recipe.models))]
    for turn in range(schedule.turns):
        student = order[turn % len(order)]
        phases.append(
            Phase(
                start=schedule.burn_in + turn * schedule.period,
                steps=schedule.period,
                trains=(student,),
                edges=tuple(edge for edge in recipe.edges if edge.student == student),
                ramp=schedule.ramp,
                ramp_from=schedule.burn_in,
            )
        )
    return phases


def _together(recipe: Recipe, schedule: Mutual | Gated | PerSample) -> list[Phase]:
    everyone, first = tuple(recipe.models), schedule.burn_in
    length = schedule.exchange if isinstance(schedule, Mutual) and schedule.exchange else schedule.steps
    phases = [Phase(start=0, steps=first, trains=everyone)]
    for start in range(first, first + schedule.steps, length):
        steps = min(length, first + schedule.steps - start)
        phases.append(
            Phase(start=start, steps=steps, trains=everyone, edges=recipe.edges, ramp=schedule.ramp, ramp_from=first)
        )
    return phases


def _per_sample(recipe: Recipe, schedule: PerSample) -> list[Phase]:
    for edge in recipe.edges:
        if edge.gate != "better_on_clip":
            raise ValueError(f"edges {edge.key}: gate = {edge.gate!r}: per_sample needs gate = 'better_on_clip'")
    return _together(recipe, schedule)


PLANNERS: dict[str, Callable[..., list[Phase]]] = {
    "one_way": _one_way,
    "generations": _generations,
    "alternate": _alternate,
    "mutual": _together,
    "gated": _together,
    "per_sample": _per_sample,
}


def _check(recipe: Recipe, phases: tuple[Phase, ...]) -> None:
    kind = recipe.schedule.kind
    used = {name for phase in phases for name in phase.needs}
    if idle := [name for name in recipe.models if name not in used]:
        raise ValueError(f"models {', '.join(idle)}: neither learn nor teach under schedule {kind}; remove them")
    opened = {edge.key for phase in phases for edge in phase.edges}
    if closed := [edge.key for edge in recipe.edges if edge.key not in opened]:
        raise ValueError(f"edges {', '.join(closed)}: never open under schedule {kind}; remove them or change it")
    totals = own_steps(phases)
    for name in sorted({name for phase in phases for name in phase.teachers}):
        if not totals[name] and not recipe.models[name].init:
            raise ValueError(f"models.{name}: teaches but never learns; give it weights (init) or steps of its own")
    for phase in phases:
        for student in phase.trains:
            total = sum(edge.weight for edge in phase.edges if edge.student == student)
            if total > 1 + 1e-9:
                raise ValueError(f"edges into {student}: weights sum to {total:g}; at most 1, labels get the rest")
        for edge in phase.edges:
            _check_edge(recipe, phase, edge)


def _check_edge(recipe: Recipe, phase: Phase, edge: Edge) -> None:
    if edge.view == "clean" and edge.source == "live" and edge.teacher in phase.trains:
        raise ValueError(
            f"edges {edge.key}: view = 'clean': a model that learns in the same step teaches with its training "
            "forward; use view = 'same', or source = 'snapshot' or 'ema'"
        )
    if edge.source == "ema" and recipe.models[edge.teacher].average.kind != "ema":
        raise ValueError(
            f"edges {edge.key}: source = 'ema': set models.{edge.teacher}.average.kind = 'ema' to keep that average"
        )
