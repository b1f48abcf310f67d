"""What a trial is: its settings, the recipe it trains, and when it is judged. Pure; `trial_runner.py` runs it."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from orchestrator.recipes.loader import with_settings
from orchestrator.search.rungs import rung_steps
from workloads.config.controls import without_controls
from workloads.config.data import OWN_VALIDATION
from workloads.config.recipe import Recipe
from workloads.config.schedules import Mutual, OneWay, shortened
from workloads.config.search import Search
from workloads.distill.schedule import own_steps, plan_phases


@dataclass(frozen=True)
class SearchPlan:
    """A recipe together with its search table, which is known to be there. Pickled into every trial's process."""

    recipe: Recipe
    search: Search


def search_plan(recipe: Recipe) -> SearchPlan:
    """The recipe and its search table; ValueError where it has none.

    Without the controls of a single run (`compare`): a search trains one for its winner only.
    """
    if recipe.search is None:
        raise ValueError(
            f"recipe {recipe.name!r}: has no [search.space]; name there the values to vary, such as "
            '"edges.0.weight" = { low = 0.1, high = 0.9 }'
        )
    return SearchPlan(without_controls(recipe), recipe.search)


@dataclass(frozen=True)
class Task:
    """One thing to train and judge: a trial, a finalist with another seed, the winner, its control, or a trial once
    more at full length."""

    kind: str  # trial, finalist, winner, control, full
    number: int  # of the trial whose settings these are
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None  # None: the recipe's own
    slice: int = 0  # first validation slice, counted from the recipe's own
    slot: int = 0  # of the cluster, for the timeline
    # (step, settings from that step on) where they change during training; empty: `settings` throughout
    hyperparameter_history: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Unique within the search; the name of its folder and of its MLflow run."""
        if self.kind == "trial":
            return f"{self.number:04}"
        return f"{self.kind}-{self.number:04}" + ("" if self.seed is None else f"-seed-{self.seed}")

    @property
    def scores_test_fold(self) -> bool:
        return self.kind in ("winner", "control")

    @property
    def uses_all_slices(self) -> bool:
        """Whether it is judged by the mean over all of the search's slices; repeats use one slice each."""
        return self.kind in ("trial", "full")

    def settings_at(self, step: int) -> dict[str, Any]:
        """The settings that hold from this step on."""
        history = reversed(self.hyperparameter_history)
        return next((settings for first_step, settings in history if first_step <= step), self.settings)

    @property
    def folder(self) -> str:
        """Its folder in the search's storage."""
        return f"{'trials' if self.kind == 'trial' else 'finals'}/{self.name}"

    def as_json(self) -> dict[str, Any]:
        """A deep copy of its fields, as in settings.json and result.json and in the configuration of a Tune trial."""
        fields = asdict(self)
        fields["course"] = fields.pop("hyperparameter_history")
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Task":
        """The task that `as_json` described."""
        others = {key: value for key, value in fields.items() if key != "course"}
        return cls(**others, hyperparameter_history=fields["course"])


def build_trial_recipe(
    plan: SearchPlan, settings: dict[str, Any], *, seed: int | None = None, slice_: int = 0, full_length: bool = False
) -> Recipe:
    """The recipe that a trial trains: its settings applied, evaluated at every rung; checkpoints at every rung only
    where trials pause (those of several workers also where one of their runs ends).

    It takes the search's share of the recipe's steps, or all of them (`full_length`). `slice_` counts validation slices
    from the recipe's own, cyclically over the training folds.

    Raises ValueError where the settings do not make a valid recipe, or where rungs do not cut its schedule into equal
    turns.
    """
    search = plan.search
    trial_recipe = with_settings(plan.recipe, settings)
    if not full_length:
        trial_recipe = replace(trial_recipe, schedule=shortened(trial_recipe.schedule, search.share))
    steps = rung_steps(trial_recipe, search)
    train = replace(
        trial_recipe.train,
        eval_every=steps[0],
        checkpoint_every=steps[0] if search.pauses else steps[-1],
        seed=trial_recipe.train.seed if seed is None else seed,
    )
    slices = num_slices(trial_recipe)
    if search.slices > slices:
        raise ValueError(
            f"search.slices = {search.slices}: {slices_of(trial_recipe)}; --set search.slices={slices}"
            + (", or a smaller data.val_share" if slices > 1 else "")
        )
    data = replace(trial_recipe.data, val_slice=(trial_recipe.data.val_slice + slice_) % slices)
    return replace(trial_recipe, train=train, data=data, search=None)


def build_task_recipe(plan: SearchPlan, task: Task, *, slice_: int = 0, step: int = 0) -> Recipe:
    """The recipe that a task trains, with the settings that hold at `step`; a control's has no teachers."""
    trial_recipe = build_trial_recipe(
        plan,
        task.settings_at(step),
        seed=task.seed,
        slice_=task.slice + slice_,
        full_length=task.kind == "full",
    )
    return without_teachers(trial_recipe) if task.kind == "control" else trial_recipe


def without_teachers(trial_recipe: Recipe) -> Recipe:
    """The control: the same steps from labels alone. Models that are never trained are left out."""
    steps = own_steps(plan_phases(trial_recipe))
    trained = {name: model for name, model in trial_recipe.models.items() if steps[name]}
    schedule = trial_recipe.schedule
    if isinstance(schedule, OneWay) and len(trained) < len(trial_recipe.models):
        schedule = Mutual(kind="mutual", burn_in=0, steps=schedule.steps)
    return replace(trial_recipe, models=trained, edges=(), schedule=schedule)


def num_slices(recipe: Recipe) -> int:
    """How many validation slices the training folds are cut into."""
    return recipe.data.num_val_slices


def slices_of(recipe: Recipe) -> str:
    """How many slices there are and why, for a message."""
    if recipe.data.format in OWN_VALIDATION:
        return f"data.format = {recipe.data.format!r} names its validation clips, which are one slice"
    return f"data.val_share = {recipe.data.val_share:g} makes {num_slices(recipe)} slices"


def keeps_checkpoints(search: Search, task: Task) -> bool:
    """Whether a task keeps checkpoints at its rungs and resumes from them."""
    return (search.pauses and task.kind == "trial") or bool(task.hyperparameter_history)
