"""The figures of a study, one Plotly figure per function. Depends on a study's outcome, not on the page."""

from typing import Any

import plotly.graph_objects as go

from orchestrator.reports.figure_style import GREEN, GREY, LEGEND_ABOVE, RED, new_figure, palette
from orchestrator.reports.formatting import escape_label
from workloads.config.study import CONTROL, ENSEMBLE

BETTER, WORSE, NOT_SHOWN, ZERO = GREEN, RED, GREY, GREY
Row = dict[str, Any]


def compared(outcome: Row, student: str) -> dict[str, Row]:
    """The methods that were compared with the control on this student, in the plan's order."""
    methods = outcome["methods"].items()
    return {name: row["students"][student] for name, row in methods if name != CONTROL and student in row["students"]}


def forest(outcome: Row, student: str, score: str) -> go.Figure:
    """A row for each method: its difference to the control in a score ("" is the primary one), and the interval.

    Without methods that do not have the score: the ensemble has no frames.
    Green lies above 0, red below, grey on both sides of it.
    """
    rows = compared(outcome, student)
    scores = {name: row[score] if score else row for name, row in rows.items() if not score or score in row}
    figure = new_figure(height=110 + 34 * len(scores))
    for name, colour in (("better", BETTER), ("no difference shown", NOT_SHOWN), ("worse", WORSE)):
        own = {method: row for method, row in scores.items() if verdict(row) == name}
        if own:
            figure.add_scatter(
                x=[row["difference"] for row in own.values()],
                y=[escape_label(method) for method in own],
                error_x={"type": "data", "symmetric": False, **_arms(list(own.values())), "thickness": 2},
                mode="markers",
                name=name,
                marker={"color": colour, "size": 10},
                hovertext=[_difference(method, row) for method, row in own.items()],
                hoverinfo="text",
            )
    _mark_zero(figure, axis="x")
    order = [escape_label(method) for method in scores]
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=order[::-1], automargin=True)
    label = score.replace("_", " ") or next(iter(rows.values()))["metric"]
    figure.update_xaxes(title=f"{label}: difference to {CONTROL}, above 0 is better")
    return figure.update_layout(legend=LEGEND_ABOVE)


def cost_and_gain(outcome: Row, student: str) -> go.Figure:
    """A point for each method: what a run of it costs in processor time, as a multiple of the control's, and what the
    student gains in the primary score."""
    figure = new_figure(height=420)
    of_control = outcome["methods"][CONTROL]["cpu_seconds"]
    rows = {name: row for name, row in compared(outcome, student).items() if of_control}
    for colour, (name, row) in zip(palette(), rows.items(), strict=False):
        figure.add_scatter(
            x=[outcome["methods"][name]["cpu_seconds"] / of_control],
            y=[row["difference"]],
            error_y={"type": "data", "symmetric": False, **_arms([row]), "thickness": 1.2},
            mode="markers",
            name=escape_label(name),
            marker={"color": colour, "size": 11, "symbol": "diamond" if name == ENSEMBLE else "circle"},
            hovertext=[_difference(name, row)],
            hoverinfo="text",
        )
    _mark_zero(figure, axis="y")
    metric = outcome["methods"][CONTROL]["students"][student]["metric"]
    figure.update_yaxes(title=f"{metric}: difference to {CONTROL}")
    figure.update_xaxes(title=f"processor time of a run, times that of {CONTROL}", rangemode="tozero")
    return figure.update_layout(legend=LEGEND_ABOVE)


def curves(outcome: Row, student: str) -> go.Figure:
    """The validation score over the student's own steps, the mean of a method's runs; the control is dashed."""
    figure = new_figure(height=420)
    for colour, (name, curve) in zip(palette(), outcome["curves"].get(student, {}).items(), strict=False):
        figure.add_scatter(
            x=[step for step, _ in curve],
            y=[score for _, score in curve],
            name=escape_label(name),
            mode="lines+markers",
            line={"color": colour, "dash": "dash" if name == CONTROL else "solid"},
        )
    metric = outcome["methods"][CONTROL]["students"][student]["metric"]
    figure.update_yaxes(title=f"validation {metric}, mean of the runs")
    figure.update_xaxes(title=f"own steps of {escape_label(student)}", rangemode="tozero")
    return figure.update_layout(legend=LEGEND_ABOVE)


def verdict(row: Row) -> str:
    """Whether the interval of a difference lies on one side of 0."""
    low, high = row["interval"]
    return "better" if low > 0 else "worse" if high < 0 else "no difference shown"


def _arms(rows: list[Row]) -> dict[str, list[float]]:
    """Plotly's error bars: how far each interval reaches on either side of its difference."""
    return {
        "array": [row["interval"][1] - row["difference"] for row in rows],
        "arrayminus": [row["difference"] - row["interval"][0] for row in rows],
    }


def _difference(method: str, row: Row) -> str:
    low, high = row["interval"]
    return f"{escape_label(method)}: {row['difference']:+.4f} ({low:+.4f} to {high:+.4f})"


def _mark_zero(figure: go.Figure, *, axis: str) -> None:
    """A dotted line at no difference, across the figure."""
    along, across = ("x", "y") if axis == "x" else ("y", "x")
    ends = {f"{along}0": 0, f"{along}1": 0, f"{across}0": 0, f"{across}1": 1, f"{across}ref": f"{across} domain"}
    figure.add_shape(type="line", line={"dash": "dot", "width": 1.5, "color": ZERO}, **ends)
