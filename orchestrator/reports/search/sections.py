"""The parts of a search's page that are pictures: which there are, and what must be known to read them.

A part that has nothing to show yet says what is missing.
"""

from dataclasses import dataclass

import plotly.graph_objects as go
from markupsafe import Markup

from orchestrator.reports.html_page import figure_json
from orchestrator.reports.search import figures, timeline
from orchestrator.reports.search.importance import SUBSET, SUBSETS, importance, trials_missing
from orchestrator.reports.search.snapshot import STOPPED, Search
from orchestrator.reports.search.verdict import plural


@dataclass(frozen=True)
class Section:
    """A heading with what is to be known beside its pictures, (place, title, JSON); or why there are none."""

    name: str
    title: str
    said: str
    figures: tuple[tuple[str, str, Markup], ...] = ()


def sections(search: Search, now: float) -> list[Section]:
    """All of them, in the page's order; `now` (seconds since the epoch) ends what still runs."""
    return [
        _responses(search),
        _importance(search),
        _parallel(search),
        _curves(search),
        _pareto(search),
        _agreement(search),
        _timeline(search, now),
    ]


def _one(name: str, title: str, said: str, figure: go.Figure) -> Section:
    return Section(name, title, said, ((f"{name}-all", "", figure_json(figure)),))


def _responses(search: Search) -> Section:
    title = "How the score responds to each parameter"
    _, judged = search.comparable_scores
    if not judged:
        return Section("response", title, "No trial has been judged yet.")
    said = (
        "A dot is a trial; lower is better. Blue is the score at the trials' end; grey, where some were stopped early, "
        "that of every trial at the last rung that all reached: compare like with like. "
        "Diamonds are means of neighbours in equal numbers, with standard errors"
    )
    few = len(judged) < figures.LEAST_FOR_MEANS
    said += f"; they need {figures.LEAST_FOR_MEANS} trials, {len(judged)} are judged." if few else "."
    drawn = [
        (f"response-{at}", name, figure_json(figures.response(search, name))) for at, name in enumerate(search.space)
    ]
    for at, (across, up) in enumerate(figures.pairs(search)):
        figure = figure_json(figures.together(search, across, up))
        drawn.append((f"together-{at}", f"{across} and {up} together", figure))
    return Section("response", title, said, tuple(drawn))


def _importance(search: Search) -> Section:
    title, missing = "Which parameter matters", trials_missing(search)
    if missing > 0:
        return Section("importance", title, f"To say it takes {plural(missing, 'more judged trial')}.")
    found = importance(search)
    if not found:
        return Section("importance", title, "All scores are the same, so no parameter explains them.")
    where, judged = search.comparable_scores
    said = (
        f"fANOVA: each parameter's own share of the variance of {search.metric} {where} over the space, "
        f"as a forest fitted to {len(judged)} judged trials sees it; what is missing to 100 % lies in "
        f"parameters together. Whiskers: lowest and highest in {SUBSETS} random subsets of "
        f"{SUBSET:.0%} of the trials; where they overlap, the order is not settled."
    )
    return _one("importance", title, said, figures.importances(found))


def _parallel(search: Search) -> Section:
    title = "All settings at once"
    if not search.ranked:
        return Section("parallel", title, "No trial has come to its end with a score yet.")
    said = "A line is a trial that came to its end; the darker, the better. Where dark lines meet, good trials agree."
    return _one("parallel", title, said, figures.parallel(search))


def _curves(search: Search) -> Section:
    title = "How trials went, rung by rung"
    if not any(trial.history for trial in search.trials):
        return Section("curves", title, "No trial has been judged yet.")
    said = f"{search.metric} at each rung."
    if search.of_status(STOPPED):
        said += f" Grey ones were stopped where they end by the scheduler ({search.settings['scheduler']})."
    return _one("curves", title, said, figures.curves(search))


def _pareto(search: Search) -> Section:
    title, second = "What a good score costs", search.settings.get("second", "")
    if not second:
        return Section("pareto", title, "This search has one objective; with search.second its Pareto front is here.")
    if not figures.front(search):
        return Section("pareto", title, "No trial has come to its end with both objectives yet.")
    cost = figures.SECONDS[second]
    said = f"{search.metric} against {cost}; both should be small. No trial beats one on the front in both."
    return _one("pareto", title, said, figures.pareto(search))


def _agreement(search: Search) -> Section:
    title, found = "Does the ranking hold at full length?", (search.outcome or {}).get("agreement")
    share = search.settings["share"]
    if share == 1:
        return Section("agreement", title, "Trials were full runs.")
    if not found and any(trial.kind == "full" for trial in search.finals):
        return Section("agreement", title, "Fewer than two trials have come to their end over all steps.")
    if not found:
        return Section(
            "agreement",
            title,
            f"Not asked: a trial takes {share:.0%} of a full run, and --full N learns N of them again.",
        )
    tau = "not defined, all are equal" if found["tau"] is None else f"{found['tau']:+.2f} (p {found['p']:.2g})"
    said = (
        f"{len(found['trials'])} trials, from the best to the worst of those that ended, learned again over all steps; "
        f"a trial had taken {share:.0%} of them. Kendall's tau between the two rankings is {tau}; +1 is the same order."
    )
    return _one("agreement", title, said, figures.agreement(search))


def _timeline(search: Search, now: float) -> Section:
    title, drawn = "Where the time went", timeline.spans(search, now=now)
    if not drawn:
        return Section("timeline", title, "No trial has begun.")
    busy = None if search.pauses else timeline.utilisation(drawn, search.slots)
    inside = sum(trial.loop_seconds for trial in (*search.trials, *search.finals))
    held = sum(span.end - span.start for span in drawn if span.trial.over)
    said = (
        "A row is a slot of the cluster, a block a trial with its number. From the first trial's begin to the last "
        f"one's end {plural(search.slots, 'slot')} were busy {busy:.0%} of the time"
        if busy is not None
        else "A row is a trial, from its first begin to its end: in between it waits for the others at every rung"
    )
    if search.pauses:
        return _one("timeline", title, f"{said}.", timeline.timeline(search, now=now))
    said += f"; {inside / held:.0%} of what finished trials held went into training loops." if held else "."
    return _one("timeline", title, said, timeline.timeline(search, now=now))
