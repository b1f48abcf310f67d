"""What is refused before a search starts anything: options that contradict each other, trials that cannot run."""

import itertools
import math
from typing import Any

from orchestrator.runs.resume import AUTO
from orchestrator.search.request import Budget, SearchRequest, parse_budget
from orchestrator.search.rungs import judged_models, rung_steps
from orchestrator.search.samplers import planned_settings
from orchestrator.search.trial_spec import (
    SearchPlan,
    build_trial_recipe,
    num_slices,
    search_plan,
    slices_of,
    without_teachers,
)
from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.storage.retry import print_status
from orchestrator.training.inside_job import require_lasting_storage, require_lasting_tracking
from orchestrator.training.request import refuse_ray_client, refuse_wait, require_gpu_of_its_own
from workloads.config.recipe import Recipe, Train
from workloads.config.search import MAX_TRIALS, Choices, Range, Search
from workloads.data.check import check_data
from workloads.distill.schedule import own_steps, plan_phases
from workloads.distill.store_checks import check_stores
from workloads.models.buildable import require_buildable
from workloads.runtime.redaction import require_no_secret

MOST_CHECKED = 2048  # trials that are known beforehand and all checked; of more, the corners of their space
MOST_CORNERS = 512  # of a space, whose recipes are all checked before anything starts


def check(request: SearchRequest) -> tuple[Budget, Train]:
    """Refuse the user's mistakes before anything starts: every corner of the space must make a recipe that works.

    Returns the budget, and the training settings of the trial with the largest batch.
    """
    plan = search_plan(request.recipe)
    refuse_ray_client(request.address)
    refuse_wait(request.wait_s, request.address)
    require_gpu_of_its_own(request.recipe, request.workers)
    require_no_secret(request.storage, "--storage")
    require_lasting_storage(request.storage, "--storage")
    require_lasting_tracking(request.tracking)
    budget = _checked_budget(request)
    _check_ids_and_slots(request)
    _check_nodes(request)
    _check_placement(request.recipe)
    _check_full_length(request, plan.search)
    planned = planned_settings(plan.search, budget.trials)  # refuses a budget that no grid or population has
    _check_pausing(request, plan.search)
    _check_workers(request, plan.search)
    few = planned is not None and len(planned) <= MOST_CHECKED
    recipes = _check_trials(request, plan, planned if planned and few else _corners(plan.search))
    return budget, max((recipe.train for recipe in recipes), key=lambda train: train.batch_size)


def _checked_budget(request: SearchRequest) -> Budget:
    budget = parse_budget(request.budget) if request.budget else Budget()
    if budget.gpu_hours and request.recipe.train.device != "cuda":
        raise ValueError(f"--budget {request.budget!r}: GPU-hours need train.device = 'cuda'; give trials or time")
    return budget


def _check_ids_and_slots(request: SearchRequest) -> None:
    if request.search_id and request.resume not in ("", AUTO):
        raise ValueError(
            f"--search-id {request.search_id!r}: names a new search, --resume an old one; leave one of the two out, or "
            f"give --resume {AUTO}: the search of that id is created, or continued where there is one"
        )
    if request.resume == AUTO and not request.search_id:
        raise ValueError(f"--resume {AUTO}: needs --search-id, the id of the search to create or to continue")
    if request.slots < 0:
        raise ValueError(f"--slots {request.slots}: must be 1 or more")


def _check_nodes(request: SearchRequest) -> None:
    resources = request.recipe.resources
    if request.workers == 1 and (resources.labels or resources.placement != "PACK"):
        key = "labels" if resources.labels else "placement"
        raise ValueError(
            f"resources.{key}: trials of one worker each run in Tune's processes, which cannot be placed so; leave it "
            "out, give --workers 2 or more, or name a kind of GPU in resources.accelerator"
        )


def _check_placement(recipe: Recipe) -> None:
    if recipe.placement != "colocated":
        raise ValueError(
            f"placement = {recipe.placement!r}: each worker of a trial holds all models; --set placement=colocated, "
            "which learns the same"
        )


def _check_full_length(request: SearchRequest, search: Search) -> None:
    if request.full and (request.full < 2 or search.share == 1):
        raise ValueError(
            f"--full {request.full}: takes 2 trials or more, to rank them again, and search.share = {search.share:g} "
            "below 1; or leave it out"
        )
    if request.full > MAX_TRIALS:
        raise ValueError(f"--full {request.full}: must be at most {MAX_TRIALS:,}")
    if request.full and search.searcher == "pbt":
        raise ValueError(
            f"--full {request.full}: a population's values change at steps of a trial, which a full run does not have; "
            "leave it out"
        )


def _check_pausing(request: SearchRequest, search: Search) -> None:
    """Trials that wait for one another take turns on all slots, in one process each."""
    if request.slots and search.pauses:
        raise ValueError(
            f"--slots {request.slots}: trials that wait for one another (pbt, hyperband) use the whole cluster; "
            "leave it out"
        )
    if request.workers > 1 and search.pauses:
        raise ValueError(
            f"--workers {request.workers}: trials that wait for one another (pbt, hyperband) run in one process each; "
            "leave it out, or use another searcher and scheduler = 'asha'"
        )


