"""Untaught controls: models that train beside the students of a recipe, in the same steps, without teachers.

A control starts from its student's first weights, draws the student's dropout masks and hears the student's views in
the student's order, so that what differs at the end is what teaching did. Up to the first phase that teaches the
student the two are the same model: a control with its student's settings begins there, as a copy.
"""

from dataclasses import replace

from workloads.config.recipe import Recipe


def controls_of(recipe: Recipe) -> dict[str, str]:
    """Student -> its control, in the order of the models."""
    return {model.control_of: name for name, model in recipe.models.items() if model.control_of}


def without_controls(recipe: Recipe) -> Recipe:
    """The recipe without its controls, which schedules plan; controls train where their students do."""
    if not controls_of(recipe):
        return recipe
    models = {name: model for name, model in recipe.models.items() if not model.control_of}
    return replace(recipe, models=models, compare=False)


def begins_as_copy(recipe: Recipe, name: str) -> bool:
    """Whether a model is a control with its student's settings: before the first phase that teaches they are one."""
    model = recipe.models[name]
    return bool(model.control_of) and replace(model, control_of="") == recipe.models[model.control_of]


def random_key(recipe: Recipe, name: str) -> str:
    """The name by which a model's first weights and dropout masks are drawn: a control's are its student's."""
    return recipe.models[name].control_of or name
