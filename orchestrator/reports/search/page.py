"""The page of a search, live or as one file that opens without a network. Owns tables and page, not the figures.

Everything in it comes from `trials.Search`; it asks no server. What files say is text, never markup.
"""

import json
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from markupsafe import Markup

from orchestrator.reports.html_page import plotly_script, render, write_whole
from orchestrator.reports.search import figures, timeline
from orchestrator.reports.search.formatting import in_words
from orchestrator.reports.search.sections import sections
from orchestrator.reports.search.snapshot import DONE, FAILED, INTERRUPTED, RUNNING, STOPPED, Search, Trial
from orchestrator.reports.search.verdict import NOTHING, amount, duration, plural, score, verdict
from orchestrator.tracking.uri import ui_command

SHOWN_ROWS = 15  # of the leaderboard; the rest unfolds
FINALS = ("winner", "control", "finalist")
ORDER = (DONE, STOPPED, RUNNING, INTERRUPTED, FAILED)


def write_search_report(search: Search, out: Path) -> None:
    """Write a search's page to `out`, finished or not: 5 MB, of which 4.8 are Plotly; written whole or not at all."""
    write_whole(page(search, body=body(search)), out)


def page(search: Search, *, body: str, every_s: float | None = None, stamp: str = "") -> str:
    """The whole page around a `body`; with `every_s` it asks `fragment?seen=STAMP` so often for a newer one."""
    return render(
        "search.html.j2",
        body=Markup(body),
        search=search,
        plotly=plotly_script(),
        every_s=every_s,
        stamp=stamp,
    )


def body(search: Search) -> str:
    """What changes while a search runs: everything but scripts and styles."""
    now = time.time()
    until = search.active_until(now)
    rows = [_row(search, trial) for trial in _leaders(search)]
    return render(
        "search_body.html.j2",
        search=search,
        about=search.recipe.get("about", ""),
        when=f"began {_clock(search.created)}, last news {_clock(search.last_news)}",
        verdict=verdict(search, now),
        facts=_facts(search, until),
        links=_links(search),
        rows=rows[:SHOWN_ROWS],
        more=rows[SHOWN_ROWS:],
        names=list(search.space),
        edges=_edges(search),
        second=figures.SECONDS.get(search.settings.get("second", ""), ""),
        finals=_finals(search),
        tests=_tests(search),
        failures=[trial for trial in (*search.trials, *search.finals) if trial.status == FAILED],
        sections=sections(search, until),
        recipe=json.dumps(search.recipe, indent=2, ensure_ascii=False),
    )


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _facts(search: Search, until: float) -> list[tuple[str, str]]:
    over = sum(trial.over for trial in search.trials)
    drawn = timeline.spans(search, now=until)
    busy = None if search.pauses else timeline.utilisation(drawn, search.slots)
    overhead = (search.outcome or {}).get("overhead_s_per_trial")
    return [
        ("trials over", f"{over} of {search.planned_trials}"),
        (f"best {search.metric}", score(search.ranked[0].objective) if search.ranked else NOTHING),
        ("the search took" if search.outcome else "so far", duration(_lasted(search, until))),
        (f"{plural(search.slots, 'slot')} busy", NOTHING if busy is None else f"{busy:.0%}"),
        ("overhead a trial", duration(overhead)),
    ]


def _lasted(search: Search, until: float) -> float:
    return float(search.outcome["seconds"]) if search.outcome else until - search.created


def _leaders(search: Search) -> list[Trial]:
    """Those that came to their end by score, then the stopped ones, the longest first, and the others."""
    return sorted(
        search.trials,
        key=lambda trial: (
            ORDER.index(trial.status),
            -trial.steps if trial.status == STOPPED else 0,
            float("inf") if trial.score is None else trial.score,
            trial.number,
        ),
    )


def _row(search: Search, trial: Trial) -> dict[str, Any]:
    own = trial.settings
    values = [in_words(search, name, own[name]) if name in own else NOTHING for name in search.space]
    return {
        "number": trial.number,
        "status": trial.status,
        "values": values,
        "score": score(trial.score),
        "second": amount(trial.second),
        "steps": f"{trial.steps:,}",
        "seconds": duration(trial.seconds),
        "link": _mlflow_run(search, trial.mlflow_run_id),
    }


def _links(search: Search) -> list[tuple[str, str, str]]:
    """(name, address, command): what can be opened, or the command that opens it."""
    server, ray = _http(search.tracking), _http(search.dashboard)
    command = "" if server else ui_command(search.tracking)
    mlflow = _mlflow_run(search, search.mlflow_run_id) or server
    found = [("MLflow", mlflow, command)] if mlflow or command else []
    return [*found, ("Ray dashboard", ray, "")] if ray else found


def _mlflow_run(search: Search, run_id: str) -> str:
    """The page of a run of MLflow's, where there is a server and the run is known."""
    server = _http(search.tracking)
    return f"{server}/#/runs/{run_id}" if server and run_id.isalnum() else ""


def _http(address: str) -> str:
    """An address that a page may link to, without the password that may stand in it; empty for any other."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https"):
        return ""
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")


def _edges(search: Search) -> list[str]:
    """Which edges the places in the space are of."""
    edges = search.recipe.get("edges", [])
    used = [number for number in range(len(edges)) if any(n.startswith(f"edges.{number}.") for n in search.space)]
    return [f"edges.{number} is {edges[number]['teacher']} → {edges[number]['student']}" for number in used]


def _finals(search: Search) -> list[dict[str, str]]:
    """A row for each group of seeds; a mean has its lowest and highest beside it."""
    groups: dict[tuple[str, int], list[Trial]] = {}
    repeats = [trial for trial in search.finals if trial.kind in FINALS]
    for trial in sorted(repeats, key=lambda trial: (FINALS.index(trial.kind), trial.number)):
        groups.setdefault((trial.kind, trial.number), []).append(trial)
    return [
        {
            "kind": kind,
            "number": str(number),
            "seeds": f"{sum(trial.status == DONE for trial in trials)} of {len(trials)}",
            "score": _mean([trial.objective for trial in trials if trial.objective is not None]),
        }
        for (kind, number), trials in groups.items()
    ]


def _tests(search: Search) -> list[tuple[str, str, str, str]]:
    """(model, metric, winner, control) on the test clips."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    winner = ((search.outcome or {}).get("winner") or {}).get("number")
    for trial in search.finals if winner is None else [trial for trial in search.finals if trial.number == winner]:
        for model, scores in (trial.test or {}).items():
            for metric, value in scores.items():
                found.setdefault((model, metric), {}).setdefault(trial.kind, []).append(value)
    return [
        (model, metric, _mean(values.get("winner", [])), _mean(values.get("control", [])))
        for (model, metric), values in found.items()
    ]


def _mean(values: list[float]) -> str:
    if not values:
        return NOTHING
    spread = f" ({score(min(values))} to {score(max(values))})" if len(set(values)) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"
