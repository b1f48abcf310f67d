"""The figures of a run's report, one Plotly figure per function. Depends on the run's history, not on the page.

Numbers go in as plain lists, so that a figure's JSON can be read and compared.
"""

import math
from collections.abc import Iterable

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from orchestrator.reports.figure_style import (
    AMBER,
    BLUE,
    BROWN,
    CELL_TEXT,
    CELLS,
    GREEN,
    GREY,
    LEGEND_ABOVE,
    RED,
    VIOLET,
    add_blocks,
    apply_style,
    new_figure,
    palette,
)
from orchestrator.reports.formatting import escape_label
from orchestrator.reports.run_data import EVEN, PARTS, chance, chance_by_tag
from orchestrator.reports.run_history import BOTH, TEACHING, TRAINING, Phase, RunHistory
from workloads.config.edge import teacher_name

CHANCE_COLOUR = GREY
PART_COLOURS = {"training": BLUE, "validation": AMBER, "test": GREY}
UNTAUGHT_COLOUR = BROWN
VALIDATION_LOSS_COLOUR = RED
ROLE_COLOURS = {TRAINING: GREEN, TEACHING: AMBER, BOTH: VIOLET}
MAX_ROLE_LABELS = 12  # of a model's curves; with more spans only the schedule figure names the roles
MAX_SHADED_SPANS = 500  # of a model's curves; narrower ones could not be told apart, and each is a shape of its own
MIN_LABELLED_SHARE = 0.07  # of the steps: a shorter span has no room for its label
MAX_TAGS = 60
MAX_NUMBERED_TAGS = 15  # matrices up to this size print their numbers
TAG_AXIS = {"type": "category"}  # else Plotly takes tags that look like numbers for numbers
EDGE_PANELS = {
    "kd_loss": "distillation loss (nats)",
    "weight": "effective weight (share of the loss)",
    "teacher_entropy": "teacher entropy (nats)",
    "agreement": "agreement with the teacher (share)",
}


def schedule(history: RunHistory) -> go.Figure:
    """A row for each model, a block for each phase in which it is training or teaching."""
    figure = new_figure(height=90 + 44 * len(history.models))
    for role, colour in ROLE_COLOURS.items():
        blocks = [(model, phase) for model in history.models for phase in history.phases if phase.role(model) == role]
        if not blocks:
            continue
        add_blocks(
            figure,
            name=role,
            colour=colour,
            rows=[model for model, _ in blocks],
            starts=[phase.start for _, phase in blocks],
            lengths=[phase.end - phase.start for _, phase in blocks],
            labels=[role if _has_room(phase.end - phase.start, history) else "" for _, phase in blocks],
            hover_texts=[_phase_hover_text(model, phase) for model, phase in blocks],
        )
    fitting = {"mode": "hide", "minsize": 9}  # on a narrow page some blocks have no room for their role
    figure.update_layout(barmode="overlay", bargap=0.25, legend=LEGEND_ABOVE, uniformtext=fitting)
    figure.update_yaxes(categoryorder="array", categoryarray=history.models[::-1])
    figure.update_xaxes(title="step", range=_step_range(history))
    return figure


def _phase_hover_text(model: str, phase: Phase) -> str:
    taught_by = [edge for edge in phase.edges if edge["student"] == model]
    teachers = [f"{teacher_name(edge['teacher'])} (weight {edge['weight']:g})" for edge in taught_by]
    students = [edge["student"] for edge in phase.edges if edge["teacher"] == model]
    lines = [f"{model}, phase {phase.index + 1}, steps {phase.start} to {phase.end}"]
    if model in phase.trains:
        lines.append(f"teachers: {', '.join(teachers)}" if teachers else "trains on labels only")
    return "<br>".join([*lines, f"students: {', '.join(students)}"] if students else lines)


def learning_curves(history: RunHistory, model: str) -> go.Figure:
    """Losses above, validation scores, if there are any, below, over the steps of the run; the background shows the
    model's role."""
    rows = 2 if history.is_scored else 1
    figure = make_subplots(rows=rows, shared_xaxes=True, vertical_spacing=0.16)
    _add_losses(figure, history, model)
    if history.is_scored:
        _add_validation(figure, history, model)
    apply_style(figure, height=520 if history.is_scored else 300)
    _shade_roles(figure, history, model)
    _mark_chance(figure, history)
    figure.update_layout(legend=LEGEND_ABOVE | {"y": 1.05}, legend2=LEGEND_ABOVE | {"y": 0.43})
    figure.update_yaxes(title="loss (nats)", row=1, col=1)
    if history.is_scored:
        figure.update_yaxes(title="validation score (0 to 1)", row=2, col=1)
    figure.update_xaxes(range=_step_range(history))
    figure.update_xaxes(title="step", row=rows, col=1)
    return figure


