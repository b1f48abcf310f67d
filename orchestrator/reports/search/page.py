"""The page of a search, live or as one file that needs no network. Owns the page and its tables, not the figures.

Everything in it comes from `snapshot.Search`; it contacts no server. Text from files is escaped, never markup.
"""

import json
import re
import statistics
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from markupsafe import Markup

from orchestrator.reports.formatting import (
    NOT_AVAILABLE,
    format_duration,
    format_quantity,
    format_score,
    format_time,
    plural,
)
from orchestrator.reports.html_page import plotly_script, render, write_page
from orchestrator.reports.reproduce import repeat_search, what_to_set
from orchestrator.reports.search import figures, timeline
from orchestrator.reports.search.formatting import STATUS_LABELS, format_setting
from orchestrator.reports.search.sections import sections
from orchestrator.reports.search.snapshot import DONE, FAILED, STOPPED, SearchSnapshot, Trial
from orchestrator.reports.search.verdict import search_status, verdict
from orchestrator.tracking.uri import run_page, split_credentials, ui_command
from workloads.config.edge import teacher_name

LEADERBOARD_ROWS = 15  # the rest is folded
FINAL_KINDS = ("winner", "control", "finalist")
STATUS_ORDER = tuple(STATUS_LABELS)


def write_search_report(search: SearchSnapshot, out: Path) -> None:
    """Write a search's page, finished or not, to `out`, atomically; below 1 MB, of which 0.66 are Plotly."""
    write_page(render_page(search, body=render_body(search)), out)


def render_page(search: SearchSnapshot, *, body: str, poll_s: float | None = None, stamp: str = "") -> str:
    """The whole page around a `body`.

    With `poll_s` its script requests `fragment?seen=STAMP` every `poll_s` seconds, and replaces the body by a newer
    one.
    """
    return render(
        "search.html.j2",
        body=Markup(body),
        search_id=search.search_id,
        status=search_status(search),
        status_colours=figures.STATUS_COLOURS,
        plotly=plotly_script(),
        poll_s=poll_s,
        stamp=stamp,
    )


def render_body(search: SearchSnapshot) -> str:
    """What changes while a search runs: everything but scripts and styles."""
    now = time.time()
    until = search.active_until(now)
    rows = [_leaderboard_row(search, trial) for trial in _leaderboard_order(search)]
    return render(
        "search_body.html.j2",
        search=search,
        about=search.recipe.get("about", ""),
        updated=f"Started {format_time(search.created)}, last update {format_time(search.last_news)}",
        verdict=verdict(search, now),
        facts=_facts(search, until),
        links=_links(search),
        rows=rows[:LEADERBOARD_ROWS],
        more=rows[LEADERBOARD_ROWS:],
        names=list(search.space),
        edges=_edges(search),
        second=figures.SECOND_OBJECTIVES.get(search.settings.get("second", ""), ""),
        finals=_final_rows(search),
        tests=_test_rows(search),
        failures=[trial for trial in (*search.trials, *search.finals) if trial.status == FAILED],
        sections=sections(search, until),
        recipe=json.dumps(search.recipe, indent=2, ensure_ascii=False),
        what_to_set=what_to_set(search.tracking),
        commands=repeat_search(search.search_id, search.recipe, {"command": search.command, "options": search.options}),
    )


def _facts(search: SearchSnapshot, until: float) -> list[tuple[str, str]]:
    """(name, value) of the tiles at the top; running trials count until `until`, in seconds since the epoch."""
    ended = sum(trial.over for trial in search.trials)
    spans = timeline.spans(search, now=until)
    busy = None if search.pauses else timeline.utilisation(spans, search.slots)
    seconds = float(search.outcome["seconds"]) if search.outcome else until - search.created
    return [
        ("trials ended", f"{ended} of {search.planned_trials}"),
        (f"best {search.metric}", format_score(search.ranked[0].objective if search.ranked else None)),
        ("duration" if search.outcome else "elapsed", format_duration(seconds)),
        (f"utilization of {plural(search.slots, 'slot')}", NOT_AVAILABLE if busy is None else f"{busy:.0%}"),
        ("overhead per trial", format_duration((search.outcome or {}).get("overhead_s_per_trial"))),
    ]


