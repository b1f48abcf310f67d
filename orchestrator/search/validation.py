"""What a search is asked to do, and what is refused before anything starts."""

import itertools
import math
from dataclasses import replace
from typing import Any

from orchestrator.search.request import Budget, SearchRequest, parse_budget
from orchestrator.search.rungs import judged_models, rung_steps
from orchestrator.search.samplers import planned
from orchestrator.search.trial_spec import num_slices, searched, trial_recipe, without_teachers
from orchestrator.storage import object_store
from orchestrator.storage.retry import print_status
from orchestrator.training.request import refuse_passwords
from workloads.config.recipe import Recipe
from workloads.config.search import Choices, Range, Search
from workloads.data.clips import split
from workloads.data.manifest import read_dataset
from workloads.distill.schedule import own_steps, plan_phases

MOST_CORNERS = 512  # of a space, that are tried for mistakes before anything starts


def check(request: SearchRequest) -> Budget:
    """Refuse the user's mistakes before anything starts: every corner of the space must make a recipe that works."""
    recipe, search = request.recipe, searched(request.recipe)
    refuse_passwords(storage=request.storage, tracking=request.tracking)
    budget = parse_budget(request.budget) if request.budget else Budget()
    if budget.gpu_hours and recipe.train.device != "cuda":
        raise ValueError(f"--budget {request.budget!r}: GPU-hours need train.device = 'cuda'; give trials or time")
    if request.search_id and request.resume:
        raise ValueError("--search-id names a new search, --resume an old one; leave one of the two out")
    if request.slots < 0:
        raise ValueError(f"--slots {request.slots}: must be 1 or more")
    if request.full and (request.full < 2 or search.share == 1):
        raise ValueError(
            f"--full {request.full}: takes 2 trials or more, to rank them again, and search.share = {search.share:g} "
            "below 1; or leave it out"
        )
    if request.full and search.searcher == "pbt":
        raise ValueError(
            f"--full {request.full}: a population's values change at steps of a trial, which a full run does not have; "
            "leave it out"
        )
    known = planned(search, budget.trials)  # refuses a budget that no grid or population has
    if request.slots and search.pauses:
        raise ValueError(
            f"--slots {request.slots}: trials that wait for one another (pbt, hyperband) take all of the cluster; "
            "leave it out"
        )
    if request.workers > 1 and search.pauses:
        raise ValueError(
            f"--workers {request.workers}: trials that wait for one another (pbt, hyperband) learn in one process "
            "each; leave it out, or let another searcher and scheduler = 'asha' do"
        )
    if request.workers < 1:
        raise ValueError(f"--workers {request.workers}: must be 1 or more")
    if request.workers > 1 and isinstance(search.space.get("train.shards"), Range):
        raise ValueError(
            f"--workers {request.workers}: not every value of the range train.shards divides among them; let it be one "
            "of { choices = [...] } that do"
        )
    corners = known or _corners(search)
    trials = [trial_recipe(recipe, settings) for settings in corners]
    for made in trials:
        _require_slot(recipe, made, request.workers)
        judged_models(search, made)
        if request.finals:
            _require_control(made)
    if request.finals:
        _require_slices(recipe)
    for settings in corners if request.full else ():
        trial_recipe(recipe, settings, whole=True)
    if search.scheduler != "none":
        _require_equal_rungs(search, trials)
    if len({tuple(sorted(own_steps(plan_phases(made)).items())) for made in trials}) > 1:
        print_status("note: not all trials take equally many steps of each model, so their scores tell that too")
    return budget


def _require_slot(recipe: Recipe, made: Recipe, workers: int) -> None:
    """ValueError where a trial needs another slot than the recipe, by which slots are reckoned, or other workers."""
    for name in ("device", "threads"):
        value, slot = getattr(made.train, name), getattr(recipe.train, name)
        if value != slot:
            raise ValueError(
                f"train.{name} = {value!r}: a slot is made for the recipe's {slot!r}; take it out of the space"
            )
    if made.train.shards % workers:
        raise ValueError(
            f"--workers {workers}: train.shards = {made.train.shards} must divide among them; change one of the two"
        )


def _require_slices(recipe: Recipe) -> None:
    """ValueError where whoever was chosen could not be judged on slices that did not choose it."""
    search, there = searched(recipe), num_slices(recipe)
    need = search.slices + search.repeats * (2 if search.finalists > 1 else 1)
    if need > there:
        raise ValueError(
            f"search.repeats = {search.repeats}: with search.slices = {search.slices} and search.finalists = "
            f"{search.finalists} it takes {need} validation slices for each repeat to have one that chose nobody, and "
            f"data.val_share = {recipe.data.val_share:g} makes {there}; lower one of them, or add --no-finals"
        )


def _require_equal_rungs(search: Search, trials: list[Recipe]) -> None:
    """ValueError where the scheduler would compare trials whose models have not taken equally many own steps."""
    for number in range(search.rungs - 1):
        first: dict[str, int] = {}
        for made in trials:
            step = rung_steps(made, search)[number]
            own = own_steps(plan_phases(made), until=step)
            first = first or own
            if own != first:
                said = [", ".join(f"{name} {count}" for name, count in sorted(each.items())) for each in (first, own)]
                raise ValueError(
                    f"search.scheduler = {search.scheduler!r}: at rung {number + 1} of {search.rungs} the models of "
                    f"some trials have taken {said[0]} own steps and those of others {said[1]}, so who is stopped "
                    "would hang on that; let every schedule give equal steps up to there, or set it to 'none'"
                )


def _require_control(made: Recipe) -> None:
    """ValueError where the schedule cannot do without teachers, so that nothing could be held against the winner."""
    try:
        plan_phases(without_teachers(made))
    except ValueError as error:
        raise ValueError(
            f"schedule.kind = {made.schedule.kind!r}: without edges there is no control ({error}); --no-finals "
            "searches without one"
        ) from None


def _corners(search: Search) -> list[dict[str, Any]]:
    """Settings that show whether the space makes recipes: all its corners; of very many, every end by itself."""
    ends = {
        place: values.choices if isinstance(values, Choices) else (values.low, values.high)
        for place, values in search.space.items()
    }
    if math.prod(map(len, ends.values())) <= MOST_CORNERS:
        return [dict(zip(ends, corner, strict=True)) for corner in itertools.product(*ends.values())]
    first, last = ({place: values[end] for place, values in ends.items()} for end in (0, -1))
    return [first, last, *(first | {place: value} for place, values in ends.items() for value in values)]


def require_data(recipe: Recipe) -> None:
    """ValueError where the data cannot be read or split: every trial would find that out by itself."""
    dataset, slices = read_dataset(recipe.data, object_store.FsspecFiles()), num_slices(recipe)
    for number in range(slices):
        split(dataset, replace(recipe.data, val_slice=number))
