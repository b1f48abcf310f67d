"""What comes after a search's trials: the finalists, the winner and its control, some trials at full length."""

from typing import TYPE_CHECKING, Any

from orchestrator.search.summary import best_first, repeated, winner_so_far
from orchestrator.search.trial_spec import Task, num_slices, searched
from workloads.config.recipe import Recipe

if TYPE_CHECKING:
    from orchestrator.search.tune_runner import TuneRunner


def finals(recipe: Recipe, search_uri: str, runner: "TuneRunner") -> list[Task]:
    """Find the best of the finalists, and hold it against the same without teachers; returns these last tasks.

    Whoever was chosen by some seeds and slices looks better there than it is: what comes after a choice is judged by
    other seeds, on slices that chose nobody. The test fold is scored for one winner only: once there is one, trials
    that come later do not take its place.
    """
    search, best = searched(recipe), best_first(search_uri)
    if not best:
        return []
    finalists, numbers = best[: search.finalists], range(1, search.repeats + 1)
    chosen = winner_so_far(search_uri)
    if len(finalists) > 1 and chosen is None:
        again = [_repeat("finalist", found, recipe, number) for found in finalists for number in numbers]
        runner.run_listed(again)
        finalists = repeated(search_uri, again)
    if search.finalists > 1:  # also where there was one only: a later resume must not score the winner anew
        numbers = range(search.repeats + 1, 2 * search.repeats + 1)
    winner = chosen or (finalists[0] if finalists else None)
    if winner is None:  # no finalist came to its end with another seed
        return []
    tasks = [_repeat(kind, winner, recipe, number) for kind in ("winner", "control") for number in numbers]
    runner.run_listed(tasks)
    return tasks


def _repeat(kind: str, found: dict[str, Any], recipe: Recipe, number: int) -> Task:
    """A trial's settings, or their course, for the `number`th time, counted from 1, with another seed, on a slice that
    did not choose it."""
    slices, used = num_slices(recipe), searched(recipe).slices
    slice_ = used + number % (slices - used) if used < slices else number % slices
    settings = {"settings": found["settings"], "course": found["course"]}
    return Task(kind, found["number"], **settings, seed=recipe.train.seed + number, slice=slice_)


def at_full_length(search_uri: str, runner: "TuneRunner", wanted: int) -> list[Task]:
    """Trials from the best to the worst that came to their end, evenly spread, once more over the whole schedule."""
    best = best_first(search_uri)
    places = sorted({round(place * (len(best) - 1) / (wanted - 1)) for place in range(wanted)}) if best else []
    tasks = [Task("full", best[place]["number"], best[place]["settings"]) for place in places]
    runner.run_listed(tasks)
    return tasks
