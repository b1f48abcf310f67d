"""What a search found: the best trials, the winner against its control, what it cost. Reads results, starts nothing."""

import math
import statistics
import time
from typing import Any

from orchestrator.runs.location import RunLocation
from orchestrator.search.store import earlier, known_trials, read_result, write_outcome
from orchestrator.search.trial_spec import Task, searched
from orchestrator.storage import object_store
from workloads.config.recipe import Recipe
from workloads.config.search import objective_name

CONFIDENCE = 0.95


def best_first(search_uri: str) -> list[dict[str, Any]]:
    """The trials that came to their end, the best objective first."""
    results = [result for _, result in known_trials(search_uri) if result and result["status"] == "done"]
    return sorted(results, key=lambda result: (result["objective"], result["number"]))


def winner_so_far(search_uri: str) -> dict[str, Any] | None:
    """The trial that finals were begun for, if there is one."""
    names = [
        name for name in object_store.list_names(object_store.join(search_uri, "finals")) if name.startswith("winner-")
    ]
    numbers = {int(name.split("-")[1]) for name in names}
    return next((result for result in best_first(search_uri) if result["number"] in numbers), None)


def repeated(search_uri: str, tasks: list[Task]) -> list[dict[str, Any]]:
    """The finalists by their mean objective over all seeds, the best first.

    Every seed has a slice of its own, and slices differ: who failed where others came to their end is left out.
    """
    objectives: dict[int, list[float]] = {}
    settings: dict[int, dict[str, Any]] = {}
    for task in tasks:
        result = read_result(search_uri, task)
        if result and result["status"] == "done":
            objectives.setdefault(task.number, []).append(result["objective"])
            settings[task.number] = {"settings": task.settings, "course": task.course}
    most = max(map(len, objectives.values()), default=0)
    means = {number: statistics.fmean(values) for number, values in objectives.items() if len(values) == most}
    return [{"number": number, **settings[number]} for number in sorted(means, key=lambda number: means[number])]


def outcome_of(
    location: RunLocation, recipe: Recipe, finals: list[Task], *, slots: int, spent: float, began: float, alone: bool
) -> dict[str, Any]:
    """The search's outcome, the object that --json prints; written last.

    `spent` is the wall time of the trials since `began`, in seconds. What a trial costs beside its training is known
    where one driver saw all trials from begin to end, `alone`. Of a search that was
    done before, what was said then stays where nothing was learned for it again. `seconds` are those of drivers that
    came to their end.
    """
    before: dict[str, Any] = dict.fromkeys(("overhead_s_per_trial", "winner", "comparison", "test", "agreement"))
    before |= {"seconds": 0.0} | earlier(location.uri)
    trials = known_trials(location.uri)
    results = [result for _, result in trials if result is not None]
    counted = {
        status: sum(result["status"] == status for result in results) for status in ("done", "stopped", "failed")
    }
    best = best_first(location.uri)
    inside = sum(result["loop_seconds"] for result in results)
    whole = bool(results) and alone and len(results) == len(trials)
    outcome = before | {
        "search_id": location.run_id,
        "status": "done" if best else "failed",
        "trials": len(trials),
        "completed": counted["done"],
        "stopped": counted["stopped"],
        "failed": counted["failed"],
        "seconds": round(before["seconds"] + time.time() - began, 1),
        "slots": slots,
        "overhead_s_per_trial": (
            round((spent * slots - inside) / len(results), 2) if whole else before["overhead_s_per_trial"]
        ),
        "best": {key: best[0][key] for key in ("number", "settings", "objective")} if best else None,
        "tracking": location.tracking,
        "report": object_store.join(location.uri, "report.html"),
        **_against_control(recipe, location.uri, [task for task in finals if task.final]),
        **_agreement(location.uri, [task for task in finals if task.kind == "full"]),
    }
    write_outcome(location.uri, outcome)
    return outcome


def _against_control(recipe: Recipe, search_uri: str, finals: list[Task]) -> dict[str, Any]:
    """The winner's seeds against the control's: validation objective, seed by seed, and test scores of both.

    Empty where nothing was held against a control; all None where nothing came to its end.
    """
    if not finals:
        return {}
    results: dict[str, list[dict[str, Any]]] = {"winner": [], "control": []}
    for task in finals:
        result = read_result(search_uri, task)
        if result is not None and result["status"] == "done":
            results[task.kind].append(result)
    control = {result["seed"]: result for result in results["control"]}
    pairs = [(result, control[result["seed"]]) for result in results["winner"] if result["seed"] in control]
    if not pairs:
        return {"winner": None, "comparison": None, "test": None}
    differences = [ours["objective"] - theirs["objective"] for ours, theirs in pairs]
    return {
        "winner": {key: pairs[0][0][key] for key in ("number", "settings", "course")},
        "comparison": {
            "metric": objective_name(searched(recipe).metric),
            **compared(differences, val_share=recipe.data.val_share),
        },
        "test": {
            kind: {
                name: {metric: [result["test"][name][metric] for result in results[kind]] for metric in scores}
                for name, scores in results[kind][0]["test"].items()
            }
            for kind in results
        },
    }


def _agreement(search_uri: str, tasks: list[Task]) -> dict[str, Any]:
    """Whether trials rank as they do at full length: both objectives, trial by trial, and Kendall's tau of the two.

    Empty where nothing was learned at full length; None where fewer than two came to their end.
    """
    if not tasks:
        return {}
    short = {result["number"]: result["objective"] for result in best_first(search_uri)}
    full = [result for task in tasks if (result := read_result(search_uri, task)) and result["status"] == "done"]
    if len(full) < 2:
        return {"agreement": None}
    from scipy.stats import kendalltau

    pairs = [(short[result["number"]], result["objective"]) for result in full]
    found = kendalltau(*zip(*pairs, strict=True))
    return {
        "agreement": {
            "trials": [result["number"] for result in full],
            "short": [before for before, _ in pairs],
            "full": [after for _, after in pairs],
            "tau": None if math.isnan(found.statistic) else float(found.statistic),  # all of them equal
            "p": None if math.isnan(found.pvalue) else float(found.pvalue),
        }
    }


def compared(differences: list[float], *, val_share: float) -> dict[str, Any]:
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