def _leaderboard_order(search: SearchSnapshot) -> list[Trial]:
    """Completed trials by objective, then the ones stopped early, the longest first, then the others."""
    return sorted(
        search.trials,
        key=lambda trial: (
            STATUS_ORDER.index(trial.status),
            -trial.steps if trial.status == STOPPED else 0,
            float("inf") if trial.score is None else trial.score,
            trial.number,
        ),
    )


def _leaderboard_row(search: SearchSnapshot, trial: Trial) -> dict[str, Any]:
    settings = trial.settings
    return {
        "number": trial.number,
        "status": trial.status,
        "status_label": STATUS_LABELS[trial.status],
        "settings": [
            format_setting(search, name, settings[name]) if name in settings else NOT_AVAILABLE for name in search.space
        ],
        "score": format_score(trial.score),
        "second": format_quantity(trial.second),
        "steps": f"{trial.steps:,}",
        "duration": format_duration(trial.seconds),
        "link": _mlflow_run_link(search, trial.mlflow_path),
    }


def _links(search: SearchSnapshot) -> list[tuple[str, str, str]]:
    """(name, address, command): what can be opened, or the command that opens it."""
    server, ray = _linkable(search.tracking), _linkable(search.dashboard)
    command = "" if server else ui_command(search.tracking)
    mlflow = _mlflow_run_link(search, search.mlflow_path) or server
    links = [("MLflow", mlflow, command)] if mlflow or command else []
    return [*links, ("Ray dashboard", ray, "")] if ray else links


def _mlflow_run_link(search: SearchSnapshot, path: str) -> str:
    """The page of an MLflow run; empty without a tracking server or a known run."""
    server = _linkable(search.tracking)
    is_path = re.fullmatch(r"experiments/\w+/runs/\w+", path, re.ASCII)
    return run_page(path, server=server) if server and is_path else ""


def _linkable(address: str) -> str:
    """An http(s) address without the user name and password it may hold; empty for any other address."""
    return split_credentials(address)[0].rstrip("/") if urlsplit(address).scheme in ("http", "https") else ""


def _edges(search: SearchSnapshot) -> list[str]:
    """Teacher and student of each edge whose number the names of parameters mention."""
    edges = search.recipe.get("edges", [])
    used = [number for number in range(len(edges)) if any(n.startswith(f"edges.{number}.") for n in search.space)]
    return [
        f"edges.{number} is {teacher_name(edges[number]['teacher'])} → {edges[number]['student']}" for number in used
    ]


def _final_rows(search: SearchSnapshot) -> list[dict[str, str]]:
    """A row for each kind of final run of each trial: the mean over its seeds, and the range."""
    groups: dict[tuple[str, int], list[Trial]] = {}
    repeats = [trial for trial in search.finals if trial.kind in FINAL_KINDS]
    for trial in sorted(repeats, key=lambda trial: (FINAL_KINDS.index(trial.kind), trial.number)):
        groups.setdefault((trial.kind, trial.number), []).append(trial)
    return [
        {
            "kind": kind,
            "number": str(number),
            "seeds": f"{sum(trial.status == DONE for trial in trials)} of {len(trials)}",
            "score": _mean_and_range([trial.objective for trial in trials if trial.objective is not None]),
        }
        for (kind, number), trials in groups.items()
    ]


def _test_rows(search: SearchSnapshot) -> list[tuple[str, str, str, str]]:
    """(model, metric, winner's scores, control's scores) on the test clips."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    winner = ((search.outcome or {}).get("winner") or {}).get("number")
    for trial in search.finals if winner is None else [trial for trial in search.finals if trial.number == winner]:
        for model, scores in (trial.test or {}).items():
            for metric, value in scores.items():
                values.setdefault((model, metric), {}).setdefault(trial.kind, []).append(value)
    return [
        (model, metric, _mean_and_range(by_kind.get("winner", [])), _mean_and_range(by_kind.get("control", [])))
        for (model, metric), by_kind in values.items()
    ]


def _mean_and_range(values: list[float]) -> str:
    if not values:
        return NOT_AVAILABLE
    spread = f" ({format_score(min(values))} to {format_score(max(values))})" if len(set(values)) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"
