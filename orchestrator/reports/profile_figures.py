"""The figure of a run on keywords: when each model listens, over the spectrograms of a few test clips."""

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from orchestrator.reports.figure_style import LEGEND_ABOVE, RED, SPECTROGRAM, apply_style, palette
from orchestrator.reports.formatting import escape_label
from orchestrator.reports.run_history import RunHistory

KEYWORD_COLOUR = RED
ROW_HEIGHT = 210


def profiles(history: RunHistory) -> go.Figure | None:
    """A row for each clip: its spectrogram, a frame around the keyword, each model's profile by its highest step.

    None for a run without a record of profiles.
    """
    clips = history.profiles.get("clips", [])
    if not clips:
        return None
    titles = [f"{escape_label(clip['tag'])} ({escape_label(clip['clip_id'])})" for clip in clips]
    specs = [[{"secondary_y": True}] for _ in clips]
    figure = make_subplots(rows=len(clips), shared_xaxes=True, specs=specs, subplot_titles=titles)
    seconds = history.profiles["seconds"]
    for row, clip in enumerate(clips, start=1):
        _add_spectrogram(figure, clip["mel"], seconds, row=row)
        frame = {"color": KEYWORD_COLOUR, "width": 2, "dash": "dash"}
        figure.add_vrect(x0=clip["onset"], x1=clip["offset"], line=frame, row=row, col=1)
        for colour, (model, heard) in zip(palette(), history.profiles["models"].items(), strict=False):
            figure.add_trace(_profile(model, heard, row - 1, colour, seconds), row=row, col=1, secondary_y=True)
    apply_style(figure, height=100 + ROW_HEIGHT * len(clips))
    figure.update_layout(legend=LEGEND_ABOVE | {"y": 1.06}, margin={"t": 80})
    figure.update_yaxes(title="mel band", showgrid=False, secondary_y=False)
    figure.update_yaxes(title="profile", range=[0, 1.05], tickvals=[0, 0.5, 1], showgrid=False, secondary_y=True)
    figure.update_xaxes(range=[0, seconds], showgrid=False)
    figure.update_xaxes(title="seconds", row=len(clips))
    return figure


def _add_spectrogram(figure: go.Figure, mel: list[list[int]], seconds: float, *, row: int) -> None:
    step = seconds / max(len(mel[0]), 1)
    figure.add_heatmap(
        z=mel, x0=step / 2, dx=step, colorscale=SPECTROGRAM, showscale=False, hoverinfo="skip", row=row, col=1
    )


def _profile(model: str, heard: dict[str, Any], clip: int, colour: str, seconds: float) -> go.Scatter:
    """A model's profile of one clip, at the middles of its steps within the clip."""
    shares, highest = heard["clips"][clip], max(heard["clips"][clip])
    points = [(heard["first"] + heard["step"] * (k + 0.5), share / highest) for k, share in enumerate(shares)]
    points = [(at, share) for at, share in points if 0 <= at <= seconds]
    return go.Scatter(
        x=[at for at, _ in points],
        y=[share for _, share in points],
        name=f"{model} ({heard['profile']})",
        legendgroup=model,
        showlegend=clip == 0,
        line={"color": colour, "width": 2},
        mode="lines",
    )
