"""One sentence of what a figure shows, from its own numbers: for readers who hear the page."""

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from orchestrator.reports.formatting import plural

MAX_PARTS = 8  # traces that are told; of more, how many


def summary_of(figure: go.Figure) -> str:
    """What is drawn over what, and of each trace its ends, its range or its size."""
    parts = [part for trace in figure.data if (part := _part(trace, figure))]
    told = parts[:MAX_PARTS] + ([f"and {len(parts) - MAX_PARTS} more"] if len(parts) > MAX_PARTS else [])
    over = next((axis.title.text for axis in figure.select_xaxes() if axis.title.text), "")
    kind = "Figure over" if over else "Figure"
    return html.unescape(f"{kind} {over}: {'; '.join(told) or 'nothing is drawn'}.".replace(" :", ":"))


def _part(trace: Any, figure: go.Figure) -> str:
    name = trace.name or ""
    if trace.type == "heatmap":
        return _matrix(trace)
    if trace.type == "bar":
        return _bars(trace, name)
    points = [(x, y) for x, y in zip(_values(trace.x), _values(trace.y), strict=False) if y is not None]
    if not points:
        return ""
    axis = figure.layout["yaxis" + (trace.yaxis or "y")[1:]].title.text or ""
    label = ", ".join(filter(None, (name, axis if axis != name else "")))
    if "lines" in (trace.mode or "lines"):
        return f"{label} from {_text(points[0][1])} to {_text(points[-1][1])}".strip()
    return f"{label}: {plural(len(points), 'point')}{_range([y for _, y in points])}".removeprefix(": ")


def _matrix(trace: Any) -> str:
    rows = _values(trace.z)
    size = f"{len(rows)} rows by {len(rows[0]) if rows else 0} columns"
    diagonal = [row[at] for at, row in enumerate(rows) if at < len(row) and row[at] is not None]
    if trace.x is None or list(_values(trace.x)) != list(_values(trace.y)) or not diagonal:
        return f"a spectrogram of {len(rows)} bands" if trace.x is None or trace.y is None else f"a matrix of {size}"
    return f"a matrix of {size}, {sum(diagonal) / len(diagonal):.2f} on its diagonal in the mean"


def _bars(trace: Any, name: str) -> str:
    values = [value for value in _values(trace.x) if value is not None]
    if trace.base is not None:
        return f"{name}: {plural(len(values), 'block')}"
    if not values:
        return ""
    by_label = {
        label: value for label, value in zip(_values(trace.y), _values(trace.x), strict=False) if value is not None
    }
    low, high = min(by_label, key=by_label.__getitem__), max(by_label, key=by_label.__getitem__)
    ends = f"{_text(by_label[low])} ({low}) to {_text(by_label[high])} ({high})"
    return f"{name}: {plural(len(values), 'bar')}, {ends}".removeprefix(": ")


def _values(values: Any) -> Sequence[Any]:
    return () if values is None else values


def _range(values: Sequence[Any]) -> str:
    numbers = [value for value in values if isinstance(value, int | float)]
    return f", {_text(min(numbers))} to {_text(max(numbers))}" if numbers else ""


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
