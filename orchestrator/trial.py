"""What a trial of a search is: which recipe it learns, when it is judged, and how. Pure; `learn.py` learns it."""

from dataclasses import replace
from typing import Any

from orchestrator.recipes.loader import changed
from workloads.config.recipe import Recipe
from workloads.config.schedules import Alternate, Mutual, OneWay, shortened
from workloads.config.search import Search
from workloads.distill.schedule import own_steps, plan_phases


def trial_recipe(
    recipe: Recipe, settings: dict[str, Any], *, seed: int | None = None, slice_: int = 0, whole: bool = False
) -> Recipe:
    """The recipe that a trial learns: its values set, judged at every rung, saved there only if trials pause (those
    of several workers also where one of their runs ends).

    It takes the search's share of the recipe's steps, or all of them (`whole`). `slice_` counts validation slices from
    the recipe's own on, around the training folds.

    Raises ValueError where the values make no recipe, or where its rungs do not cut its schedule into equal turns.
    """
    search = searched(recipe)
    made = changed(recipe, settings)
    if not whole:
        made = replace(made, schedule=shortened(made.schedule, search.share))
    steps = rungs(made, search)
    train = replace(
        made.train,
        eval_every=steps[0],
        checkpoint_every=steps[0] if search.pauses else steps[-1],
        seed=made.train.seed if seed is None else seed,
    )
    slices = num_slices(made)
    if search.slices > slices:
        raise ValueError(
            f"search.slices = {search.slices}: data.val_share = {made.data.val_share:g} makes {slices} slices"
        )
    data = replace(made.data, val_slice=(made.data.val_slice + slice_) % slices)
    return replace(made, train=train, data=data, search=None)


def num_slices(recipe: Recipe) -> int:
    """How many validation slices the training folds are cut into."""
    return round(1 / recipe.data.val_share)


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
    made.known_models("search.models", search.models)
    phases, first = plan_phases(made), rungs(made, search)[0]
    whole, early = own_steps(phases), own_steps(phases, until=first)
    names = search.models or tuple(name for name in made.models if whole[name])
    if unready := [name for name in names if not early.get(name)]:
        raise ValueError(
            f"search.rungs = {search.rungs}: at step {first}, where a trial is first judged, {', '.join(unready)} has "
            "not learned yet; have fewer rungs, or name in search.models those that have"
        )
    return names


def without_teachers(made: Recipe) -> Recipe:
    """The control: the same steps from labels alone. A model that never learns has nothing to do there."""
    steps = own_steps(plan_phases(made))
    learners = {name: model for name, model in made.models.items() if steps[name]}
    schedule = made.schedule
    if isinstance(schedule, OneWay) and len(learners) < len(made.models):
        schedule = Mutual(kind="mutual", burn_in=0, steps=schedule.steps)
    return replace(made, models=learners, edges=(), schedule=schedule)


def judge(search: Search, made: Recipe, values: dict[str, float]) -> float:
    """The mean over the judged models of the search's metric, turned so that less is better."""
    models = judged_models(search, made)
    mean = sum(values[f"{name}/val/{search.metric}"] for name in models) / len(models)
    return mean if search.lower_is_better else 1 - mean