def _add_losses(figure: go.Figure, history: RunHistory, model: str) -> None:
    losses = {f"{model}/loss": ("training loss", "solid"), f"{model}/label_loss": ("label loss", "dot")}
    teachers = history.teachers_of(model).items()
    losses |= {f"{edge}/kd_loss": (f"distillation loss, {teacher}", "dash") for edge, teacher in teachers}
    logged = [(key, *style) for key, style in losses.items() if key in history.curves]
    for colour, (key, name, dash) in zip(palette(), logged, strict=False):
        points = history.split_by_activity(key.split("/")[0], history.curves[key])
        figure.add_trace(_line(points, name, colour, dash=dash, legend="legend"), row=1, col=1)
    untaught = f"{history.controls.get(model)}/loss"
    if untaught in history.curves:
        points = history.split_by_activity(model, history.curves[untaught])
        figure.add_trace(_line(points, "training loss, untaught", UNTAUGHT_COLOUR, legend="legend"), row=1, col=1)


def _add_validation(figure: go.Figure, history: RunHistory, model: str) -> None:
    prefix = f"{model}/val/"
    scores = {key.removeprefix(prefix): curve for key, curve in history.curves.items() if key.startswith(prefix)}
    metrics = [history.primary_metric]
    metrics += [name for name in ("mAP", "accuracy", "auc") if name != history.primary_metric]
    for colour, name in zip(palette(), [name for name in metrics if name in scores], strict=False):
        figure.add_trace(_line(scores[name], name, colour, markers=True, legend="legend2"), row=2, col=1)
    if "log_loss" in scores:
        line = _line(scores["log_loss"], "validation log loss", VALIDATION_LOSS_COLOUR, markers=True, legend="legend")
        figure.add_trace(line, row=1, col=1)
    _add_untaught_validation(figure, history, history.controls.get(model, ""))


def _add_untaught_validation(figure: go.Figure, history: RunHistory, control: str) -> None:
    """The control's curves, dashed: of the log loss, and of the score by which models are compared."""
    curves = ((1, "log_loss", "validation log loss", "legend"), (2, history.primary_metric, None, "legend2"))
    for row, metric, name, legend in curves:
        points = history.curves.get(f"{control}/val/{metric}")
        if points:
            name = f"{name or metric}, untaught"
            line = _line(points, name, UNTAUGHT_COLOUR, dash="dash", markers=True, legend=legend)
            figure.add_trace(line, row=row, col=1)


def _mark_chance(figure: go.Figure, history: RunHistory) -> None:
    """A dotted line at the validation score that needs no model."""
    level = chance(history, "val").get(history.primary_metric)
    if level is None:
        return
    line = {"dash": "dot", "width": 1, "color": CHANCE_COLOUR}
    figure.add_shape(type="line", x0=0, x1=1, xref="x domain", y0=level, y1=level, yref="y2", line=line)
    text = f"{history.primary_metric} without a model: {level:.3f}"
    position = {"x": 1, "xref": "x domain", "xanchor": "right", "y": level, "yref": "y2", "yanchor": "bottom"}
    figure.add_annotation(text=text, showarrow=False, font={"size": 11}, **position)


def _shade_roles(figure: go.Figure, history: RunHistory, model: str) -> None:
    """Colour the background by role; label the spans that have room, if there are few."""
    spans = history.role_spans(model)
    if len(spans) > MAX_SHADED_SPANS:
        return
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
            fillcolor=ROLE_COLOURS[role],
            opacity=0.13,
            line={"width": 0},
        )
        if len(spans) <= MAX_ROLE_LABELS and _has_room(end - start, history):
            position = {"x": (start + end) / 2, "y": 1, "xref": "x", "yref": "paper", "yanchor": "bottom"}
            figure.add_annotation(name="role", text=role, showarrow=False, font={"size": 11}, **position)


def _has_room(steps: int, history: RunHistory) -> bool:
    return steps >= MIN_LABELLED_SHARE * history.last_step


