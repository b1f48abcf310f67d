"""The report of a run: one HTML file that opens without a network. Owns the tables and the page, not the pictures.

Everything in it comes from the spool and the resolved recipe; it reads no logs and asks no server.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.reports import run_figures
from orchestrator.reports.html_page import figure_json, plotly_script, render, write_whole
from orchestrator.reports.run_history import RunHistory

NOTHING = "-"


def write_report(
    records: list[dict[str, Any]], recipe: dict[str, Any], *, run_id: str, command: str, out: Path
) -> None:
    """Write the report of a run, finished or not, to `out`: 5 MB, of which 4.8 are Plotly; written whole or not at all.

    `recipe` is the resolved one; `command` is what the user typed.
    """
    history = RunHistory(records, recipe)
    page = render(
        "report.html.j2",
        history=history,
        run_id=run_id,
        about=recipe.get("about", ""),
        when=_when(history),
        headline=_headline(history),
        phases=_phases(history),
        figures=_figures(history),
        recipe=json.dumps(recipe, indent=2, ensure_ascii=False),
        commands=_commands(history, command),
        plotly=plotly_script(),
    )
    write_whole(page, out)


def _when(history: RunHistory) -> str:
    if not history.records:
        return "nothing was recorded"
    first, last = (datetime.fromtimestamp(history.records[at]["t"] / 1000, UTC) for at in (0, -1))
    seconds = round((last - first).total_seconds())
    spent = f"{seconds // 3600} h {seconds % 3600 // 60} min" if seconds >= 3600 else f"{seconds // 60} min"
    return f"{first:%Y-%m-%d %H:%M} UTC, {spent if seconds >= 120 else f'{seconds} s'} to its last record"


def _headline(history: RunHistory) -> list[dict[str, str]]:
    """A row for each model. Without a result: what is known so far, the last validation instead of the final one."""
    rows = []
    for model in history.models:
        result = history.results.get(model, {})
        seen = history.curves.get(f"{model}/val/{history.score}", [])
        own = history.curves.get(f"{model}/own_step", [])
        rows.append(
            {
                "model": model,
                "family": history.recipe["models"][model]["arch"]["family"],
                "taught": _count(result.get("steps_taught")),
                "learned": _count(result.get("steps_learned", int(own[-1][1]) if own else None)),
                "val": _score(result["val"].get(history.score) if result else seen[-1][1] if seen else None),
                "test": _score(result["test"].get(history.score) if result else None),
                "others": ", ".join(
                    f"{name} {value:.4g}" for name, value in result.get("test", {}).items() if name != history.score
                ),
                "params": _count(result.get("params")),
                "checkpoint": result.get("checkpoint", NOTHING),
            }
        )
    return rows


def _phases(history: RunHistory) -> list[dict[str, str]]:
    return [
        {
            "number": str(phase.index + 1),
            "steps": f"{phase.start} to {phase.end}",
            "learns": ", ".join(phase.trains),
            "edges": "; ".join(_edge(edge) for edge in phase.edges) or "labels only",
        }
        for phase in history.phases
    ]


def _edge(edge: dict[str, Any]) -> str:
    extras = [edge[name] for name, usual in (("view", "same"), ("gate", "always")) if edge[name] != usual]
    said = [f"weight {edge['weight']:g}", f"temperature {edge['temperature']:g}", edge["source"], *extras]
    return f"{edge['teacher']} → {edge['student']} ({', '.join(said)})"


def _figures(history: RunHistory) -> dict[str, Any]:
    """The page's pictures as JSON; a picture without anything to show is absent."""
    curves = [model for model in history.models if any(key.startswith(f"{model}/") for key in history.curves)]
    edges = [edge for edge in history.edges if f"{edge}/kd_loss" in history.curves]
    matrices = {model: figure for model in history.models if (figure := run_figures.matrix(history, model)) is not None}
    return {
        "roles": figure_json(run_figures.roles(history)) if history.phases else None,
        "curves": {model: figure_json(run_figures.model_curves(history, model)) for model in curves},
        "edges": figure_json(run_figures.edge_curves(history)) if edges else None,
        "tags": figure_json(run_figures.tag_scores(history))
        if any(r["per_tag"] for r in history.results.values())
        else None,
        "matrices": {model: figure_json(figure) for model, figure in matrices.items()},
    }


def _commands(history: RunHistory, command: str) -> list[str]:
    commit = history.run.get("tags", {}).get("git_commit", "")
    return [f"git checkout {commit}", command] if commit else [command]


def _score(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def _count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"
