"""What a study fixes for all its methods: keys that no setting may give, own steps, and which models are compared.

Pure functions; `plan.py` calls them for new plans and for stored ones.
"""

from typing import Any

from orchestrator.recipes.loader import flatten
from workloads.config.recipe import Recipe
from workloads.config.study import CONTROL, Study
from workloads.distill.schedule import own_steps, plan_phases

FIXED = {  # key of a recipe -> what a study has in its place
    "train.seed": "the study's file has `seeds`",
    "data.test_fold": "the study's file has `folds`",
    "train.score_test": "a study scores the test fold of every run",
}
SCHEDULE = {"schedule": "the study's file has `steps`, `burn_in`, `periods` and `generations`"}


def refuse_fixed(settings: dict[str, Any], where: str, *, may_schedule: bool = False) -> None:
    """ValueError where settings, as tables, give what the study decides and would replace; `where` is what they are.

    A method of the study's own may have a schedule of its own (`may_schedule`): its steps are checked.
    """
    fixed = FIXED if may_schedule else FIXED | SCHEDULE
    for path in flatten(settings) if settings else ():
        for key, instead in fixed.items():
            if path == key or path.startswith(f"{key}."):
                raise ValueError(f"{where} {path}: is not of the recipe but of the study: {instead}; change it there")


def compared_models(name: str, recipe: Recipe, judged: tuple[str, ...]) -> tuple[str, ...]:
    """The control's models in which a method is compared: those that it teaches, and where it teaches nobody, all.

    None of the control itself. Raises ValueError where the method has none of them.
    """
    if name == CONTROL:
        return ()
    taught = {edge.student for edge in recipe.edges}
    own = tuple(model for model in judged if model in recipe.models)
    compared = tuple(model for model in own if model in taught) or own
    if not compared:
        raise ValueError(f"models: has none of the control's ({', '.join(judged)}), so nothing can be compared")
    return compared


def require_own_steps(study: Study, recipe: Recipe, models: tuple[str, ...]) -> None:
    """ValueError where one of the models takes other own steps than those of the study."""
    steps = own_steps(plan_phases(recipe))
    for model in models:
        if steps[model] != study.steps:
            raise ValueError(
                f"models.{model} takes {steps[model]:,} own steps, and the study has steps = {study.steps:,} for each "
                "model of each method; change the method's schedule"
            )
