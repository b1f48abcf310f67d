"""Role schedules: which models train and which teach in which steps, as a list of phases.

Pure functions of the recipe and of logged validation scores, so a resumed run takes the same decisions. Does not depend
on torch. Schemes and their sources: reference/cmkd.md section 3.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from workloads.config.controls import begins_as_copy, controls_of, without_controls
from workloads.config.edge import Edge
from workloads.config.recipe import Recipe
from workloads.config.schedules import Alternate, Gated, Generations, Mutual, OneWay, PerSample


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Consecutive steps with the same roles, from step `start` of the loop (counted from 0) up to `end`, exclusive."""

    start: int
    steps: int
    trains: tuple[str, ...]  # the models that train: students, with or without a teacher
    edges: tuple[Edge, ...] = ()  # the edges that are open
    ramp: int = 0  # steps over which edge weights rise linearly to their full values ...
    ramp_from: int = 0  # ... counted from this step of the loop

    @property
    def end(self) -> int:
        return self.start + self.steps

    @property
    def teachers(self) -> tuple[str, ...]:
        """The models that teach; stores do too, but are no models."""
        return tuple(dict.fromkeys(edge.teacher for edge in self.edges if not edge.store))

    @property
    def needs(self) -> tuple[str, ...]:
        """The models that must be in memory: those that train and those that teach."""
        return tuple(dict.fromkeys((*self.trains, *self.teachers)))

    @property
    def needs_clean_view(self) -> bool:
        """Whether a model that teaches gets the clips without augmentation."""
        return any(edge.view == "clean" and not edge.store for edge in self.edges)


def plan_phases(recipe: Recipe) -> tuple[Phase, ...]:
    """The phases of the whole run. They fix every model's number of steps before anything expensive starts.

    Raises ValueError for a schedule that names unknown models, does not name each model once where it must, lets the
    weights into a student sum to more than 1, or never opens an edge or never uses a model of the recipe.
    """
    planner: Callable[..., list[Phase]] = PLANNERS[recipe.schedule.kind]
    planned = without_controls(recipe)
    between_models = replace(planned, compare=False, edges=tuple(edge for edge in planned.edges if not edge.store))
    phases = tuple(phase for phase in planner(between_models, planned.schedule) if phase.steps)
    phases = _with_stores(planned, phases)
    _check_phases(planned, phases)
    return _with_controls(recipe, phases)


