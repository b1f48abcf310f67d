"""Layout and colours that all figures share, and blocks along an axis. The page sets the colours of text and grid.

Lines, bars and blocks have one colour on light and dark pages: each is of a luminance that has a contrast of 3 or more
with both backgrounds, and of 4.5 or more with the text that is drawn on blocks. Text and scales of colours need two:
figures hold the light one, and the page replaces it by that of IN_DARK where the reader prefers dark.
"""

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import plotly.graph_objects as go
import plotly.io

# Without Plotly's theme; small numbers as powers of ten, where Plotly would write micro and milli.
TEMPLATE = go.layout.Template(plotly.io.templates["none"]).update(
    layout={axis: {"exponentformat": "power"} for axis in ("xaxis", "yaxis")}
)
BLUE, PINK, TEAL, ORANGE = "#3b82f6", "#ec4899", "#0f9b8e", "#e8620c"
VIOLET, LIME, CYAN, GREY = "#9068f6", "#5f9a0f", "#0891b2", "#8690a1"
GREEN, AMBER, RED, BROWN = "#1a9a4a", "#b97f08", "#ef4444", "#8d6e63"
PALETTE = (BLUE, PINK, TEAL, ORANGE, VIOLET, LIME, CYAN, GREY)
LEGEND_ABOVE = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
OUTLINE = {"width": 1, "color": "rgba(128,128,128,.6)"}
BLOCK_TEXT = {"color": "#0b1220", "size": 11}

CELL_TEXT = "#1a2130"
LOW_CELL, HIGH_CELL = "#f1f4f9", "#4f93f5"
CELLS = [[0, LOW_CELL], [1, HIGH_CELL]]  # of matrices: CELL_TEXT can be read on all of it
SPECTROGRAM = [[0, "rgba(100,116,139,0)"], [1, "rgba(100,116,139,.9)"]]  # on light and dark pages
BEST, WORST = "#1652c9", "#8690a0"
NUM_SHADES = 9


def _between(first: str, last: str) -> list[str]:
    """NUM_SHADES colours from the first to the last one, as #rrggbb."""
    ends = [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in (first, last)]
    shares = [number / (NUM_SHADES - 1) for number in range(NUM_SHADES)]
    mixed = [[round(a + share * (b - a)) for a, b in zip(*ends, strict=True)] for share in shares]
    return ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in mixed]


SHADES = _between(BEST, WORST)  # of an objective
IN_DARK = {
    CELL_TEXT: "#e6eaf1",
    LOW_CELL: "#1d2430",
    HIGH_CELL: "#2b62bd",
    **dict(zip(SHADES, _between("#8fbcff", "#6b7688"), strict=True)),
}


def shade(share: float) -> str:
    """The colour of an objective, from 0 for the best to 1 for the worst."""
    return SHADES[round(min(max(share, 0.0), 1.0) * (NUM_SHADES - 1))]


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
        textposition="inside",
        insidetextanchor="middle",
        textfont=BLOCK_TEXT,
        hovertext=hover_texts,
        hoverinfo="text",
        marker={"color": colour, "line": OUTLINE},
    )
