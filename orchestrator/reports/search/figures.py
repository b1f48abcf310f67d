"""The pictures of a search, one Plotly figure a function. Knows the trials, not the page, which colours ink and grid.

A score is a shade of blue, the best the darkest; a status is one of a few colours. What files say is escaped, since
Plotly reads some HTML. Numbers go in as plain lists, so that a figure's JSON can be read by anybody.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from orchestrator.reports.run_figures import plain
from orchestrator.reports.search.formatting import escaped, in_words, shown
from orchestrator.reports.search.importance import Importance, parallel_coordinates
from orchestrator.reports.search.snapshot import DONE, FAILED, RUNNING, STOPPED, Scored, Search, Trial
from orchestrator.search.rungs import RungScore

SCORES = [[0.0, "#0b4fc4"], [0.35, "#5b93ea"], [1.0, "#c3cedd"]]
BEST, GREY = "#0b4fc4", "#9aa3b2"
COLOURS = {DONE: "#3b82f6", STOPPED: GREY, FAILED: "#ef4444", RUNNING: "#f59e0b"}
COLOURS |= {"finalist": "#84cc16", "winner": "#8b5cf6", "control": "#14b8a6", "full": "#0e7490"}
SECONDS = {"macs": "multiply-adds a clip", "latency_ms": "latency (ms)"}
LEAST_FOR_MEANS = 12  # trials that came to their end, before means are drawn through them
MOST_BINS = 6
LEAST_IN_BIN = 4
TICKS = (1, 1.5, 2, 3, 5, 7)  # of each decade of a logarithmic axis


def curves(search: Search) -> go.Figure:
    """The score at each rung, over steps: stopped trials grey, the best one thick."""
    figure = plain(go.Figure(), height=420)
    best = search.ranked[:1]
    others = [trial for trial in search.of_status(DONE) if trial not in best]
    styles = {"stopped by the scheduler": (search.of_status(STOPPED), GREY, 1.2)}
    styles |= {"failed": (search.of_status(FAILED), COLOURS[FAILED], 1.2)}
    styles |= {"came to its end": (others, COLOURS[DONE], 1.4), "the best": (best, BEST, 4)}
    for name, (trials, colour, width) in styles.items():
        points = [point for trial in trials if trial.history for point in [*_rungs(trial, search), (None, None, "")]]
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
    return axes(figure, "steps", label(search)).update_xaxes(tickvals=rungs, range=[0, rungs[-1] * 1.03])


def _rungs(trial: Trial, search: Search) -> list[tuple[int | None, float | None, str]]:
    """(step, score, what pointing at it shows: also each model's own)."""
    metric, found = search.settings["metric"], list[tuple[int | None, float | None, str]]()
    for rung in trial.history:
        own = [escaped(f"{key} {shown(value)}") for key, value in rung.values.items() if key.endswith(f"/{metric}")]
        found.append((rung.step, rung.objective, "<br>".join([heard(trial, search, at=rung), *own])))
    return found


def parallel(search: Search) -> go.Figure:
    """A line for each trial that came to its end, through its score and its settings; dark is good."""
    figure = parallel_coordinates(search)
    plain(figure, height=420)
    for trace in figure.data:
        if trace.mode == "lines":
            trace.line.color = sample_colorscale(SCORES, trace.y[0])[0]  # Optuna puts the score first, from 0 to 1
        else:
            trace.marker.update(colorscale=SCORES, reversescale=False, colorbar={"thickness": 12})
    return figure.update_layout(title=None, margin={"l": 60, "r": 20, "t": 40, "b": 60})


def response(search: Search, name: str) -> go.Figure:
    """The score against one parameter: at the trials' end, and where all were judged, so that like stands beside like.

    Where there are enough trials, means of equally many neighbours (or of each choice) with their standard errors.
    """
    figure = plain(go.Figure(), height=330)
    for words, symbol, colour, scored in _layers(search):
        own = [(trial, score) for trial, score in scored if name in trial.settings]
        figure.add_scatter(
            x=[_place(trial, name, search) for trial, _ in own],
            y=[score for _, score in own],
            hovertext=[f"{score:.4f} {words}<br>{heard(trial, search)}" for trial, score in own],
            hoverinfo="text",
            name=words,
            mode="markers",
            marker={"color": colour, "size": 8, "opacity": 0.75, "symbol": symbol},
        )
        _add_means(figure, search, name, own, colour)
    axes(figure, escaped(name), label(search))
    if "choices" in search.space[name]:
        order = [escaped(in_words(search, name, choice)) for choice in search.space[name]["choices"]]
        return figure.update_xaxes(type="category", categoryorder="array", categoryarray=order, automargin=True)
    return figure.update_xaxes(**_scale(search, name))


def _layers(search: Search) -> list[tuple[str, str, str, Scored]]:
    """(words, symbol, colour, trials with scores that can be compared)."""
    words, scored = search.comparable_scores
    layers = [("at the end", "circle", COLOURS[DONE], search.final_scores)] if search.final_scores else []
    return layers if scored == search.final_scores else [(f"every trial {words}", "circle-open", GREY, scored), *layers]


def _add_means(figure: go.Figure, search: Search, name: str, scored: Scored, colour: str) -> None:
    if len(scored) < LEAST_FOR_MEANS:
        return
    span = search.space[name]
    if "choices" in span:
        chosen = [[entry for entry in scored if entry[0].settings[name] == choice] for choice in span["choices"]]
        groups = [group for group in chosen if len(group) >= LEAST_IN_BIN]
        places = [_place(group[0][0], name, search) for group in groups]
    else:
        groups = _neighbours(sorted(scored, key=lambda entry: entry[0].settings[name]))
        places = [_middle([t.settings[name] for t, _ in group], log=bool(span.get("log"))) for group in groups]
    means = [_mean_and_error([score for _, score in group]) for group in groups]
    figure.add_scatter(
        x=places,
        y=[mean for mean, _ in means],
        error_y={"array": [error for _, error in means], "thickness": 1.5, "width": 4, "color": colour},
        hovertext=[f"mean of {len(group)}: {mean:.4f}" for group, (mean, _) in zip(groups, means, strict=True)],
        hoverinfo="text",
        showlegend=False,
        mode="markers" if "choices" in span else "lines+markers",
        line={"color": colour, "width": 2},
        marker={"color": colour, "size": 11, "symbol": "diamond"},
    )


def _neighbours(trials: Scored) -> list[Scored]:
    count = min(MOST_BINS, len(trials) // LEAST_IN_BIN)
    edges = [round(len(trials) * at / count) for at in range(count + 1)]
    return [trials[start:end] for start, end in pairwise(edges)]


def _middle(values: Sequence[float], *, log: bool) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if log else sum(values) / len(values)


def _mean_and_error(scores: Sequence[float]) -> tuple[float, float]:
    mean = sum(scores) / len(scores)
    variance = sum((score - mean) ** 2 for score in scores) / (len(scores) - 1)
    return mean, math.sqrt(variance / len(scores))


def pairs(search: Search) -> list[tuple[str, str]]:
    """Weight and temperature of each edge that has both in the space; else the first two ranges, if there are two."""
    ranges = [name for name, span in search.space.items() if "choices" not in span]
    edges = [name.removesuffix(".weight") for name in ranges if name.endswith(".weight")]
    found = [(f"{edge}.weight", f"{edge}.temperature") for edge in edges if f"{edge}.temperature" in ranges]
    return found or [(ranges[0], ranges[1])] if len(ranges) >= 2 else []


def together(search: Search, across: str, up: str) -> go.Figure:
    """Where in two ranges the good scores lie: a dot for each trial, judged where most can be compared."""
    figure = plain(go.Figure(), height=380)
    words, scored = search.comparable_scores
    own = [(trial, score) for trial, score in scored if across in trial.settings and up in trial.settings]
    own = sorted(own, key=lambda entry: -entry[1])  # the best is drawn last, on top
    bar = {"title": {"text": f"{label(search)}, {words}", "side": "right"}, "thickness": 12}
    figure.add_scatter(
        x=[trial.settings[across] for trial, _ in own],
        y=[trial.settings[up] for trial, _ in own],
        hovertext=[f"{score:.4f} {words}<br>{heard(trial, search)}" for trial, score in own],
        hoverinfo="text",
        mode="markers",
        marker={"color": [score for _, score in own], "colorscale": SCORES, "size": 15, "colorbar": bar},
        marker_line={"width": 1, "color": "rgba(128,128,128,.7)"},
        showlegend=False,
    )
    axes(figure, escaped(across), escaped(up))
    return figure.update_xaxes(**_scale(search, across)).update_yaxes(**_scale(search, up))


def _scale(search: Search, name: str) -> dict[str, Any]:
    """An axis over a range; logarithmic ones are numbered where people look for numbers."""
    span = search.space[name]
    if not span.get("log"):
        return {}
    low, high = math.log10(span["low"]), math.log10(span["high"])
    decades = range(math.floor(low), math.ceil(high) + 1)
    marks = [tick * 10.0**decade for decade in decades for tick in (TICKS if high - low < 2 else (1,))]
    edge = 0.04 * (high - low)
    return {"type": "log", "range": [low - edge, high + edge], "tickvals": marks, "ticktext": [f"{m:g}" for m in marks]}


def importances(found: dict[str, Importance]) -> go.Figure:
    """Shares of the score's variance, the largest on top; whiskers are the lowest and highest of the subsets."""
    figure = plain(go.Figure(), height=110 + 42 * len(found))
    names = [escaped(name) for name in found][::-1]
    values = list(found.values())[::-1]
    figure.add_bar(
        orientation="h",
        y=names,
        x=[value.share for value in values],
        error_x={
            "array": [value.high - value.share for value in values],
            "arrayminus": [value.share - value.low for value in values],
            "color": GREY,
        },
        hovertext=[f"{value.share:.0%}, {value.low:.0%} to {value.high:.0%} in the subsets" for value in values],
        hoverinfo="text",
        marker={"color": COLOURS[DONE]},
    )
    figure.update_layout(bargap=0.4, margin={"l": 20})
    figure.update_yaxes(automargin=True)
    return figure.update_xaxes(title="share of the score's variance", range=[0, 1.02], tickformat=".0%")


def front(search: Search) -> list[Trial]:
    """The trials that no other beats in both objectives, the cheapest first."""
    best, found = math.inf, list[Trial]()
    paired = [(trial.second, trial.objective or 0.0, trial) for trial in search.ranked if trial.second is not None]
    for _, score, trial in sorted(paired, key=lambda entry: entry[:2]):
        if score < best:
            best, found = score, [*found, trial]
    return found


def pareto(search: Search) -> go.Figure:
    """The score against the second objective; what is best for its price is joined by a line."""
    figure = plain(go.Figure(), height=420)
    best = front(search)
    rest = [trial for trial in search.ranked if trial.second is not None and trial not in best]
    for name, trials, colour, mode in (
        ("beaten in both", rest, GREY, "markers"),
        ("Pareto front", best, BEST, "lines+markers"),
    ):
        figure.add_scatter(
            x=[trial.second for trial in trials],
            y=[trial.objective for trial in trials],
            hovertext=[heard(trial, search) for trial in trials],
            hoverinfo="text",
            name=name,
            mode=mode,
            line={"color": colour, "width": 2, "shape": "hv"},
            marker={"color": colour, "size": 10},
        )
    return axes(figure, SECONDS[search.settings["second"]], label(search))


def agreement(search: Search) -> go.Figure:
    """What trials scored at full length against what they scored as trials; one that goes up throughout agrees."""
    found = (search.outcome or {})["agreement"]
    known = {trial.number: trial for trial in search.trials}
    figure = plain(go.Figure(), height=380)
    figure.add_scatter(
        x=found["short"],
        y=found["full"],
        text=[str(number) for number in found["trials"]],
        textposition="top center",
        hovertext=[
            f"{full:.4f} at full length<br>{heard(known[number], search)}"
            for number, full in zip(found["trials"], found["full"], strict=True)
        ],
        hoverinfo="text",
        mode="markers+text",
        marker={"color": COLOURS["full"], "size": 11},
        showlegend=False,
    )
    return axes(figure, f"{label(search)} as a trial", f"{label(search)} at full length")


def heard(trial: Trial, search: Search, *, at: RungScore | None = None, seconds: float | None = None) -> str:
    """What pointing at a trial shows; everything escaped."""
    seed = "" if trial.seed is None else f" (seed {trial.seed})"
    kind = "trial" if trial.kind == "trial" else f"{trial.kind}{seed}, trial"
    step, score = (trial.steps, trial.score) if at is None else (at.step, at.objective)
    lines = [f"<b>{escaped(kind)} {trial.number}</b>, {escaped(trial.status)}"]
    lines += [f"{label(search)} {score:.4f} after {step} steps"] if score is not None else []
    lines += [f"{seconds:.0f} s on {escaped(trial.host) or 'a slot that it has not told yet'}"] if seconds else []
    lines += [escaped(f"{name} {in_words(search, name, value)}") for name, value in trial.settings.items()]
    return "<br>".join([*lines, escaped(trial.reason[:120])] if trial.reason else lines)


def _place(trial: Trial, name: str, search: Search) -> Any:
    value = trial.settings[name]
    return escaped(in_words(search, name, value)) if "choices" in search.space[name] else value


def label(search: Search) -> str:
    """What the score is called, as Plotly wants it."""
    return escaped(search.metric)


def axes(figure: go.Figure, across: str, up: str) -> go.Figure:
    """The legend above, the axes named."""
    figure.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})
    return figure.update_xaxes(title=across).update_yaxes(title=up)