def _with_stores(recipe: Recipe, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """The phases, with what stores teach: a store is a finished teacher, so it teaches whenever its student trains."""
    edges = [edge for edge in recipe.edges if edge.store]
    return tuple(
        replace(phase, edges=(*phase.edges, *(edge for edge in edges if edge.student in phase.trains)))
        for phase in phases
    )


def _with_controls(recipe: Recipe, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """The phases in which controls train beside their students, where the two are not yet or no longer the same."""
    with_controls: list[Phase] = []
    controls = controls_of(recipe)
    began = {student for student, control in controls.items() if not begins_as_copy(recipe, control)}
    for phase in phases:
        began |= {edge.student for edge in phase.edges}
        own = (control for student, control in controls.items() if student in phase.trains and student in began)
        with_controls.append(replace(phase, trains=(*phase.trains, *own)))
    return tuple(with_controls)


def own_steps(phases: tuple[Phase, ...], *, until: int | None = None) -> dict[str, int]:
    """The number of optimizer steps of each model in the whole run, or in its first `until` steps."""
    totals: dict[str, int] = {}
    for phase in phases:
        steps = phase.steps if until is None else min(max(until - phase.start, 0), phase.steps)
        for name in phase.needs:
            totals[name] = totals.get(name, 0) + (steps if name in phase.trains else 0)
    return totals


def label_learners(phases: tuple[Phase, ...]) -> tuple[str, ...]:
    """The models that learn from labels: the weights of the open edges into them sum to less than 1 in some phase."""
    learners: dict[str, None] = {}
    for phase in phases:
        taught = {name: _weight_of_teachers(phase, name) for name in phase.trains}
        learners |= {name: None for name, weight in taught.items() if weight < 1 - 1e-9}
    return tuple(learners)


def _weight_of_teachers(phase: Phase, student: str, *, carries: str = "logits") -> float:
    """The sum of the weights that labels do not have: of the open edges that carry logits; others add to the loss.

    Labels in time share theirs with the edges that carry frames.
    """
    return sum(edge.weight for edge in phase.edges if edge.student == student and edge.carries == carries)


def edge_weights(recipe: Recipe, phase: Phase, step: int, scores: Mapping[str, float]) -> dict[str, float]:
    """The weight of each open edge in this step, by edge key: its weight in the recipe, of a model times the ramp.

    Under `gated` that of a model also times floor + (1 - floor) sigmoid((teacher's score - student's score) / margin).
    `scores` are smoothed validation scores by model, empty before the first validation: then there is no such factor.
    """
    ramp = min(1.0, (step - phase.ramp_from + 1) / phase.ramp) if phase.ramp else 1.0
    weights = {edge.key: edge.weight * (1.0 if edge.store else ramp) for edge in phase.edges}
    schedule = recipe.schedule
    if isinstance(schedule, Gated) and scores:
        for edge in (edge for edge in phase.edges if not edge.store):
            lead = (scores[edge.teacher] - scores[edge.student]) / schedule.margin
            share = 0.5 * (1 + math.tanh(lead / 2))  # the sigmoid of lead, without overflow
            weights[edge.key] *= schedule.floor + (1 - schedule.floor) * share
    return weights


def smooth_scores(recipe: Recipe, scores: Mapping[str, float], new: Mapping[str, float]) -> dict[str, float]:
    """The scores for `edge_weights` after a validation: an exponential moving average under `gated`, else the `new`."""
    decay = recipe.schedule.smoothing if isinstance(recipe.schedule, Gated) else 0.0
    return {**scores, **{name: decay * scores.get(name, value) + (1 - decay) * value for name, value in new.items()}}


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


def _simultaneous(recipe: Recipe, schedule: Mutual | Gated | PerSample) -> list[Phase]:
    """All models train in every step; with `exchange` in phases of that many steps, so that snapshots are renewed."""
    models, first = tuple(recipe.models), schedule.burn_in
    length = schedule.exchange if isinstance(schedule, Mutual) and schedule.exchange else schedule.steps
    phases = [Phase(start=0, steps=first, trains=models)]
    for start in range(first, first + schedule.steps, length):
        steps = min(length, first + schedule.steps - start)
        phases.append(
            Phase(start=start, steps=steps, trains=models, edges=recipe.edges, ramp=schedule.ramp, ramp_from=first)
        )
    return phases


def _per_sample(recipe: Recipe, schedule: PerSample) -> list[Phase]:
    for edge in recipe.edges:
        if edge.gate != "better_on_clip" and edge.carries == "logits":
            raise ValueError(f"edges {edge.key}: gate = {edge.gate!r}: per_sample needs gate = 'better_on_clip'")
    return _simultaneous(recipe, schedule)


PLANNERS: dict[str, Callable[..., list[Phase]]] = {
    "one_way": _one_way,
    "generations": _generations,
    "alternate": _alternate,
    "mutual": _simultaneous,
    "gated": _simultaneous,
    "per_sample": _per_sample,
}


def _check_phases(recipe: Recipe, phases: tuple[Phase, ...]) -> None:
    kind = recipe.schedule.kind
    used = {name for phase in phases for name in phase.needs}
    if idle := [name for name in recipe.models if name not in used]:
        raise ValueError(f"models {', '.join(idle)}: neither train nor teach under schedule {kind}; remove them")
    opened = {edge.key for phase in phases for edge in phase.edges}
    if closed := [edge.key for edge in recipe.edges if edge.key not in opened]:
        raise ValueError(f"edges {', '.join(closed)}: never open under schedule {kind}; remove them or change it")
    if recipe.placement == "service" and not any(phase.teachers for phase in phases):
        raise ValueError("placement = 'service': no model teaches, so nothing would be served; use 'colocated'")
    totals = own_steps(phases)
    for name in sorted({name for phase in phases for name in phase.teachers}):
        if not totals[name] and not recipe.models[name].init:
            raise ValueError(f"models.{name}: teaches but never trains; give it weights (init) or steps to train")
    for phase in phases:
        for student in phase.trains:
            total = _weight_of_teachers(phase, student)
            if total > 1 + 1e-9:
                raise ValueError(f"edges into {student}: weights sum to {total:g}; at most 1, labels get the rest")
            of_frames = _weight_of_teachers(phase, student, carries="frames")
            if recipe.models[student].frame_labels and of_frames > 1 + 1e-9:
                raise ValueError(
                    f"edges into {student} that carry frames: weights sum to {of_frames:g}; at most 1, labels in time "
                    "(frame_labels) get the rest"
                )
        for edge in phase.edges:
            _check_edge(recipe, phase, edge)


def _check_edge(recipe: Recipe, phase: Phase, edge: Edge) -> None:
    if edge.view == "clean" and edge.source == "live" and edge.teacher in phase.trains:
        raise ValueError(
            f"edges {edge.key}: view = 'clean': a model that trains in the same step teaches with its training "
            "forward; use view = 'same', or source = 'snapshot' or 'ema'"
        )
    if recipe.placement == "service" and not edge.store and edge.source != "snapshot" and edge.teacher in phase.trains:
        raise ValueError(
            f"edges {edge.key}: source = {edge.source!r}: placement = 'service' serves frozen teachers, and under "
            f"schedule {recipe.schedule.kind} {edge.teacher} trains while it teaches; set source = 'snapshot', or "
            "placement = 'split' or 'colocated'"
        )
    if edge.shuffled and recipe.train.shard_size == 1:
        raise ValueError(
            f"edges {edge.key}: shuffled = true: train.shard_size = 1 leaves teacher logits in place, because they are "
            "rolled within a shard; set train.shard_size to 2 or more"
        )
    if edge.source == "ema" and recipe.models[edge.teacher].average.kind != "ema":
        raise ValueError(
            f"edges {edge.key}: source = 'ema': set models.{edge.teacher}.average.kind = 'ema' to keep that average"
        )
