"""What a trial of a search is: which recipe it learns, when it is judged, and how. Pure; `learn.py` learns it."""

from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.recipes.loader import with_settings
from orchestrator.search.rungs import rung_steps
from workloads.config.recipe import Recipe
from workloads.config.schedules import Mutual, OneWay, shortened
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
    made = with_settings(recipe, settings)
    if not whole:
        made = replace(made, schedule=shortened(made.schedule, search.share))
    steps = rung_steps(made, search)
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


def without_teachers(made: Recipe) -> Recipe:
    """The control: the same steps from labels alone. A model that never learns has nothing to do there."""
    steps = own_steps(plan_phases(made))
    learners = {name: model for name, model in made.models.items() if steps[name]}
    schedule = made.schedule
    if isinstance(schedule, OneWay) and len(learners) < len(made.models):
        schedule = Mutual(kind="mutual", burn_in=0, steps=schedule.steps)
    return replace(made, models=learners, edges=(), schedule=schedule)


@dataclass(frozen=True)
class Task:
    """Something to learn and judge: a trial, a finalist with another seed, the winner, its control, or a trial again
    at full length."""

    kind: str  # trial, finalist, winner, control, full
    number: int  # of the trial whose settings these are
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None  # None: the recipe's own
    slice: int = 0  # of validation, the first one, counted from the recipe's own
    slot: int = 0  # of the cluster, for the timeline
    course: list[tuple[int, dict[str, Any]]] = field(default_factory=list)  # settings by the step from which they held

    @property
    def name(self) -> str:
        """As the search's pages call it."""
        if self.kind == "trial":
            return f"{self.number:04}"
        return f"{self.kind}-{self.number:04}" + ("" if self.seed is None else f"-seed-{self.seed}")

    @property
    def final(self) -> bool:
        """Whether the test fold is scored."""
        return self.kind in ("winner", "control")

    @property
    def ranked(self) -> bool:
        """Whether it is judged as trials are, by the mean over the search's slices; repeats take one slice each."""
        return self.kind in ("trial", "full")

    def at(self, step: int) -> dict[str, Any]:
        """The settings that hold from this step on."""
        return next((settings for began, settings in reversed(self.course) if began <= step), self.settings)

    @property
    def folder(self) -> str:
        return f"{'trials' if self.kind == 'trial' else 'finals'}/{self.name}"


def goes_on(search: Search, task: Task) -> bool:
    """Whether a task keeps checkpoints at its rungs, to go on from them."""
    return (search.pauses and task.kind == "trial") or bool(task.course)


def task_recipe(recipe: Recipe, task: Task, *, slice_: int = 0, at: int = 0) -> Recipe:
    """What a task learns from some step on; a control learns it without teachers."""
    whole = task.kind == "full"
    made = trial_recipe(recipe, task.at(at), seed=task.seed, slice_=task.slice + slice_, whole=whole)
    return without_teachers(made) if task.kind == "control" else made
