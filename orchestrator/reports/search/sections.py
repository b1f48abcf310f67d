"""The sections of a search's page that are figures: which there are, and the text needed to read them.

A section without data names what is missing.
"""

from dataclasses import dataclass

import plotly.graph_objects as go

from orchestrator.reports.formatting import plural
from orchestrator.reports.html_page import DrawnFigure, drawn
from orchestrator.reports.search import figures, timeline
from orchestrator.reports.search.importance import NUM_SUBSETS, SUBSET_SHARE, importance, trials_missing
from orchestrator.reports.search.snapshot import STOPPED, SearchSnapshot


@dataclass(frozen=True)
class Section:
    """A heading, and the text above its figures, (element id, heading, figure); without figures, why there are none."""

    name: str
    title: str
    text: str
    figures: tuple[tuple[str, str, DrawnFigure], ...] = ()


def sections(search: SearchSnapshot, now: float) -> list[Section]:
    """All sections in the page's order; running trials are drawn until `now`, in seconds since the epoch."""
    return [
        _slices(search),
        _importance(search),
        _parallel_coordinates(search),
        _learning_curves(search),
        _pareto_front(search),
        _rank_correlation(search),
        _timeline(search, now),
    ]


def _with_one_figure(name: str, title: str, text: str, figure: go.Figure) -> Section:
    return Section(name, title, text, ((f"{name}-all", "", drawn(figure)),))


def _slices(search: SearchSnapshot) -> Section:
    title = "Objective by parameter (slice plots)"
    _, scored = search.comparable_scores
    if not scored:
        return Section("slices", title, "No trial has been scored yet.")
    text = (
        "One dot per trial; lower is better. Blue: the objective at the end of completed trials. Grey, where some "
        "trials were stopped early: the objective of every trial at the last rung that all of them reached; compare "
        "dots of one colour only. Diamonds are means of equally large groups of neighbours, or of each choice, with "
        "standard errors"
    )
    few = len(scored) < figures.MIN_TRIALS_FOR_MEANS
    text += f"; they need {figures.MIN_TRIALS_FOR_MEANS} scored trials, there are {len(scored)}." if few else "."
    plots = [(f"slice-{at}", name, drawn(figures.slice_plot(search, name))) for at, name in enumerate(search.space)]
    for at, (x_name, y_name) in enumerate(figures.parameter_pairs(search)):
        figure = drawn(figures.pair_plot(search, x_name, y_name))
        plots.append((f"pair-{at}", f"{x_name} and {y_name}", figure))
    return Section("slices", title, text, tuple(plots))


def _importance(search: SearchSnapshot) -> Section:
    title, missing = "Parameter importance", trials_missing(search)
    if missing > 0:
        return Section("importance", title, f"Needs {plural(missing, 'more scored trial')}.")
    by_name = importance(search)
    where, scored = search.comparable_scores
    if not by_name:
        return Section("importance", title, "All objective values are equal, so no parameter explains them.")
    text = (
        f"fANOVA: the share of the variance of {search.metric} {where} over the search space that each "
        f"parameter explains on its own, estimated by a random forest fitted to {len(scored)} scored "
        "trials; the rest to 100 % is in interactions of parameters. Whiskers: lowest and highest over "
        f"{NUM_SUBSETS} random subsets of {SUBSET_SHARE:.0%} of the trials; where they overlap, the order is not "
        "settled."
    )
    return _with_one_figure("importance", title, text, figures.importance_bars(by_name))


def _parallel_coordinates(search: SearchSnapshot) -> Section:
    title = "Parallel coordinates"
    if not search.ranked:
        return Section("parallel", title, "No trial has completed with an objective value yet.")
    text = (
        "One line per completed trial, from blue for the best to grey. Where blue lines meet, good trials have similar "
        "values."
    )
    return _with_one_figure("parallel", title, text, figures.parallel_coordinates(search))


def _learning_curves(search: SearchSnapshot) -> Section:
    title = "Learning curves of the trials"
    if not any(trial.history for trial in search.trials):
        return Section("curves", title, "No trial has been scored yet.")
    text = f"{search.metric} at each rung."
    if search.of_status(STOPPED):
        text += f" Grey lines end where the scheduler ({search.settings['scheduler']}) stopped the trial early."
    return _with_one_figure("curves", title, text, figures.learning_curves(search))


def _pareto_front(search: SearchSnapshot) -> Section:
    title, second = "Pareto front", search.settings.get("second", "")
    if not second:
        return Section("pareto", title, "This search has one objective; set search.second for a second one.")
    if not figures.pareto_front(search):
        return Section("pareto", title, "No trial has completed with both objectives yet.")
    cost = figures.SECOND_OBJECTIVES[second]
    text = (
        f"{search.metric} against {cost}; both are better if lower. No trial is better than one on the front in both."
    )
    return _with_one_figure("pareto", title, text, figures.pareto_plot(search))


def _rank_correlation(search: SearchSnapshot) -> Section:
    title, agreement = "Rank correlation with full-length runs", (search.outcome or {}).get("agreement")
    share = search.settings["share"]
    if share == 1:
        return Section("agreement", title, "The trials were full-length runs.")
    if not agreement and any(trial.kind == "full" for trial in search.finals):
        return Section("agreement", title, "Fewer than two trials have completed at full length.")
    if not agreement:
        text = (
            f"Not measured: a trial takes {share:.0%} of a full run's steps; --full N trains N of them at full length."
        )
        return Section("agreement", title, text)
    tau = "not defined, as all values are equal"
    if agreement["tau"] is not None:
        tau = f"{agreement['tau']:+.2f} (p {agreement['p']:.2g})"
    text = (
        f"{len(agreement['trials'])} completed trials, evenly spread from the best to the worst, were trained again "
        f"for all steps; the trials had taken {share:.0%} of them. Kendall's tau between the two rankings is {tau}; "
        "+1 is the same order."
    )
    return _with_one_figure("agreement", title, text, figures.rank_correlation(search))


def _timeline(search: SearchSnapshot, now: float) -> Section:
    title, spans = "Timeline", timeline.spans(search, now=now)
    if not spans:
        return Section("timeline", title, "No trial has started.")
    if search.pauses:
        text = "One row per trial, from its first start to its end; in between it waits for the others at every rung."
    else:
        text = "One row per slot of the cluster; a block is a trial with its number."
        text += _utilisation(search, spans)
    return _with_one_figure("timeline", title, text, timeline.timeline(search, now=now))


def _utilisation(search: SearchSnapshot, spans: list[timeline.Span]) -> str:
    """How busy the slots were, and how much of their time was spent in training loops."""
    busy, text = timeline.utilisation(spans, search.slots), ""
    if busy is not None:
        text = (
            f" From the first trial's start to the last one's end, {plural(search.slots, 'slot')} were {busy:.0%} busy"
        )
    training = sum(trial.loop_seconds for trial in (*search.trials, *search.finals))
    occupied = sum(span.end - span.start for span in spans if span.trial.over)
    if busy is not None and occupied:
        text += f"; {training / occupied:.0%} of the slot time of ended trials was spent in training loops"
    return f"{text}." if text else ""
