"""What runs after a search's trials: the finalists, the winner and its control, some trials at full length."""

from typing import TYPE_CHECKING, Any

from orchestrator.search.store import SearchStore
from orchestrator.search.summary import ranked_finalists, ranked_trials, winner_so_far
from orchestrator.search.trial_spec import SearchPlan, Task, num_slices

if TYPE_CHECKING:
    from orchestrator.search.tune_runner import TuneRunner


def run_finals(plan: SearchPlan, store: SearchStore, runner: "TuneRunner") -> list[Task]:
    """Choose the best of the finalists and run it beside its control, the same without teachers; returns those tasks.

    A trial that was chosen on some seeds and slices looks better there than it is, so each choice is judged with other
    seeds, on slices that were not used to choose. The test fold is scored for one winner only: once there is one,
    trials that come later do not replace it. Called once by the driver; after a kill it runs only what has no result.
    """
    winner = _winner(plan, store, runner)
    if winner is None:
        return []
    search = plan.search
    # not the finalists' seeds, also where there was one only: a resumed search must not score the winner anew
    first = search.repeats + 1 if search.finalists > 1 else 1
    tasks = [
        _repeat(kind, winner, plan, number)
        for kind in ("winner", "control")
        for number in range(first, first + search.repeats)
    ]
    runner.run_listed(tasks)
    return tasks


def _winner(plan: SearchPlan, store: SearchStore, runner: "TuneRunner") -> dict[str, Any] | None:
    """The trial that wins, once the finalists have been repeated; None where no trial or no repeat finished."""
    search, best = plan.search, ranked_trials(store)
    if not best:
        return None
    finalists, chosen = best[: search.finalists], winner_so_far(store)
    if chosen is not None:
        return chosen
    if len(finalists) > 1:
        numbers = range(1, search.repeats + 1)
        repeats = [_repeat("finalist", trial, plan, number) for trial in finalists for number in numbers]
        runner.run_listed(repeats)
        finalists = ranked_finalists(store, repeats)
    return finalists[0] if finalists else None


def _repeat(kind: str, trial: dict[str, Any], plan: SearchPlan, number: int) -> Task:
    """A trial's settings, or their history, for the `number`th time, from 1: with another seed, on a slice that was not
    used to choose it."""
    slices, used = num_slices(plan.recipe), plan.search.slices
    slice_ = used + number % (slices - used) if used < slices else number % slices
    return Task(
        kind,
        trial["number"],
        trial["settings"],
        seed=plan.recipe.train.seed + number,
        slice=slice_,
        hyperparameter_history=trial["course"],
    )


def run_at_full_length(store: SearchStore, runner: "TuneRunner", num_trials: int) -> list[Task]:
    """Run some finished trials, evenly spread from the best to the worst, once more over the whole schedule."""
    best = ranked_trials(store)
    ranks = sorted({round(place * (len(best) - 1) / (num_trials - 1)) for place in range(num_trials)}) if best else []
    tasks = [Task("full", best[rank]["number"], best[rank]["settings"]) for rank in ranks]
    runner.run_listed(tasks)
    return tasks
