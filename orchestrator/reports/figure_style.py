"""Layout and colours that all figures share, and blocks along an axis. The page sets the colours of text and grid."""

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import plotly.graph_objects as go
import plotly.io

# Without Plotly's theme; small numbers as powers of ten, where Plotly would write micro and milli.
TEMPLATE = go.layout.Template(plotly.io.templates["none"]).update(
    layout={axis: {"exponentformat": "power"} for axis in ("xaxis", "yaxis")}
)
PALETTE = ("#3b82f6", "#ec4899", "#14b8a6", "#f97316", "#8b5cf6", "#84cc16", "#06b6d4", "#a3a3a3")
LEGEND_ABOVE = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
OUTLINE = {"width": 1, "color": "rgba(128,128,128,.6)"}
BLOCK_TEXT = {"color": "#0b1220", "size": 11}


def new_figure(*, height: int) -> go.Figure:
    """An empty figure in the pages' style, `height` pixels high."""
    return apply_style(go.Figure(), height=height)


def apply_style(figure: go.Figure, *, height: int) -> go.Figure:
    """Transparent, without Plotly's theme: text and grid take the page's colours, light or dark."""
    transparent = "rgba(0,0,0,0)"
    figure.update_layout(template=TEMPLATE, height=height, paper_bgcolor=transparent, plot_bgcolor=transparent)
    return figure.update_layout(margin={"l": 70, "r": 20, "t": 40, "b": 50}, hovermode="closest")


def palette() -> Iterator[str]:
    """The colours of a figure's lines or bars, in order, repeated without end."""
    return cycle(PALETTE)


def add_blocks(
    figure: go.Figure,
    *,
    name: str,
    colour: str,
    rows: list[str],
    starts: list[Any],
    lengths: list[Any],
    labels: list[str],
    hover_texts: list[str],
) -> None:
    """Horizontal blocks of one colour, under one entry of the legend: what happened in which row, from when to when."""
    figure.add_bar(
        orientation="h",
        name=name,
        y=rows,
        base=starts,
        x=lengths,
        text=labels,
        textangle=0,
        insidetextanchor="middle",
        textfont=BLOCK_TEXT,
        hovertext=hover_texts,
        hoverinfo="text",
        marker={"color": colour, "line": OUTLINE},
    )
