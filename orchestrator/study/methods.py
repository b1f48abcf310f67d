"""The standard ways of teaching, as values of a recipe: the same models, data and own steps, other edges and schedules.

Pure functions of a study and the resolved values of its recipe. Sources of the methods: reference/cmkd.md section 3.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import pairwise, permutations
from typing import Any

from workloads.config.edge import STORE, Edge
from workloads.config.study import Standard, Study

Values = dict[str, Any]  # of a resolved recipe
Variants = Iterator[tuple[str, Values]]  # name of a method -> what its recipe has in place of the control's


def control_values(study: Study, base: Values) -> Values:
    """The recipe of the control: all models learn from labels alone, `study.steps` steps each."""
    models = {name: model for name, model in base["models"].items() if not model["control_of"]}
    about = "labels alone, as many own steps: the control"
    kept = {"about": about, "models": models, "edges": [], "compare": False, "search": None, "split_groups": []}
    train = base["train"] | {"score_test": True}
    return base | kept | {"train": train, "schedule": _live("mutual", study.steps, burn_in=0)}


def lacking_models(study: Study, base: Values) -> str:
    """Why the recipe's models can make no standard method; empty where they can."""
    several = len(control_values(study, base)["models"]) > 1
    return "" if several else f"needs two models that learn; recipe {study.recipe!r} has one"


def standard_values(method: Standard, study: Study, base: Values) -> Variants:
    """The variants of a standard method, each by its name: `mutual`, `alternate-60`, `one_way-cnn-to-vit`.

    Raises ValueError for a mistake in the study's keys: periods that do not divide, generations of unknown models.
    """
    control = control_values(study, base)
    for name, own in VARIANTS[method](study, base, list(control["models"])):
        yield name, control | own


def _one_way(study: Study, base: Values, models: list[str]) -> Variants:
    """The teacher learns from labels, is frozen, and teaches; one method for each pair (CMKD)."""
    for teacher, student in permutations(models, 2):
        steps = {"teacher_steps": study.steps, "steps": study.steps}
        yield (
            f"one_way-{teacher}-to-{student}",
            {
                "about": f"{teacher} learns from labels, is frozen, and teaches {student}",
                "models": {name: base["models"][name] for name in (teacher, student)},
                "edges": [_edge(study, base, teacher, student)],
                "schedule": {"kind": "one_way", "teachers": [teacher], **steps},
            },
        )


def _generations(study: Study, base: Values, models: list[str]) -> Variants:
    """One after another, each taught by the one before, frozen (Born-Again; CMKD's iterated form).

    A model's last generation keeps its name, and so has the first weights of the control.
    """
    order = list(study.generations) or [*models, models[0]]
    if unknown := [name for name in order if name not in models]:
        raise ValueError(f"generations = {order}: no model named {unknown[0]!r}; the models are {', '.join(models)}")
    names = [_generation(order, at) for at in range(len(order))]
    if len(set(names)) < len(names) or set(names) - set(order) & set(models):
        raise ValueError(
            f"generations = {order}: a model of the recipe has the name of an earlier generation; rename it, or leave "
            "generations out of standard"
        )
    edges = [
        _edge(study, base, order[at], order[at + 1]) | {"teacher": teacher, "student": student, "name": ""}
        for at, (teacher, student) in enumerate(pairwise(names))
    ]
    yield (
        "generations",
        {
            "about": f"one after another, each taught by the one before: {' -> '.join(order)}",
            "models": {name: base["models"][model] for name, model in zip(names, order, strict=True)},
            "edges": edges,
            "schedule": {"kind": "generations", "order": names, "steps": study.steps},
        },
    )


def _generation(order: list[str], at: int) -> str:
    model = order[at]
    return model if model not in order[at + 1 :] else f"{model}_{order[: at + 1].count(model)}"


def _alternate(study: Study, base: Values, models: list[str]) -> Variants:
    """After the burn-in the models take turns of `period` steps, the others teaching; one method for each period."""
    taught, schedule = study.steps - study.burn_in, base["schedule"]
    order = schedule.get("order") if schedule["kind"] == "alternate" else []
    for period in study.periods or (max(taught // 2, 1),):
        if taught % period:
            raise ValueError(
                f"periods: {period} does not divide the {taught} steps that each model is taught (steps = "
                f"{study.steps} without burn_in = {study.burn_in}), so own steps would not be equal; name "
                "periods that do"
            )
        turns = {"period": period, "turns": taught // period * len(models), "order": order or models}
        yield (
            f"alternate-{period}",
            {
                "about": f"turns of {period} steps: one learns, frozen ones teach",
                "edges": _edges(study, base, models),
                "schedule": {"kind": "alternate", "burn_in": study.burn_in, **turns},
            },
        )


def _simultaneous(kind: str, about: str, **of_edges: Any) -> Callable[[Study, Values, list[str]], Variants]:
    """All models learn in every step, from labels and from each other."""

    def variants(study: Study, base: Values, models: list[str]) -> Variants:
        edges = [edge | of_edges for edge in _edges(study, base, models)]
        schedule = _live(kind, study.steps - study.burn_in, burn_in=study.burn_in)
        yield kind, {"about": about, "edges": edges, "schedule": schedule}

    return variants


def _live(kind: str, steps: int, *, burn_in: int) -> Values:
    return {"kind": kind, "burn_in": burn_in, "steps": steps}


def _edges(study: Study, base: Values, models: list[str]) -> list[Values]:
    return [_edge(study, base, teacher, student) for teacher, student in permutations(models, 2)]


def _edge(study: Study, base: Values, teacher: str, student: str) -> Values:
    """The recipe's own edge between two models that carries logits; where it has none, one of the study's weight."""
    for edge in base["edges"]:
        joins = (edge["teacher"], edge["student"]) == (teacher, student)
        if joins and edge["carries"] == "logits" and not edge["teacher"].startswith(STORE):
            return dict(edge)
    default = Edge(teacher="teacher", student="student", weight=study.weight)
    return asdict(default) | {"teacher": teacher, "student": student}


VARIANTS: dict[Standard, Callable[[Study, Values, list[str]], Variants]] = {
    "one_way": _one_way,
    "generations": _generations,
    "alternate": _alternate,
    "mutual": _simultaneous("mutual", "all learn in every step, from labels and from each other"),
    "gated": _simultaneous("gated", "mutual; the model with the better validation score teaches with more weight"),
    "per_sample": _simultaneous("per_sample", "mutual; on each clip the better model teaches", gate="better_on_clip"),
}
