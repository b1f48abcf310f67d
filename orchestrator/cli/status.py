"""`antiphon status`: one run or search, now or until it ends. Parses and prints; `reports/run_status.py` reads."""

import time
from collections import Counter
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from orchestrator.cli.options import EXIT_CODES, PREEMPTED, STORAGE, JsonOption, only_json
from orchestrator.cli.printing import cell
from orchestrator.cli.runs import ago, entry_json, progress_text, scores_text, status_text

WATCH_S = 2.0
PATIENCE_S = {False: 5.0, True: 300.0}  # how long a storage that is unavailable is waited for, without and with --watch
SHOWN_ALERTS = 10  # the newest ones; --json has all
GOES_ON = ("running", "not started")
Lines = list[tuple[str, str]]


def status(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's or a search's folder or URI, STORAGE/ID; or its id.")
    ],
    storage: Annotated[str, typer.Option(help=f"Where a run given by its id is stored; default: {STORAGE}.")] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Go on until it ends, and exit with its exit code.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show how a run or a search is: roles, progress, speed, newest scores, last checkpoint, alerts."""
    from orchestrator.reports.run_status import StatusReader, find

    reader = StatusReader(find(run, storage, default=STORAGE), patience_s=PATIENCE_S[watch])
    with only_json(as_json) as emit:
        found = _watch(reader, Console(stderr=as_json)) if watch else reader.read()
        emit(_as_json(found))
    if not as_json and not watch:
        Console().print(_table(found))
    if watch:
        raise typer.Exit(EXIT_CODES.get(found.entry.status, PREEMPTED))  # without an outcome: it can be resumed


def _watch(reader: Any, console: Console) -> Any:
    """Show the status until the run ends; returns the last one."""
    if not console.is_terminal:
        return _watch_lines(reader, console)
    found = reader.read()
    with Live(_table(found), console=console, auto_refresh=False) as live:
        while found.entry.status in GOES_ON:
            time.sleep(WATCH_S)
            found = reader.read()
            live.update(_table(found), refresh=True)
    return found


def _watch_lines(reader: Any, console: Console) -> Any:
    """A line for each change of status, roles, scores or checkpoint, and for each alert."""
    shown, alerts = None, Counter[str]()
    while True:
        found = reader.read()
        for alert in (Counter(found.alerts) - alerts).elements():
            console.print(cell(alert), soft_wrap=True)
        alerts = Counter(found.alerts)
        if (state := _state(found)) != shown:
            console.print(cell(f"{time.strftime('%H:%M:%S')} {_line(found)}"), soft_wrap=True)
        shown = state
        if found.entry.status not in GOES_ON:
            return found
        time.sleep(WATCH_S)


def _state(found: Any) -> tuple[Any, ...]:
    """What a new line is printed for; of a run its steps and losses are not: they are new each time."""
    entry, progress = found.entry, found.progress
    trials = entry.done if entry.kind == "search" else None
    return entry.status, progress.roles, str(progress.scores), entry.checkpoint, trials


def _line(found: Any) -> str:
    texts = dict(_lines(found))
    names = ("status", "roles", "done", "trials", "left", "loss and score", "score", "error")
    return "; ".join(texts[name] for name in names if name in texts)


def _table(found: Any) -> Table:
    table = Table(show_header=False, title=cell(found.entry.id))
    table.add_column()
    table.add_column(overflow="fold")
    for name, text in _lines(found):
        table.add_row(cell(name), cell(text))
    alerts = found.alerts
    if len(alerts) > SHOWN_ALERTS:
        table.add_row("alerts", f"{len(alerts)}, of which the newest:")
    for alert in alerts[-SHOWN_ALERTS:]:
        table.add_row("alert", cell(alert))
    return table


def _lines(found: Any) -> Lines:
    """(name, text) of what is known."""
    entry = found.entry
    lines = [("status", status_text(entry)), ("error", entry.error)]
    lines += _search_lines(found) if entry.kind == "search" else _run_lines(found)
    return [(name, text) for name, text in lines if text]


def _run_lines(found: Any) -> Lines:
    from orchestrator.runs.checkpoint_store import step_of  # the store's library takes a while to import

    entry, progress = found.entry, found.progress
    of = f" of {progress.total:,}" if progress.total else ""
    lines = [("roles", progress.roles), ("done", f"step {progress.step:,}{of}")]
    if not progress.last_ms:  # no records
        lines = [("done", progress_text(entry))]
    if seconds := found.seconds_per_step:
        lines.append(("speed", f"{1 / seconds:.2f} steps/s" if seconds < 1 else f"{seconds:.1f} s/step"))
    workers = "" if progress.workers is None else str(progress.workers)
    if progress.nodes:
        workers += f" on {', '.join(f'{address} ({count})' for address, count in progress.nodes.items())}"
    checkpoint = f"step {step_of(entry.checkpoint):,}, {ago(entry.checkpoint_age_s)}" if entry.checkpoint else ""
    return [
        *lines,
        ("left", _left(found)),
        ("workers", workers),
        ("checkpoint", checkpoint),
        ("loss and score", progress.numbers),
        ("score", scores_text(entry) if entry.part == "test" else ""),
        ("as of", found.records if progress.last_ms else "no records yet"),
    ]


def _search_lines(found: Any) -> Lines:
    entry, search = found.entry, found.search
    going_on = "running" if entry.status in GOES_ON else "unfinished"  # the trials of a killed driver are not running
    names = {
        "running": going_on,
        "done": "done",
        "stopped": "stopped",
        "failed": "failed",
        "interrupted": "interrupted",
    }
    counts = [f"{len(trials)} {shown}" for name, shown in names.items() if (trials := search.of_status(name))]
    lines = [
        ("trials", "; ".join([progress_text(entry), ", ".join(counts)]) if counts else progress_text(entry)),
        ("left", _left(found)),
        ("at once", f"{search.slots} trials"),
    ]
    if search.finals:
        lines.append(("finals", f"{sum(final.over for final in search.finals)} of {len(search.finals)} begun are over"))
    if search.ranked:
        best = search.ranked[0]
        lines.append(("score", f"best trial {best.name}: {search.metric} {best.objective:.4f}"))
        lines += [
            (path, f"{value:.4g}" if isinstance(value, float) else str(value)) for path, value in best.settings.items()
        ]
    return lines


def _left(found: Any) -> str:
    seconds = found.seconds_left
    return "" if seconds is None else f"{timedelta(seconds=round(seconds))} left"


def _as_json(found: Any) -> dict[str, Any]:
    """The status for --json."""
    progress, search = found.progress, found.search
    shared = {**entry_json(found.entry), "seconds_left": found.seconds_left, "alerts": found.alerts}
    if search is not None:
        best = search.ranked[0] if search.ranked else None
        settings = (
            {"number": best.number, "objective": best.objective, "settings": dict(best.settings)} if best else None
        )
        running = len(search.of_status("running")) if found.entry.status in GOES_ON else 0
        return {**shared, "running": running, "slots": search.slots, "best": settings}
    return {
        **shared,
        "records": found.records,
        "roles": progress.roles,
        "step": progress.step,
        "seconds_per_step": found.seconds_per_step,
        "workers": progress.workers,
        "nodes": progress.nodes,
        "losses": progress.losses,
        "validation": progress.scores,
    }
