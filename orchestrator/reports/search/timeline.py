"""Which trial used which slot of the cluster when, and the figure of it. Depends on the trials, not on the page."""

from collections.abc import Iterable
from dataclasses import dataclass

import plotly.graph_objects as go

from orchestrator.reports.figure_style import add_blocks, new_figure
from orchestrator.reports.search.figures import FINAL_COLOURS, STATUS_COLOURS, hover_text, set_axes
from orchestrator.reports.search.formatting import STATUS_LABELS
from orchestrator.reports.search.snapshot import FAILED, RUNNING, SearchSnapshot, Trial

MINUTE_S = 60.0
MIN_LABELLED_SHARE = 0.025  # of the time: a shorter block has no room for its number
NO_SLOT = "slot unknown"  # the trial's folder does not name one yet


@dataclass(frozen=True)
class Span:
    """A trial on the timeline: its row, its colour group, and its seconds since the search started."""

    row: str
    group: str  # a status, or the kind of a final run
    trial: Trial
    start: float
    end: float


def spans(search: SearchSnapshot, *, now: float) -> list[Span]:
    """Which trial used which slot when; a trial that is still running lasts until `now`, seconds since the epoch."""
    found = []
    for trial in (*search.trials, *search.finals):
        if trial.ended is None and trial.status != RUNNING:
            continue
        group = trial.status if trial.kind == "trial" or trial.status in (FAILED, RUNNING) else trial.kind
        row = NO_SLOT if trial.slot is None else f"slot {trial.slot}"
        if search.pauses and trial.kind == "trial":  # it holds a slot only from one rung to the next
            row = f"trial {trial.number}"
        end = now if trial.ended is None else trial.ended
        found.append(Span(row, group, trial, trial.began - search.created, max(end, trial.began) - search.created))
    return found


def timeline(search: SearchSnapshot, *, now: float) -> go.Figure:
    """A row for each slot, or for each trial if trials wait for one another, over minutes since the search started."""
    all_spans = spans(search, now=now)
    rows = sorted({span.row for span in all_spans}, key=lambda row: (row == NO_SLOT, len(row), row))
    figure = new_figure(height=130 + 52 * len(rows))
    last = max(span.end for span in all_spans)
    for group, colour in (STATUS_COLOURS | FINAL_COLOURS).items():
        of_group = [span for span in all_spans if span.group == group]
        if not of_group:
            continue
        durations = [span.end - span.start for span in of_group]
        add_blocks(
            figure,
            name=STATUS_LABELS.get(group, group),
            colour=colour,
            rows=[span.row for span in of_group],
            starts=[span.start / MINUTE_S for span in of_group],
            lengths=[duration / MINUTE_S for duration in durations],
            labels=[
                str(span.trial.number) if duration > MIN_LABELLED_SHARE * last else ""
                for span, duration in zip(of_group, durations, strict=True)
            ],
            hover_texts=[
                hover_text(span.trial, search, seconds=duration)
                for span, duration in zip(of_group, durations, strict=True)
            ],
        )
    figure.update_layout(barmode="overlay", bargap=0.3, uniformtext={"mode": "hide", "minsize": 9})
    figure.update_yaxes(categoryorder="array", categoryarray=rows[::-1], automargin=True)
    set_axes(figure, "minutes since the search started", "")
    return figure.update_xaxes(range=[0, last / MINUTE_S * 1.01])


def utilisation(all_spans: Iterable[Span], slots: int) -> float | None:
    """The share of the slots' time, from the first trial's start to the last one's end, in which they held a trial.

    None where no time has passed.
    """
    all_spans = list(all_spans)
    whole = max((s.end for s in all_spans), default=0.0) - min((s.start for s in all_spans), default=0.0)
    return sum(span.end - span.start for span in all_spans) / (slots * whole) if whole else None
