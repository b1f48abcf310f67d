"""The report's pictures: one Plotly figure a function. Knows the story, not the page; the page sets the colours of ink.

Numbers go in as plain lists, so that a figure's JSON can be read, and compared, by anybody.
"""

import html
import math
from collections.abc import Iterable

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from orchestrator.reports.run_history import Phase, RunHistory

COLOURS = ("#3b82f6", "#ec4899", "#14b8a6", "#f97316", "#8b5cf6", "#84cc16", "#06b6d4", "#a3a3a3")
VALIDATION = "#ef4444"
ROLES = {"learns": "#22c55e", "teaches": "#fbbf24", "learns and teaches": "#a78bfa"}
MOST_LABELS = 12  # spans that are named in a picture; of more, the strip of roles tells
LEAST_SHARE = 0.07  # of the steps, of a span that has room for its name
MOST_TAGS = 60
NUMBERED_TAGS = 15  # heat maps up to this size show their numbers
EDGE_PANELS = {
    "kd_loss": "distillation loss",
    "weight": "effective weight",
    "teacher_entropy": "teacher's entropy (nats)",
    "agreement": "agreement with the teacher",
}


def roles(history: RunHistory) -> go.Figure:
    """A row for each model, a block for each phase in which it learns or teaches."""
    figure = _figure(height=90 + 44 * len(history.models))
    for role, colour in ROLES.items():
        blocks = [(model, phase) for model in history.models for phase in history.phases if phase.role(model) == role]
        if not blocks:
            continue
        figure.add_bar(
            orientation="h",
            name=role,
            y=[model for model, _ in blocks],
            base=[phase.start for _, phase in blocks],
            x=[phase.end - phase.start for _, phase in blocks],
            text=[role if _has_room(phase.end - phase.start, history) else "" for _, phase in blocks],
            hovertext=[_heard(model, phase) for model, phase in blocks],
            hoverinfo="text",
            insidetextanchor="middle",
            textfont={"color": "#0b1220"},
            marker={"color": colour, "line": {"width": 1, "color": "rgba(128,128,128,.6)"}},
        )
    figure.update_layout(barmode="overlay", bargap=0.25)
    figure.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"})
    figure.update_yaxes(categoryorder="array", categoryarray=history.models[::-1])
    figure.update_xaxes(title="step", range=_steps(history))
    return figure


def _heard(model: str, phase: Phase) -> str:
    taught = [f"from {e['teacher']} (weight {e['weight']:g})" for e in phase.edges if e["student"] == model]
    teaches = [f"teaches {edge['student']}" for edge in phase.edges if edge["teacher"] == model]
    learns = ["learns " + (", ".join(taught) or "from labels only")] if model in phase.trains else []
    return f"{model}, phase {phase.index + 1}, steps {phase.start} to {phase.end}<br>" + "<br>".join(learns + teaches)


def model_curves(history: RunHistory, model: str) -> go.Figure:
    """Losses above, validation scores below, over the steps of the run; the background says what the model did."""
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.09)
    edges = [edge for edge in history.edges if edge.endswith(f"-to-{model}")]
    losses = {f"{model}/loss": ("loss", "solid"), f"{model}/label_loss": ("label loss", "dot")}
    losses |= {f"{edge}/kd_loss": (f"kd loss from {edge.removesuffix(f'-to-{model}')}", "dash") for edge in edges}
    drawn = [(key, *style) for key, style in losses.items() if key in history.curves]
    for colour, (key, name, dash) in zip(_cycle(), drawn, strict=False):
        points = history.while_open(key.split("/")[0], history.curves[key])
        figure.add_trace(_line(points, name, colour, dash=dash, legend="legend"), row=1, col=1)
    prefix = f"{model}/val/"
    scores = {key.removeprefix(prefix): curve for key, curve in history.curves.items() if key.startswith(prefix)}
    shown = [history.score] + [name for name in ("mAP", "accuracy", "auc") if name != history.score]
    for colour, name in zip(_cycle(), [name for name in shown if name in scores], strict=False):
        figure.add_trace(_line(scores[name], name, colour, marks=True, legend="legend2"), row=2, col=1)
    if "log_loss" in scores:
        line = _line(scores["log_loss"], "validation log loss", VALIDATION, marks=True, legend="legend")
        figure.add_trace(line, row=1, col=1)
    plain(figure, height=470)
    _shade(figure, history, model)
    figure.update_layout(legend={"x": 1.01, "y": 1}, legend2={"x": 1.01, "y": 0.44})
    figure.update_yaxes(title="loss (nats)", row=1, col=1)
    figure.update_yaxes(title="validation score", row=2, col=1)
    figure.update_xaxes(range=_steps(history))
    figure.update_xaxes(title="step", row=2, col=1)
    return figure


def _shade(figure: go.Figure, history: RunHistory, model: str) -> None:
    """Colour the background by role; name the spans that have room, if they are few."""
    spans = history.spans(model)
    for start, end, role in spans:
        figure.add_shape(
            type="rect",
            x0=start,
            x1=end,
            y0=0,
            y1=1,
            xref="x",
            yref="paper",
            layer="below",
            fillcolor=ROLES[role],
            opacity=0.13,
            line={"width": 0},
        )
        if len(spans) <= MOST_LABELS and _has_room(end - start, history):
            where = {"x": (start + end) / 2, "y": 1, "xref": "x", "yref": "paper", "yanchor": "bottom"}
            figure.add_annotation(text=role, showarrow=False, font={"size": 11}, **where)


def _has_room(steps: int, history: RunHistory) -> bool:
    return steps >= LEAST_SHARE * history.last_step


