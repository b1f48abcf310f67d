"""Which values of a recipe were chosen: those that are not the defaults of their tables. Imports nothing heavy."""

import json
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from orchestrator.recipes.loader import flatten
from workloads.config.recipe import Recipe

ALWAYS = ("kind", "family", "format", "labels", "seed")  # what the other values of their table are about
NO_PARAMETERS = ("name", "about", "search")  # said elsewhere, or of no effect on a run
OF_A_MACHINE = ("data.cache",)


def chosen_parameters(recipe: Recipe) -> dict[str, str]:
    """The recipe's values that differ from the defaults, and those that name a choice, as `a.b.c` -> text.

    Of two runs these are what a person compares; a value that is missing in one of them is the default.
    """
    values = {name: value for name, value in _chosen(recipe).items() if name not in NO_PARAMETERS}
    for name, model in recipe.models.items():
        if model.control_of:  # it has all from its student
            values["models"][name] = {"control_of": model.control_of}
    flat = flatten(json.loads(json.dumps(values)))
    return {name: value for name, value in flat.items() if name not in OF_A_MACHINE}


def _chosen(value: Any) -> Any:
    """The same values without defaults; None for a table of which nothing is left."""
    if isinstance(value, dict):
        return {key: own for key, entry in value.items() if (own := _chosen(entry)) is not None}
    if isinstance(value, list | tuple):
        return [_chosen(entry) for entry in value]
    if not is_dataclass(value):
        return value
    own = {each.name: getattr(value, each.name) for each in fields(value)}
    kept = {
        each.name: own[each.name] for each in fields(value) if each.name in ALWAYS or own[each.name] != _default(each)
    }
    return {name: entry for name, value in kept.items() if (entry := _chosen(value)) is not None} or None


def _default(each: Field[Any]) -> Any:
    return each.default_factory() if each.default_factory is not MISSING else each.default
