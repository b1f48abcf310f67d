"""The outcome of a search: the best trials, the winner against its control, the cost. Reads results, starts nothing."""

import math
import statistics
import time
from typing import Any

from orchestrator.runs.location import RunLocation
from orchestrator.search.store import SearchStore
from orchestrator.search.trial_spec import SearchPlan, Task
from orchestrator.storage import object_store
from workloads.config.search import objective_name
from workloads.runtime.redaction import redacted

CONFIDENCE = 0.95
Result = dict[str, Any]


def ranked_trials(store: SearchStore) -> list[Result]:
    """The results of trials that finished, the best objective first."""
    results = [result for _, result in store.known_trials() if result and result["status"] == "done"]
    return sorted(results, key=lambda result: (result["objective"], result["number"]))


def winner_so_far(store: SearchStore) -> Result | None:
    """The trial for which winner runs were started, if there is one.

    ValueError where its result is gone: another winner would be scored on the test fold too.
    """
    numbers = store.winner_numbers()
    if not numbers:
        return None
    for result in ranked_trials(store):
        if result["number"] in numbers:
            return result
    raise ValueError(
        f"search {store.uri!r}: trial {min(numbers)} has runs as the winner but no result of its own; restore "
        f"trials/{min(numbers):04}, or start a new search"
    )


def ranked_finalists(store: SearchStore, repeats: list[Task]) -> list[dict[str, Any]]:
    """The finalists by their mean objective over all seeds, the best first.

    Every seed has another slice, and slices differ: a finalist of which fewer repeats finished than of another one is
    left out.
    """
    objectives: dict[int, list[float]] = {}
    settings: dict[int, dict[str, Any]] = {}
    for task in repeats:
        result = store.read_result(task)
        if result and result["status"] == "done":
            objectives.setdefault(task.number, []).append(result["objective"])
            settings[task.number] = {"settings": task.settings, "course": task.hyperparameter_history}
    most = max(map(len, objectives.values()), default=0)
    means = {number: statistics.fmean(values) for number, values in objectives.items() if len(values) == most}
    return [{"number": number, **settings[number]} for number in sorted(means, key=lambda number: means[number])]


def write_summary(
    location: RunLocation,
    plan: SearchPlan,
    store: SearchStore,
    finals: list[Task],
    *,
    slots: int,
    spent: float,
    began: float,
    complete: bool,
) -> dict[str, Any]:
    """Write the search's outcome, the object that --json prints, and return it. The last file that a driver writes.

    `spent` is the wall time of this driver's trials, in seconds; `began` when it started. `complete`: it has run all
    trials from the first, so the overhead of a trial can be computed. Fields of an earlier outcome stay where nothing
    was run for them again. `seconds` are the sum over the drivers that wrote an outcome.
    """
    earlier: dict[str, Any] = dict.fromkeys(("overhead_s_per_trial", "winner", "comparison", "test", "agreement"))
    earlier |= {"seconds": 0.0} | store.read_earlier_outcome()
    trials = store.known_trials()
    results = [result for _, result in trials if result is not None]
    best = ranked_trials(store)
    outcome = earlier | {
        "search_id": location.run_id,
        "status": "done" if best else "failed",
        "trials": len(trials),
        "completed": _num_of_status(results, "done"),
        "stopped": _num_of_status(results, "stopped"),
        "failed": _num_of_status(results, "failed"),
        "seconds": round(earlier["seconds"] + time.time() - began, 1),
        "slots": slots,
        "best": {key: best[0][key] for key in ("number", "settings", "objective")} if best else None,
        "tracking": redacted(location.tracking),
        "report": object_store.join(location.uri, "report.html"),
        **_compare_with_control(plan, store, [task for task in finals if task.scores_test_fold]),
        **_agreement(store, [task for task in finals if task.kind == "full"]),
    }
    if results and complete and len(results) == len(trials):
        outcome["overhead_s_per_trial"] = _overhead_per_trial(results, slots=slots, spent=spent)
    store.write_outcome(outcome)
    return outcome


def _num_of_status(results: list[Result], status: str) -> int:
    return sum(result["status"] == status for result in results)


def _overhead_per_trial(results: list[Result], *, slots: int, spent: float) -> float:
    """Seconds of a slot that a trial takes beside its training loop."""
    inside = sum(result["loop_seconds"] for result in results)
    return round((spent * slots - inside) / len(results), 2)


def _compare_with_control(plan: SearchPlan, store: SearchStore, finals: list[Task]) -> dict[str, Any]:
    """The winner's seeds against the control's: validation objective, seed by seed, and test scores of both.

    Empty where no finals were run; all None where no pair of them finished.
    """
    if not finals:
        return {}
    results: dict[str, list[Result]] = {"winner": [], "control": []}
    for task in finals:
        result = store.read_result(task)
        if result is not None and result["status"] == "done":
            results[task.kind].append(result)
    control = {result["seed"]: result for result in results["control"]}
    pairs = [(result, control[result["seed"]]) for result in results["winner"] if result["seed"] in control]
    if not pairs:
        return {"winner": None, "comparison": None, "test": None}
    differences = [of_winner["objective"] - of_control["objective"] for of_winner, of_control in pairs]
    return {
        "winner": {key: pairs[0][0][key] for key in ("number", "settings", "course")},
        "comparison": {
            "metric": objective_name(plan.search.metric),
            **mean_difference(differences, val_share=plan.recipe.data.val_share),
        },
        "test": {kind: _test_scores(of_kind) for kind, of_kind in results.items()},
    }


def _test_scores(results: list[Result]) -> dict[str, dict[str, list[float]]]:
    """Model -> metric -> a score for each seed."""
    return {
        name: {metric: [result["test"][name][metric] for result in results] for metric in scores}
        for name, scores in results[0]["test"].items()
    }


def _agreement(store: SearchStore, tasks: list[Task]) -> dict[str, Any]:
    """Whether trials rank as they do at full length: both objectives, trial by trial, and Kendall's tau of the two.

    Empty where no trial was run at full length; None where fewer than two finished.
    """
    if not tasks:
        return {}
    short = {result["number"]: result["objective"] for result in ranked_trials(store)}
    full = [result for task in tasks if (result := store.read_result(task)) and result["status"] == "done"]
    if len(full) < 2:
        return {"agreement": None}
    from scipy.stats import kendalltau

    pairs = [(short[result["number"]], result["objective"]) for result in full]
    correlation = kendalltau(*zip(*pairs, strict=True))
    return {
        "agreement": {
            "trials": [result["number"] for result in full],
            "short": [before for before, _ in pairs],
            "full": [after for _, after in pairs],
            "tau": None if math.isnan(correlation.statistic) else float(correlation.statistic),  # all of them equal
            "p": None if math.isnan(correlation.pvalue) else float(correlation.pvalue),
        }
    }


def mean_difference(differences: list[float], *, val_share: float) -> dict[str, Any]:
    """The mean difference with its 95 % interval over the pairs; below 0 the winner is better.

    Student's t with the variance that Nadeau and Bengio (Machine Learning 52, 2003) correct for training sets that
    overlap: 1/n + tested/trained in place of 1/n.
    """
    mean, pairs = statistics.fmean(differences), len(differences)
    if pairs < 2:
        return {"difference": mean, "low": None, "high": None, "pairs": pairs, "excludes_control": None}
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, pairs - 1)) * statistics.stdev(differences)
    half *= (1 / pairs + val_share / (1 - val_share)) ** 0.5
    low, high = mean - half, mean + half
    return {
        "difference": mean,
        "low": low,
        "high": high,
        "pairs": pairs,
        "excludes_control": high < 0 or low > 0,
    }
