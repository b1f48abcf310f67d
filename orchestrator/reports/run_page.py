"""The report of a run: one HTML file that opens without a network. Owns the tables and the page, not the pictures.

Everything in it comes from the spool and the resolved recipe; it reads no logs and asks no server.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.reports import run_figures
from orchestrator.reports.html_page import figure_json, plotly_script, render, write_whole
from orchestrator.reports.run_history import Story

NOTHING = "-"


def write_report(
    spool_records: list[dict[str, Any]], recipe: dict[str, Any], *, run_id: str, command: str, out: Path
) -> None:
    """Write the report of a run, finished or not, to `out`: 5 MB, of which 4.8 are Plotly; written whole or not at all.

    `recipe` is the resolved one; `command` is what the user typed.
    """
    story = Story(spool_records, recipe)
    page = render(
        "report.html.j2",
        story=story,
        run_id=run_id,
        about=recipe.get("about", ""),
        when=_when(story),
        headline=_headline(story),
        phases=_phases(story),
        figures=_figures(story),
        recipe=json.dumps(recipe, indent=2, ensure_ascii=False),
        commands=_commands(story, command),
        plotly=plotly_script(),
    )
    write_whole(page, out)


def _when(story: Story) -> str:
    if not story.records:
        return "nothing was recorded"
    first, last = (datetime.fromtimestamp(story.records[at]["t"] / 1000, UTC) for at in (0, -1))
    seconds = round((last - first).total_seconds())
    spent = f"{seconds // 3600} h {seconds % 3600 // 60} min" if seconds >= 3600 else f"{seconds // 60} min"
    return f"{first:%Y-%m-%d %H:%M} UTC, {spent if seconds >= 120 else f'{seconds} s'} to its last record"


def _headline(story: Story) -> list[dict[str, str]]:
    """A row for each model. Without a result: what is known so far, the last validation instead of the final one."""
    rows = []
    for model in story.models:
        result = story.results.get(model, {})
        seen = story.curves.get(f"{model}/val/{story.score}", [])
        own = story.curves.get(f"{model}/own_step", [])
        rows.append(
            {
                "model": model,
                "family": story.recipe["models"][model]["arch"]["family"],
                "taught": _count(result.get("steps_taught")),
                "learned": _count(result.get("steps_learned", int(own[-1][1]) if own else None)),
                "val": _score(result["val"].get(story.score) if result else seen[-1][1] if seen else None),
                "test": _score(result["test"].get(story.score) if result else None),
                "others": ", ".join(
                    f"{name} {value:.4g}" for name, value in result.get("test", {}).items() if name != story.score
                ),
                "params": _count(result.get("params")),
                "checkpoint": result.get("checkpoint", NOTHING),
            }
        )
    return rows


def _phases(story: Story) -> list[dict[str, str]]:
    return [
        {
            "number": str(phase.index + 1),
            "steps": f"{phase.start} to {phase.end}",
            "learns": ", ".join(phase.trains),
            "edges": "; ".join(_edge(edge) for edge in phase.edges) or "labels only",
        }
        for phase in story.phases
    ]


def _edge(edge: dict[str, Any]) -> str:
    extras = [edge[name] for name, usual in (("view", "same"), ("gate", "always")) if edge[name] != usual]
    said = [f"weight {edge['weight']:g}", f"temperature {edge['temperature']:g}", edge["source"], *extras]
    return f"{edge['teacher']} → {edge['student']} ({', '.join(said)})"


def _figures(story: Story) -> dict[str, Any]:
    """The page's pictures as JSON; a picture without anything to show is absent."""
    curves = [model for model in story.models if any(key.startswith(f"{model}/") for key in story.curves)]
    edges = [edge for edge in story.edges if f"{edge}/kd_loss" in story.curves]
    matrices = {model: figure for model in story.models if (figure := run_figures.matrix(story, model)) is not None}
    return {
        "roles": figure_json(run_figures.roles(story)) if story.phases else None,
        "curves": {model: figure_json(run_figures.model_curves(story, model)) for model in curves},
        "edges": figure_json(run_figures.edge_curves(story)) if edges else None,
        "tags": figure_json(run_figures.tag_scores(story))
        if any(r["per_tag"] for r in story.results.values())
        else None,
        "matrices": {model: figure_json(figure) for model, figure in matrices.items()},
    }


def _commands(story: Story, command: str) -> list[str]:
    commit = story.run.get("tags", {}).get("git_commit", "")
    return [f"git checkout {commit}", command] if commit else [command]


def _score(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def _count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"