def _check_workers(request: SearchRequest, search: Search) -> None:
    if request.workers < 1:
        raise ValueError(f"--workers {request.workers}: must be 1 or more")
    if request.workers > 1 and isinstance(search.space.get("train.shards"), Range):
        raise ValueError(
            f"--workers {request.workers}: not every value of the range train.shards is a multiple of it; use "
            "{ choices = [...] } of values that are"
        )


def _check_trials(request: SearchRequest, plan: SearchPlan, corners: list[dict[str, Any]]) -> list[Recipe]:
    """Check the recipes of trials with these settings, one by one and against each other; returns them."""
    recipes = [build_trial_recipe(plan, settings) for settings in corners]
    for recipe in recipes:
        _check_slot(plan.recipe, recipe, request.workers)
        require_buildable(recipe)
        judged_models(plan.search, recipe)
        if request.finals:
            _check_control(recipe)
    if request.finals:
        _check_slices(plan)
    for settings in corners if request.full else ():
        build_trial_recipe(plan, settings, full_length=True)
    if plan.search.scheduler != "none":
        _check_equal_rungs(plan.search, recipes)
    if len({tuple(sorted(own_steps(plan_phases(recipe)).items())) for recipe in recipes}) > 1:
        print_status(
            "note: not all trials train each model for equally many steps, and their scores depend on that too"
        )
    return recipes


def _check_slot(recipe: Recipe, trial_recipe: Recipe, workers: int) -> None:
    """ValueError where a trial needs another slot than the recipe, from which slots are computed, or other workers."""
    for name in ("device", "threads"):
        value, slot = getattr(trial_recipe.train, name), getattr(recipe.train, name)
        if value != slot:
            raise ValueError(
                f"train.{name} = {value!r}: slots are sized for the recipe's {slot!r}; take it out of the space"
            )
    if trial_recipe.train.shards % workers:
        raise ValueError(
            f"--workers {workers}: train.shards = {trial_recipe.train.shards} must be a multiple of it; change one of "
            "the two"
        )


def _check_control(trial_recipe: Recipe) -> None:
    """ValueError where the schedule needs teachers, so that there is no control to compare the winner with."""
    try:
        plan_phases(without_teachers(trial_recipe))
    except ValueError as error:
        raise ValueError(
            f"schedule.kind = {trial_recipe.schedule.kind!r}: without edges there is no control ({error}); --no-finals "
            "searches without one"
        ) from None


def _check_slices(plan: SearchPlan) -> None:
    """ValueError where there are too few slices to judge every choice on slices that were not used to choose."""
    search, available = plan.search, num_slices(plan.recipe)
    each = 2 if search.finalists > 1 else 1
    needed, repeats = search.slices + search.repeats * each, (available - search.slices) // each
    if needed > available:
        fix = f"--set search.repeats={repeats}" if repeats > 0 else "lower search.slices"
        raise ValueError(
            f"search.repeats = {search.repeats}: with search.slices = {search.slices} and search.finalists = "
            f"{search.finalists} it takes {needed} validation slices for each repeat to have one that was not used to "
            f"choose, and {slices_of(plan.recipe)}; {fix}, or add --no-finals"
        )


def _check_equal_rungs(search: Search, trial_recipes: list[Recipe]) -> None:
    """ValueError where the scheduler would compare trials whose models have not taken equally many own steps."""
    for number in range(search.rungs - 1):
        first: dict[str, int] = {}
        for recipe in trial_recipes:
            steps = own_steps(plan_phases(recipe), until=rung_steps(recipe, search)[number])
            first = first or steps
            if steps != first:
                counts = [
                    ", ".join(f"{name} {count}" for name, count in sorted(each.items())) for each in (first, steps)
                ]
                raise ValueError(
                    f"search.scheduler = {search.scheduler!r}: at rung {number + 1} of {search.rungs} the models of "
                    f"some trials have taken {counts[0]} own steps and those of others {counts[1]}, so which trials "
                    "are stopped would depend on that; let every schedule give equal steps up to there, or set it to "
                    "'none'"
                )


def _corners(search: Search) -> list[dict[str, Any]]:
    """Settings that show whether the space makes valid recipes: all its corners; of very many, each end separately."""
    ends = {
        place: values.choices if isinstance(values, Choices) else (values.low, values.high)
        for place, values in search.space.items()
    }
    if math.prod(map(len, ends.values())) <= MOST_CORNERS:
        return [dict(zip(ends, corner, strict=True)) for corner in itertools.product(*ends.values())]
    first, last = ({place: values[end] for place, values in ends.items()} for end in (0, -1))
    return [first, last, *(first | {place: value} for place, values in ends.items() for value in values)]


def check_search_data(recipe: Recipe, largest: Train) -> list[str]:
    """Check the data on every slice, as a mistake would fail every trial; returns warnings, raises as `check_data`.

    `largest` are the training settings of the trial with the largest batch. Which models learn from labels may differ
    between trials: each checks that itself.
    """
    files = FsspecFiles()
    return check_data(
        recipe,
        files,
        slices=range(num_slices(recipe)),
        test=True,
        train=largest,
        learners=(),
        store_tags=check_stores(recipe, files),
        search=True,
    )