def _step_range(history: RunHistory) -> list[float]:
    """The range of an axis of steps, with room for the last marker."""
    return [0, max(history.last_step, 1) * 1.01]


def edge_curves(history: RunHistory) -> go.Figure:
    """Panels over the steps, those of EDGE_PANELS for which some edge has values: edges that carry profiles have no
    teacher entropy and no agreement. In each a line for every edge, with gaps where the edge is closed."""
    panels = {metric: title for metric, title in EDGE_PANELS.items() if history.edges_with(metric)}
    rows, cols = math.ceil(len(panels) / 2), min(2, len(panels))
    figure = make_subplots(
        rows=rows, cols=cols, shared_xaxes=True, subplot_titles=list(panels.values()), vertical_spacing=0.15
    )
    for colour, edge in zip(palette(), history.edges, strict=False):
        for panel, metric in enumerate(panels):
            points = history.split_by_activity(edge, history.curves.get(f"{edge}/{metric}", []))
            line = _line(points, edge.replace("-to-", " → "), colour)
            line.update(legendgroup=edge, showlegend=panel == 0)
            figure.add_trace(line, row=panel // 2 + 1, col=panel % 2 + 1)
    apply_style(figure, height=80 + 220 * rows)
    figure.update_layout(legend=LEGEND_ABOVE | {"y": 1.08 if rows > 1 else 1.2}, margin={"t": 80})
    for panel, metric in enumerate(panels):
        values = [value for edge in history.edges for _, value in history.curves.get(f"{edge}/{metric}", [])]
        top = max(filter(math.isfinite, values), default=1.0)
        top = max(top, 1.0) if metric in ("weight", "agreement") else top  # embeddings and profiles may weigh more
        figure.update_yaxes(range=[0, 1.06 * top], row=panel // 2 + 1, col=panel % 2 + 1)
    figure.update_xaxes(range=_step_range(history))
    figure.update_xaxes(title="step", row=rows)
    return figure


def flatness_curves(history: RunHistory) -> go.Figure:
    """A line for every edge that carries profiles: how even they are, and a mark from which on they say little."""
    figure = new_figure(height=300)
    for colour, edge in zip(palette(), history.edges_with("flatness"), strict=False):
        points = history.split_by_activity(edge, history.curves[f"{edge}/flatness"])
        figure.add_trace(_line(points, edge.replace("-to-", " → "), colour))
    line = {"dash": "dot", "width": 1, "color": CHANCE_COLOUR}
    figure.add_shape(type="line", x0=0, x1=1, xref="x domain", y0=EVEN, y1=EVEN, line=line)
    figure.update_layout(legend=LEGEND_ABOVE, showlegend=True)
    figure.update_yaxes(title="flatness (0 to 1)", range=[0, 1.03])
    figure.update_xaxes(title="step", range=_step_range(history))
    return figure


def tag_scores(history: RunHistory) -> go.Figure:
    """Bars of every tag's test score, models side by side, the lowest mean score on top; a mark at a random order's."""
    scores = {model: history.results[model]["per_tag"] for model in history.models if model in history.results}
    tags = _tags_by_mean_score(scores)
    if len(tags) > MAX_TAGS:
        tags = tags[: MAX_TAGS // 2] + tags[-MAX_TAGS // 2 :]
    labels = _labels(tags)
    figure = new_figure(height=100 + len(tags) * (10 + 12 * len(scores)))
    # Plotly stacks the bars of a group upwards: reversed, the first model is on top
    for colour, (model, by_tag) in reversed(list(zip(palette(), scores.items(), strict=False))):
        values = [by_tag.get(tag) for tag in tags]
        figure.add_bar(orientation="h", name=model, y=labels, x=values, marker={"color": colour})
    if by_chance := chance_by_tag(history, history.scored_part):
        marks = {"symbol": "line-ns-open", "size": 12, "color": CHANCE_COLOUR, "line": {"width": 2}}
        levels = [by_chance.get(tag) for tag in tags]
        figure.add_scatter(name="without a model", mode="markers", y=labels, x=levels, marker=marks)
    figure.update_layout(barmode="group", bargap=0.3)
    figure.update_layout(legend=LEGEND_ABOVE | {"y": 1.0, "traceorder": "reversed"})
    figure.update_yaxes(TAG_AXIS, categoryorder="array", categoryarray=labels[::-1], automargin=True, dtick=1)
    score = "recall" if history.primary_metric == "accuracy" else "average precision"
    figure.update_xaxes(range=[0, 1], title=f"{score} (0 to 1)")
    return figure


def clips_per_tag(history: RunHistory) -> go.Figure:
    """Bars of the number of clips that have each tag, by part, the commonest on top; of many tags those at the ends."""
    data = history.data
    counts = {part: dict(zip(data["tags"], data["clips_per_tag"][part], strict=True)) for part in PARTS}
    tags = sorted(data["tags"], key=lambda tag: -sum(of_part[tag] for of_part in counts.values()))
    if len(tags) > MAX_TAGS:
        tags = tags[: MAX_TAGS // 2] + tags[-MAX_TAGS // 2 :]
    labels = _labels(tags)
    figure = new_figure(height=110 + 20 * len(tags))
    for part, name in PARTS.items():
        values = [counts[part][tag] for tag in tags]
        figure.add_bar(orientation="h", name=name, y=labels, x=values, marker={"color": PART_COLOURS[name]})
    figure.update_layout(barmode="stack", bargap=0.3, legend=LEGEND_ABOVE | {"traceorder": "normal"})
    figure.update_yaxes(TAG_AXIS, categoryorder="array", categoryarray=labels[::-1], automargin=True, dtick=1)
    figure.update_xaxes(title="clips", rangemode="tozero")
    return figure


def _tags_by_mean_score(scores: dict[str, dict[str, float]]) -> list[str]:
    """All tags, the lowest mean over models first."""
    by_tag: dict[str, list[float]] = {}
    for of_model in scores.values():
        for tag, score in of_model.items():
            by_tag.setdefault(tag, []).append(score)
    return sorted(by_tag, key=lambda tag: (sum(by_tag[tag]) / len(by_tag[tag]), tag))


def tag_matrix(history: RunHistory, model: str) -> go.Figure | None:
    """A model's confusion matrix (single labels) or co-occurrence matrix (multi) on the test clips; None without."""
    row, tags = history.results.get(model, {}), history.data.get("tags", [])
    is_confusion = "confusion" in row
    values = row.get("confusion") or row.get("cooccurrence")
    if not values:
        return None
    numbers = [
        ["" if value is None else f"{value:d}" if is_confusion else f"{value:.2f}" for value in line] for line in values
    ]
    labels, is_numbered = _labels(tags), len(tags) <= MAX_NUMBERED_TAGS
    tick_step = 1 if len(tags) <= MAX_TAGS else None
    colour_title = "share of row" if is_confusion else "mean probability"
    figure = new_figure(height=min(190 + 34 * len(tags), 900))
    figure.add_heatmap(
        z=[_shares(line) for line in values] if is_confusion else values,
        x=labels,
        y=labels,
        zmin=0,
        zmax=1,
        colorscale=CELLS,
        text=numbers if is_numbered else None,
        texttemplate="%{text}" if is_numbered else None,
        textfont={"size": 10, "color": CELL_TEXT},
        hovertemplate=f"true tag: %{{y}}<br>predicted tag: %{{x}}<br>{colour_title}: %{{z:.2f}}<extra></extra>",
        colorbar={"title": {"text": colour_title, "side": "right"}, "thickness": 12},
        xgap=1,
        ygap=1,
    )
    figure.update_yaxes(TAG_AXIS, autorange="reversed", title="true tag", automargin=True, dtick=tick_step)
    figure.update_xaxes(TAG_AXIS, title="predicted tag", automargin=True, tickangle=-45, dtick=tick_step)
    return figure


def _labels(tags: list[str]) -> list[str]:
    return [escape_label(tag) for tag in tags]


def _shares(line: list[float]) -> list[float]:
    total = sum(line)
    return [value / total if total else 0.0 for value in line]


def _line(
    points: Iterable[tuple[int, float | None]],
    name: str,
    colour: str,
    *,
    dash: str = "solid",
    markers: bool = False,
    legend: str = "legend",
) -> go.Scatter:
    """A line over steps; with markers where asked for, or where it has fewer than three points."""
    points = list(points)
    return go.Scatter(
        x=[step for step, _ in points],
        y=[value for _, value in points],
        name=name,
        mode="lines+markers" if markers or len(points) < 3 else "lines",
        line={"color": colour, "dash": dash, "width": 2},
        marker={"size": 5},
        legend=legend,
    )
