"""A search's result in a few sentences that claim no more than its numbers do. Does not depend on figures or pages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.reports.formatting import format_duration, format_score, plural
from orchestrator.reports.search.formatting import STATUS_LABELS, format_settings
from orchestrator.reports.search.snapshot import DONE, FAILED, INTERRUPTED, RUNNING, STOPPED, SearchSnapshot

SMALLEST_DIFFERENCE = 1e-4  # what four decimals can show


@dataclass(frozen=True)
class Verdict:
    """How far the search is, the best settings, and whether they beat the control."""

    tone: str  # done, failed or unfinished: the CSS class of the box
    state: str
    best: str
    control: str


def verdict(search: SearchSnapshot, now: float) -> Verdict:
    """The summary at the top of the page at `now`, in seconds since the epoch."""
    status = search.outcome["status"] if search.outcome else "unfinished"
    tone = status if status in ("done", "failed") else "unfinished"
    return Verdict(tone, _state(search, now), _best(search), _control(search))


def search_status(search: SearchSnapshot) -> str:
    """running, finished, or the outcome's own word: failed."""
    if search.outcome is None:
        return "running"
    status = str(search.outcome["status"])
    return "finished" if status == "done" else status


def _state(search: SearchSnapshot, now: float) -> str:
    counts = [(name, len(search.of_status(name))) for name in (DONE, STOPPED, FAILED, RUNNING, INTERRUPTED)]
    by_status = ", ".join(f"{count} {STATUS_LABELS[name]}" for name, count in counts if count)
    details = f" ({by_status})." if by_status else "."
    if search.outcome is not None:
        return f"{search_status(search).capitalize()}: {plural(len(search.trials), 'trial')}{details}"
    ended = sum(trial.over for trial in search.trials)
    progress = f"{ended} of at most {search.planned_trials} trials have ended{details}"
    if search.active_until(now) < now:
        return f"No update for {format_duration(now - search.last_news)}: it may have been killed. {progress}"
    return f"Running. {progress}"


def _best(search: SearchSnapshot) -> str:
    if not search.ranked:
        return "No trial has completed with an objective value, so there are no best settings."
    best = search.ranked[0]
    winner = (search.outcome or {}).get("winner")
    if winner and winner.get("number", best.number) != best.number:
        return _winner_over_seeds(search, winner, best.number)
    so_far = "" if search.outcome else " so far"
    title = f"Best settings{so_far}"
    if search.settings["searcher"] == "pbt":  # its result holds the whole history of the settings
        title = f"Last settings of the best population member{so_far}"
    result = f"trial {best.number}, {search.metric} {format_score(best.objective)}, lower is better"
    return f"{title}: {format_settings(search, best.settings)} ({result})."


def _winner_over_seeds(search: SearchSnapshot, winner: Mapping[str, Any], best_number: int) -> str:
    """The winner of the finals where another trial is better on a single seed."""
    title = f"Best settings: trial {winner['number']} ({format_settings(search, winner['settings'])})."
    if any(trial.kind == "finalist" and trial.number == best_number for trial in search.finals):
        return f"{title} It won over several seeds; on one seed trial {best_number} was better."
    return (
        f"{title} Trial {best_number} is better on one seed, but completed later and was not compared over several "
        "seeds: the test fold is scored for one winner only."
    )


def _control(search: SearchSnapshot) -> str:
    """Whether the winner beats its control; the difference is of the objective, so less than zero is better."""
    comparison = (search.outcome or {}).get("comparison")
    if search.outcome is None:
        return "Not compared with the control yet: final runs, unless switched off, start when all trials have ended."
    if comparison is None:
        return "Not compared with the control, the same models without teachers: no pair of final runs has completed."
    difference, low, high = comparison["difference"], comparison["low"], comparison["high"]
    side = "below" if difference < 0 else "above"
    size = format_score(abs(difference)) if abs(difference) >= SMALLEST_DIFFERENCE else "less than 0.0001"
    result = f"the winner's {search.metric} is {size} {side} that of its control without teachers"
    pairs = plural(comparison["pairs"], "pair")
    if low is None or high is None:
        return f"Inconclusive: {result}, but there is no confidence interval from {pairs} of seeds."
    result += f" (mean of {pairs} of seeds, 95 % confidence interval {low:+.4f} to {high:+.4f})"
    if not comparison["excludes_control"]:
        return f"Inconclusive: {result}. The interval includes zero, so the difference may be chance."
    if difference < 0:
        return f"Better than the control: {result}. The interval excludes zero: distillation helps here."
    return f"Worse than the control: {result}. The interval excludes zero: distillation harms here."
