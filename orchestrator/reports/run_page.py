"""The report of a run: one HTML file that needs no network. Owns the page and its tables, not the figures.

Everything in it comes from the event log and the resolved recipe; it contacts no server.
"""

import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from orchestrator.reports import listening, profile_figures, run_comparison, run_data, run_figures
from orchestrator.reports.formatting import (
    NOT_AVAILABLE,
    format_count,
    format_duration,
    format_score,
    format_time,
)
from orchestrator.reports.html_page import DrawnFigure, drawn, plotly_script, render, write_page
from orchestrator.reports.reproduce import repeat_run, what_to_set
from orchestrator.reports.run_history import RunHistory
from workloads.config.edge import teacher_name


def write_report(records: list[dict[str, Any]], recipe: dict[str, Any], *, run_id: str, uri: str, out: Path) -> None:
    """Write the report of a run, finished or not, to `out`, atomically; below 1.5 MB, of which 0.66 are Plotly.

    `recipe` is the resolved one; `uri` is where the run is stored.
    """
    history = RunHistory(records, recipe)
    page = render(
        "run.html.j2",
        history=history,
        run_id=run_id,
        about=recipe.get("about", ""),
        recorded=_recorded(history),
        models=[*_model_rows(history), *_chance_rows(history)],
        verdict=run_comparison.verdict(history),
        comparison=run_comparison.rows(history),
        compared_on=run_comparison.sample(history),
        not_compared=run_comparison.not_compared(history),
        phases=_phase_rows(history),
        figures=_figures(history),
        recipe=json.dumps(recipe, indent=2, ensure_ascii=False),
        run_tags=history.run.get("tags", {}),
        what_to_set=what_to_set(history.run.get("tags", {}).get("tracking", "")),
        commands=repeat_run(uri, run_id, recipe, history.run.get("tags", {})),
        data_facts=run_data.clip_counts(history) + run_data.facts(history) + run_data.stores(history)
        if history.data
        else [],
        folds=run_data.fold_rows(history),
        balance=run_data.balance(history),
        meanings=run_data.described_metrics(history),
        unscored=run_data.unscored(history),
        even_profiles=run_data.even_profiles(history),
        even=run_data.EVEN,
        listen=listening.clips(history),
        batch=_batch(recipe),
        max_tags=run_figures.MAX_TAGS,
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
    for model in [*history.models, *history.controls.values()]:
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
                "other_test": _other_scores(test, metric),
                "params": format_count(result.get("params")),
                "checkpoint": result.get("checkpoint", NOT_AVAILABLE),
            }
        )
    return rows


def _chance_rows(history: RunHistory) -> list[dict[str, str]]:
    """The row below the models: the same scores without a model; none where the record has no counts."""
    metric, (val, test) = history.primary_metric, [run_data.chance(history, part) for part in ("val", "test")]
    if not val and not test:
        return []
    numbers = {"val": format_score(val.get(metric)), "test": format_score(test.get(metric))}
    blank = dict.fromkeys(("family", "steps_trained", "steps_as_teacher", "params", "checkpoint"), "")
    return [{"model": "without a model", **blank, **numbers, "other_test": _other_scores(test, metric)}]


def _other_scores(scores: dict[str, float], metric: str) -> str:
    """The scores beside the one by which models are compared; how many tags they leave out is said elsewhere."""
    others = {name: value for name, value in scores.items() if name not in (metric, "tags_skipped")}
    return ", ".join(f"{name} {value:.4g}" for name, value in others.items())


def _batch(recipe: dict[str, Any]) -> int | None:
    """The number of clips of a step."""
    train = recipe.get("train", {})
    return train["shard_size"] * train["shards"] if "shard_size" in train and "shards" in train else None


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
    teacher, carries = teacher_name(edge["teacher"]), edge.get("carries", "logits")
    options = [edge["name"]] if edge.get("name") else []
    options += [
        f"weight {edge['weight']:g}",
        f"temperature {edge['temperature']:g}" if carries == "logits" else carries,
    ]
    options += [edge["source"]] if teacher == edge["teacher"] else []  # a store has no other weights
    defaults = {"view": "same", "gate": "always", "align": "area"}
    options += [edge[name] for name, default in defaults.items() if edge.get(name, default) != default]
    return f"{teacher} → {edge['student']} ({', '.join(options)})"


def _figures(history: RunHistory) -> dict[str, Any]:
    """The page's figures; None, or no entry, for a figure without data."""
    with_curves = [model for model in history.models if any(key.startswith(f"{model}/") for key in history.curves)]
    has_edges = any(f"{edge}/kd_loss" in history.curves for edge in history.edges)
    has_tags = any(row["per_tag"] for row in history.results.values())
    matrices = {model: run_figures.tag_matrix(history, model) for model in history.models}
    return {
        "schedule": _drawn_or_none(run_figures.schedule(history) if history.phases else None),
        "curves": {model: drawn(run_figures.learning_curves(history, model)) for model in with_curves},
        "edges": _drawn_or_none(run_figures.edge_curves(history) if has_edges else None),
        "flatness": _drawn_or_none(run_figures.flatness_curves(history) if history.edges_with("flatness") else None),
        "profiles": _drawn_or_none(profile_figures.profiles(history)),
        "tags": _drawn_or_none(run_figures.tag_scores(history) if has_tags else None),
        "balance": _drawn_or_none(run_figures.clips_per_tag(history) if run_data.has_tags(history) else None),
        "matrices": {model: drawn(figure) for model, figure in matrices.items() if figure is not None},
    }


def _drawn_or_none(figure: go.Figure | None) -> DrawnFigure | None:
    return None if figure is None else drawn(figure)