def _steps(history: RunHistory) -> list[float]:
    """The range of an axis of steps, with room for the last mark."""
    return [0, max(history.last_step, 1) * 1.01]


def edge_curves(history: RunHistory) -> go.Figure:
    """Four panels over the steps; in each a line for every edge, broken where the edge is closed."""
    figure = make_subplots(
        rows=2, cols=2, shared_xaxes=True, subplot_titles=list(EDGE_PANELS.values()), vertical_spacing=0.15
    )
    for colour, edge in zip(_cycle(), history.edges, strict=False):
        for panel, metric in enumerate(EDGE_PANELS):
            points = history.while_open(edge, history.curves.get(f"{edge}/{metric}", []))
            line = _line(points, edge.replace("-to-", " → "), colour)
            line.update(legendgroup=edge, showlegend=panel == 0)
            figure.add_trace(line, row=panel // 2 + 1, col=panel % 2 + 1)
    plain(figure, height=520)
    figure.update_layout(legend={"orientation": "h", "y": 1.08, "yanchor": "bottom"}, margin={"t": 80})
    for panel, metric in enumerate(EDGE_PANELS):
        values = [value for edge in history.edges for _, value in history.curves.get(f"{edge}/{metric}", [])]
        top = 1.0 if metric in ("weight", "agreement") else max(filter(math.isfinite, values), default=1.0)
        figure.update_yaxes(range=[0, 1.06 * top], row=panel // 2 + 1, col=panel % 2 + 1)
    figure.update_xaxes(range=_steps(history))
    figure.update_xaxes(title="step", row=2)
    return figure


def tag_scores(history: RunHistory) -> go.Figure:
    """Bars of every tag's test score, models side by side, the hardest tag on top."""
    scores = {model: row["per_tag"] for model, row in history.results.items()}
    mean = {tag: _mean(own[tag] for own in scores.values() if tag in own) for own in scores.values() for tag in own}
    tags = sorted(mean, key=lambda tag: (mean[tag], tag))
    if len(tags) > MOST_TAGS:
        tags = tags[: MOST_TAGS // 2] + tags[-MOST_TAGS // 2 :]
    figure = _figure(height=100 + len(tags) * (10 + 12 * len(scores)))
    # Plotly stacks the bars of a group upwards: reversed, the first model is on top
    for colour, (model, own) in reversed(list(zip(_cycle(), scores.items(), strict=False))):
        figure.add_bar(
            orientation="h", name=model, y=_labels(tags), x=[own.get(tag) for tag in tags], marker={"color": colour}
        )
    figure.update_layout(barmode="group", bargap=0.3)
    figure.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "traceorder": "reversed"})
    figure.update_yaxes(categoryorder="array", categoryarray=_labels(tags)[::-1], automargin=True, dtick=1)
    figure.update_xaxes(range=[0, 1])
    return figure


def matrix(history: RunHistory, model: str) -> go.Figure | None:
    """A model's confusion (single labels) or co-occurrence (several) on the test clips; None if there is none."""
    row, tags = history.results.get(model, {}), history.data.get("tags", [])
    confusion = "confusion" in row
    values = row.get("confusion") or row.get("cooccurrence")
    if not values:
        return None
    figure = _figure(height=min(190 + 34 * len(tags), 900))
    numbered = len(tags) <= NUMBERED_TAGS
    figure.add_heatmap(
        z=[_shares(line) for line in values] if confusion else values,
        x=_labels(tags),
        y=_labels(tags),
        zmin=0,
        zmax=1,
        colorscale="Blues",
        text=[[str(value) if confusion else f"{value:.2f}" for value in line] for line in values] if numbered else None,
        texttemplate="%{text}" if numbered else None,
        textfont={"size": 10},
        hovertemplate="true: %{y}<br>heard: %{x}<br>%{z:.2f}<extra></extra>",
        colorbar={
            "title": {"text": "share of row" if confusion else "mean probability", "side": "right"},
            "thickness": 12,
        },
        xgap=1,
        ygap=1,
    )
    figure.update_yaxes(autorange="reversed", title="true tag", automargin=True, dtick=1 if len(tags) <= 60 else None)
    figure.update_xaxes(title="heard tag", automargin=True, tickangle=-45, dtick=1 if len(tags) <= 60 else None)
    return figure


def _labels(tags: list[str]) -> list[str]:
    """Tags as Plotly wants them: it reads some HTML in labels, and a tag's name may look like it."""
    return [html.escape(tag, quote=False) for tag in tags]


def _shares(line: list[float]) -> list[float]:
    total = sum(line)
    return [value / total if total else 0.0 for value in line]


def _line(
    points: Iterable[tuple[int, float | None]],
    name: str,
    colour: str,
    *,
    dash: str = "solid",
    marks: bool = False,
    legend: str = "legend",
) -> go.Scatter:
    points = list(points)
    return go.Scatter(
        x=[step for step, _ in points],
        y=[value for _, value in points],
        name=name,
        mode="lines+markers" if marks or len(points) < 3 else "lines",
        line={"color": colour, "dash": dash, "width": 2},
        marker={"size": 5},
        legend=legend,
    )


def _figure(*, height: int) -> go.Figure:
    return plain(go.Figure(), height=height)


def plain(figure: go.Figure, *, height: int) -> go.Figure:
    """Transparent, without Plotly's own theme: paper, ink and grid are the page's, light or dark."""
    clear = "rgba(0,0,0,0)"
    figure.update_layout(template="none", height=height, paper_bgcolor=clear, plot_bgcolor=clear)
    return figure.update_layout(margin={"l": 70, "r": 20, "t": 40, "b": 50}, hovermode="closest")


def _cycle() -> Iterable[str]:
    while True:
        yield from COLOURS


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
