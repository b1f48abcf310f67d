"""Who held which slot of the cluster when, and the picture of it. Knows the trials, not the page."""

from collections.abc import Iterable
from dataclasses import dataclass

import plotly.graph_objects as go

from orchestrator.reports.run_figures import plain
from orchestrator.reports.search.figures import COLOURS, axes, heard
from orchestrator.reports.search.snapshot import FAILED, RUNNING, Search, Trial

MINUTE_S = 60.0
LEAST_SHARE = 0.025  # of the time, of a block that has room for its number


@dataclass(frozen=True)
class Span:
    """A trial on the timeline: its row, what colours it, and its seconds since the search began."""

    row: str
    group: str
    trial: Trial
    start: float
    end: float


def spans(search: Search, *, now: float) -> list[Span]:
    """Who held which slot when. A trial that runs lasts until `now`."""
    found = []
    for trial in (*search.trials, *search.finals):
        group = trial.status if trial.kind == "trial" or trial.status in (FAILED, RUNNING) else trial.kind
        if trial.ended is not None or trial.status == RUNNING:
            row = "runs now" if trial.slot is None else f"slot {trial.slot}"
            if search.pauses and trial.kind == "trial":  # it holds a slot from rung to rung only
                row = f"trial {trial.number}"
            end = now if trial.ended is None else trial.ended
            found.append(Span(row, group, trial, trial.began - search.created, max(end, trial.began) - search.created))
    return found


def timeline(search: Search, *, now: float) -> go.Figure:
    """A row for each slot of the cluster, or for each trial that waits for others, over minutes since the beginning."""
    drawn = spans(search, now=now)
    rows = sorted({span.row for span in drawn}, key=lambda row: (row == "runs now", len(row), row))
    figure = plain(go.Figure(), height=130 + 52 * len(rows))
    last = max(span.end for span in drawn)
    for group in [name for name in COLOURS if any(span.group == name for span in drawn)]:
        own = [span for span in drawn if span.group == group]
        figure.add_bar(
            orientation="h",
            name=group if group != RUNNING else "runs now",
            y=[span.row for span in own],
            base=[span.start / MINUTE_S for span in own],
            x=[(span.end - span.start) / MINUTE_S for span in own],
            text=[str(span.trial.number) if span.end - span.start > LEAST_SHARE * last else "" for span in own],
            textangle=0,
            insidetextanchor="middle",
            hovertext=[heard(span.trial, search, seconds=span.end - span.start) for span in own],
            hoverinfo="text",
            marker={"color": COLOURS[group], "line": {"width": 1, "color": "rgba(255,255,255,.8)"}},
            textfont={"color": "#0b1220", "size": 11},
        )
    figure.update_layout(barmode="overlay", bargap=0.3, uniformtext={"mode": "hide", "minsize": 9})
    figure.update_yaxes(categoryorder="array", categoryarray=rows[::-1], automargin=True)
    axes(figure, "minutes since the search began", "")
    return figure.update_xaxes(range=[0, last / MINUTE_S * 1.01])


def utilisation(drawn: Iterable[Span], slots: int) -> float | None:
    """The share of the slots' time, from the first trial's begin to the last one's end, in which they held a trial."""
    drawn = list(drawn)
    whole = max((s.end for s in drawn), default=0.0) - min((s.start for s in drawn), default=0.0)
    return sum(span.end - span.start for span in drawn) / (slots * whole) if whole else None
