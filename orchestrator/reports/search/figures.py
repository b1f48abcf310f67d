"""The figures of a search, one Plotly figure per function. Depends on the trials, not on the page.

An objective value is a shade from blue, the best, to grey; a status is one of a few colours. Text from files is
escaped, since Plotly interprets some HTML. Numbers go in as plain lists, so that a figure's JSON can be read.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from orchestrator.reports.figure_style import (
    AMBER,
    BEST,
    BLUE,
    CYAN,
    GREY,
    LEGEND_ABOVE,
    LIME,
    OUTLINE,
    RED,
    TEAL,
    VIOLET,
    WORST,
    apply_style,
    new_figure,
    shade,
)
from orchestrator.reports.formatting import escape_label
from orchestrator.reports.search.formatting import STATUS_LABELS, format_setting, format_value
from orchestrator.reports.search.importance import Importance, optuna_parallel_coordinates
from orchestrator.reports.search.snapshot import (
    DONE,
    FAILED,
    INTERRUPTED,
    RUNNING,
    STOPPED,
    Scored,
    SearchSnapshot,
    Trial,
)
from orchestrator.search.rungs import RungScore

OBJECTIVE_SCALE = [[0.0, BEST], [1.0, WORST]]  # from the lowest, which is the best
STATUS_COLOURS = {DONE: BLUE, STOPPED: GREY, FAILED: RED, RUNNING: AMBER, INTERRUPTED: AMBER}
FINAL_COLOURS = {"finalist": LIME, "winner": VIOLET, "control": TEAL, "full": CYAN}
SECOND_OBJECTIVES = {"macs": "multiply-adds per clip", "latency_ms": "latency (ms)"}
MIN_TRIALS_FOR_MEANS = 12
MAX_BINS = 6
MIN_BIN_SIZE = 4
LOG_TICKS = (1, 1.5, 2, 3, 5, 7)  # of each decade, on a logarithmic axis of less than two decades


def learning_curves(search: SearchSnapshot) -> go.Figure:
    """The objective at each rung, over steps: trials stopped early are grey, the best one is thick."""
    figure = new_figure(height=420)
    best = search.ranked[:1]
    others = [trial for trial in search.of_status(DONE) if trial not in best]
    styles = {STATUS_LABELS[STOPPED]: (search.of_status(STOPPED), GREY, 1.2)}
    styles |= {STATUS_LABELS[FAILED]: (search.of_status(FAILED), STATUS_COLOURS[FAILED], 1.2)}
    styles |= {STATUS_LABELS[DONE]: (others, STATUS_COLOURS[DONE], 1.4), "best": (best, BEST, 4)}
    for name, (trials, colour, width) in styles.items():
        points = [point for trial in trials if trial.history for point in [*_points(trial, search), (None, None, "")]]
        if not points:
            continue
        figure.add_scatter(
            x=[step for step, _, _ in points],
            y=[score for _, score, _ in points],
            hovertext=[text for _, _, text in points],
            hoverinfo="text",
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": width},
            marker={"size": 5 if width < 4 else 8},
        )
    rungs = sorted({rung.step for trial in search.trials for rung in trial.history})
    return set_axes(figure, "steps", objective_label(search)).update_xaxes(tickvals=rungs, range=[0, rungs[-1] * 1.03])


def _points(trial: Trial, search: SearchSnapshot) -> list[tuple[int | None, float | None, str]]:
    """(step, objective, hover text with each model's own metric) of a trial's rungs."""
    metric, points = search.settings["metric"], list[tuple[int | None, float | None, str]]()
    for rung in trial.history:
        values = rung.values.items()
        own = [escape_label(f"{key} {format_value(value)}") for key, value in values if key.endswith(f"/{metric}")]
        points.append((rung.step, rung.objective, "<br>".join([hover_text(trial, search, at=rung), *own])))
    return points


def parallel_coordinates(search: SearchSnapshot) -> go.Figure:
    """A line for each completed trial, through its objective and its settings; blue is good."""
    figure = optuna_parallel_coordinates(search)
    apply_style(figure, height=420)
    for trace in figure.data:
        if trace.mode == "lines":
            # Optuna puts the objective first, from 0 to 1
            trace.line.color = shade(trace.y[0])
        else:
            trace.marker.update(colorscale=OBJECTIVE_SCALE, reversescale=False, colorbar={"thickness": 12})
    figure.update_annotations(font={"size": 10, "color": None})  # else Optuna's grey, which dark pages hide
    return figure.update_layout(title=None, margin={"l": 60, "r": 20, "t": 40, "b": 60})


def slice_plot(search: SearchSnapshot, name: str) -> go.Figure:
    """The objective against one parameter: at the trials' end, and at the last rung that all reached.

    With enough trials: means of equally many neighbours (or of each choice) with their standard errors.
    """
    figure = new_figure(height=330)
    for where, symbol, colour, scored in _comparable_scores(search):
        own = [(trial, score) for trial, score in scored if name in trial.settings]
        figure.add_scatter(
            x=[_axis_value(trial, name, search) for trial, _ in own],
            y=[score for _, score in own],
            hovertext=[f"{score:.4f} {where}<br>{hover_text(trial, search)}" for trial, score in own],
            hoverinfo="text",
            name=where,
            mode="markers",
            marker={"color": colour, "size": 8, "opacity": 0.75, "symbol": symbol},
        )
        _add_means(figure, search, name, own, colour)
    set_axes(figure, escape_label(name), objective_label(search))
    if "choices" in search.space[name]:
        order = [escape_label(format_setting(search, name, choice)) for choice in search.space[name]["choices"]]
        return figure.update_xaxes(type="category", categoryorder="array", categoryarray=order, automargin=True)
    return figure.update_xaxes(**_axis_scale(search, name))


def _comparable_scores(search: SearchSnapshot) -> list[tuple[str, str, str, Scored]]:
    """(where the trials were scored, marker symbol, colour, trials with objectives that can be compared)."""
    where, scored = search.comparable_scores
    at_end = [("at the end", "circle", STATUS_COLOURS[DONE], search.final_scores)] if search.final_scores else []
    return at_end if scored == search.final_scores else [(f"all trials {where}", "circle-open", GREY, scored), *at_end]


def _add_means(figure: go.Figure, search: SearchSnapshot, name: str, scored: Scored, colour: str) -> None:
    """Mean and standard error of each choice, or of bins of equally many neighbours along a range."""
    if len(scored) < MIN_TRIALS_FOR_MEANS:
        return
    domain = search.space[name]
    if "choices" in domain:
        by_choice = [[entry for entry in scored if entry[0].settings[name] == choice] for choice in domain["choices"]]
        bins = [group for group in by_choice if len(group) >= MIN_BIN_SIZE]
        centres = [_axis_value(group[0][0], name, search) for group in bins]
    else:
        bins = _equal_bins(sorted(scored, key=lambda entry: entry[0].settings[name]))
        centres = [_centre([t.settings[name] for t, _ in group], log=bool(domain.get("log"))) for group in bins]
    means = [_mean_and_error([score for _, score in group]) for group in bins]
    figure.add_scatter(
        x=centres,
        y=[mean for mean, _ in means],
        error_y={"array": [error for _, error in means], "thickness": 1.5, "width": 4, "color": colour},
        hovertext=[f"mean of {len(group)}: {mean:.4f}" for group, (mean, _) in zip(bins, means, strict=True)],
        hoverinfo="text",
        showlegend=False,
        mode="markers" if "choices" in domain else "lines+markers",
        line={"color": colour, "width": 2},
        marker={"color": colour, "size": 11, "symbol": "diamond"},
    )


def _equal_bins(scored: Scored) -> list[Scored]:
    count = min(MAX_BINS, len(scored) // MIN_BIN_SIZE)
    edges = [round(len(scored) * at / count) for at in range(count + 1)]
    return [scored[start:end] for start, end in pairwise(edges)]


def _centre(values: Sequence[float], *, log: bool) -> float:
    """The arithmetic mean, or the geometric mean on a logarithmic axis."""
    return math.exp(sum(map(math.log, values)) / len(values)) if log else sum(values) / len(values)


def _mean_and_error(scores: Sequence[float]) -> tuple[float, float]:
    mean = sum(scores) / len(scores)
    variance = sum((score - mean) ** 2 for score in scores) / (len(scores) - 1)
    return mean, math.sqrt(variance / len(scores))


def parameter_pairs(search: SearchSnapshot) -> list[tuple[str, str]]:
    """Weight and temperature of each edge that has both in the space; else the first two ranges, if there are two."""
    ranges = [name for name, domain in search.space.items() if "choices" not in domain]
    edges = [name.removesuffix(".weight") for name in ranges if name.endswith(".weight")]
    pairs = [(f"{edge}.weight", f"{edge}.temperature") for edge in edges if f"{edge}.temperature" in ranges]
    return pairs or [(ranges[0], ranges[1])] if len(ranges) >= 2 else []


def pair_plot(search: SearchSnapshot, x_name: str, y_name: str) -> go.Figure:
    """A dot for each trial over two ranges, coloured by its objective where most trials can be compared."""
    figure = new_figure(height=380)
    where, scored = search.comparable_scores
    own = [(trial, score) for trial, score in scored if x_name in trial.settings and y_name in trial.settings]
    own = sorted(own, key=lambda entry: -entry[1])  # the best is drawn last, on top
    bar = {"title": {"text": f"{objective_label(search)}, {where}", "side": "right"}, "thickness": 12}
    figure.add_scatter(
        x=[trial.settings[x_name] for trial, _ in own],
        y=[trial.settings[y_name] for trial, _ in own],
        hovertext=[f"{score:.4f} {where}<br>{hover_text(trial, search)}" for trial, score in own],
        hoverinfo="text",
        mode="markers",
        marker={"color": [score for _, score in own], "colorscale": OBJECTIVE_SCALE, "size": 15, "colorbar": bar},
        marker_line=OUTLINE,
        showlegend=False,
    )
    set_axes(figure, escape_label(x_name), escape_label(y_name))
    return figure.update_xaxes(**_axis_scale(search, x_name)).update_yaxes(**_axis_scale(search, y_name))


def _axis_scale(search: SearchSnapshot, name: str) -> dict[str, Any]:
    """The axis of a range; a logarithmic one has ticks at round numbers."""
    domain = search.space[name]
    if not domain.get("log"):
        return {}
    low, high = math.log10(domain["low"]), math.log10(domain["high"])
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [tick * 10.0**decade for decade in decades for tick in (LOG_TICKS if high - low < 2 else (1,))]
    margin = 0.04 * (high - low)
    labels = [f"{tick:g}" for tick in ticks]
    return {"type": "log", "range": [low - margin, high + margin], "tickvals": ticks, "ticktext": labels}


def importance_bars(by_name: dict[str, Importance]) -> go.Figure:
    """Shares of the objective's variance, the largest on top; whiskers: lowest and highest over the subsets."""
    figure = new_figure(height=110 + 42 * len(by_name))
    values = list(by_name.values())[::-1]
    figure.add_bar(
        orientation="h",
        y=[escape_label(name) for name in by_name][::-1],
        x=[value.share for value in values],
        error_x={
            "array": [value.high - value.share for value in values],
            "arrayminus": [value.share - value.low for value in values],
            "color": GREY,
        },
        hovertext=[f"{value.share:.0%}, {value.low:.0%} to {value.high:.0%} in the subsets" for value in values],
        hoverinfo="text",
        marker={"color": STATUS_COLOURS[DONE]},
    )
    figure.update_layout(bargap=0.4, margin={"l": 20})
    figure.update_yaxes(automargin=True)
    return figure.update_xaxes(title="share of the objective's variance", range=[0, 1.02], tickformat=".0%")


def pareto_front(search: SearchSnapshot) -> list[Trial]:
    """The trials that no other beats in both objectives, the cheapest first."""
    best, front = math.inf, list[Trial]()
    paired = [(trial.second, trial.objective or 0.0, trial) for trial in search.ranked if trial.second is not None]
    for _, score, trial in sorted(paired, key=lambda entry: entry[:2]):
        if score < best:
            best, front = score, [*front, trial]
    return front


def pareto_plot(search: SearchSnapshot) -> go.Figure:
    """The objective against the second objective; a line joins the Pareto front."""
    figure = new_figure(height=420)
    front = pareto_front(search)
    dominated = [trial for trial in search.ranked if trial.second is not None and trial not in front]
    for name, trials, colour, mode in (
        ("dominated", dominated, GREY, "markers"),
        ("Pareto front", front, BEST, "lines+markers"),
    ):
        figure.add_scatter(
            x=[trial.second for trial in trials],
            y=[trial.objective for trial in trials],
            hovertext=[hover_text(trial, search) for trial in trials],
            hoverinfo="text",
            name=name,
            mode=mode,
            line={"color": colour, "width": 2, "shape": "hv"},
            marker={"color": colour, "size": 10},
        )
    return set_axes(figure, SECOND_OBJECTIVES[search.settings["second"]], objective_label(search))


def rank_correlation(search: SearchSnapshot) -> go.Figure:
    """Objective at full length against objective as a trial; dots that rise throughout are the same ranking."""
    agreement = (search.outcome or {})["agreement"]
    by_number = {trial.number: trial for trial in search.trials}
    figure = new_figure(height=380)
    figure.add_scatter(
        x=agreement["short"],
        y=agreement["full"],
        text=[str(number) for number in agreement["trials"]],
        textposition="top center",
        hovertext=[
            f"{full:.4f} at full length<br>{hover_text(by_number[number], search)}"
            for number, full in zip(agreement["trials"], agreement["full"], strict=True)
        ],
        hoverinfo="text",
        mode="markers+text",
        marker={"color": FINAL_COLOURS["full"], "size": 11},
        showlegend=False,
    )
    label = objective_label(search)
    return set_axes(figure, f"{label} as a trial", f"{label} at full length")


def hover_text(
    trial: Trial, search: SearchSnapshot, *, at: RungScore | None = None, seconds: float | None = None
) -> str:
    """The text shown when the pointer is over a trial, as HTML with everything escaped."""
    seed = "" if trial.seed is None else f" (seed {trial.seed})"
    kind = "trial" if trial.kind == "trial" else f"{trial.kind}{seed}, trial"
    step, score = (trial.steps, trial.score) if at is None else (at.step, at.objective)
    lines = [f"<b>{escape_label(kind)} {trial.number}</b>, {STATUS_LABELS[trial.status]}"]
    lines += [f"{objective_label(search)} {score:.4f} after {step} steps"] if score is not None else []
    lines += [f"{seconds:.0f} s on {escape_label(trial.host) or 'a host that is not known yet'}"] if seconds else []
    lines += [escape_label(f"{name} {format_setting(search, name, value)}") for name, value in trial.settings.items()]
    return "<br>".join([*lines, escape_label(trial.reason[:120])] if trial.reason else lines)


def _axis_value(trial: Trial, name: str, search: SearchSnapshot) -> Any:
    value = trial.settings[name]
    return escape_label(format_setting(search, name, value)) if "choices" in search.space[name] else value


def objective_label(search: SearchSnapshot) -> str:
    """The objective's name, escaped for a figure."""
    return escape_label(search.metric)


def set_axes(figure: go.Figure, x_title: str, y_title: str) -> go.Figure:
    """Titles of the axes, and the legend above the figure."""
    figure.update_layout(legend=LEGEND_ABOVE | {"x": 0})
    return figure.update_xaxes(title=x_title).update_yaxes(title=y_title)
