"""The report of a run: one HTML file that needs no network. Owns the page and its tables, not the figures.

Everything in it comes from the event log and the resolved recipe; it contacts no server.
"""

import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from orchestrator.reports import run_figures
from orchestrator.reports.formatting import (
    NOT_AVAILABLE,
    format_count,
    format_duration,
    format_score,
    format_time,
)
from orchestrator.reports.html_page import figure_json, plotly_script, render, write_page
from orchestrator.reports.run_history import RunHistory


def write_report(
    records: list[dict[str, Any]], recipe: dict[str, Any], *, run_id: str, command: str, out: Path
) -> None:
    """Write the report of a run, finished or not, to `out`, atomically; 5 MB, of which 4.8 are Plotly.

    `recipe` is the resolved one; `command` is what the user typed.
    """
    history = RunHistory(records, recipe)
    page = render(
        "run.html.j2",
        history=history,
        run_id=run_id,
        about=recipe.get("about", ""),
        recorded=_recorded(history),
        models=_model_rows(history),
        phases=_phase_rows(history),
        figures=_figures(history),
        recipe=json.dumps(recipe, indent=2, ensure_ascii=False),
        commands=_commands(history, command),
        plotly=plotly_script(),
    )
    write_page(page, out)


def _recorded(history: RunHistory) -> str:
    """When the run started, and how much later its last record was written."""
    if not history.records:
        return "no records"
    first, last = (history.records[at]["t"] / 1000 for at in (0, -1))
    return f"Started {format_time(first)}, last record {format_duration(last - first)} later"


def _model_rows(history: RunHistory) -> list[dict[str, str]]:
    """A row for each model. Without a result: the last validation score instead of the final one."""
    metric, rows = history.primary_metric, []
    for model in history.models:
        result = history.results.get(model, {})
        validations = history.curves.get(f"{model}/val/{metric}", [])
        own_steps = history.curves.get(f"{model}/own_step", [])
        last_score = validations[-1][1] if validations else None
        test = result.get("test", {})
        rows.append(
            {
                "model": model,
                "family": history.recipe["models"][model]["arch"]["family"],
                "steps_trained": format_count(
                    result.get("steps_learned", int(own_steps[-1][1]) if own_steps else None)
                ),
                "steps_as_teacher": format_count(result.get("steps_taught")),
                "val": format_score(result["val"].get(metric) if result else last_score),
                "test": format_score(test.get(metric)),
                "other_test": ", ".join(f"{name} {value:.4g}" for name, value in test.items() if name != metric),
                "params": format_count(result.get("params")),
                "checkpoint": result.get("checkpoint", NOT_AVAILABLE),
            }
        )
    return rows


def _phase_rows(history: RunHistory) -> list[dict[str, str]]:
    return [
        {
            "number": str(phase.index + 1),
            "steps": f"{phase.start} to {phase.end}",
            "trains": ", ".join(phase.trains),
            "edges": "; ".join(_describe_edge(edge) for edge in phase.edges) or "labels only",
        }
        for phase in history.phases
    ]


def _describe_edge(edge: dict[str, Any]) -> str:
    extras = [edge[name] for name, default in (("view", "same"), ("gate", "always")) if edge[name] != default]
    options = [f"weight {edge['weight']:g}", f"temperature {edge['temperature']:g}", edge["source"], *extras]
    return f"{edge['teacher']} → {edge['student']} ({', '.join(options)})"


def _figures(history: RunHistory) -> dict[str, Any]:
    """The page's figures as JSON; None, or no entry, for a figure without data."""
    with_curves = [model for model in history.models if any(key.startswith(f"{model}/") for key in history.curves)]
    has_edges = any(f"{edge}/kd_loss" in history.curves for edge in history.edges)
    has_tags = any(row["per_tag"] for row in history.results.values())
    matrices = {model: run_figures.tag_matrix(history, model) for model in history.models}
    return {
        "schedule": _json_or_none(run_figures.schedule(history) if history.phases else None),
        "curves": {model: figure_json(run_figures.learning_curves(history, model)) for model in with_curves},
        "edges": _json_or_none(run_figures.edge_curves(history) if has_edges else None),
        "tags": _json_or_none(run_figures.tag_scores(history) if has_tags else None),
        "matrices": {model: figure_json(figure) for model, figure in matrices.items() if figure is not None},
    }


def _json_or_none(figure: go.Figure | None) -> Markup | None:
    return None if figure is None else figure_json(figure)


def _commands(history: RunHistory, command: str) -> list[str]:
    commit = history.run.get("tags", {}).get("git_commit", "")
    return [f"git checkout {commit}", command] if commit else [command]
