"""`antiphon runs`: the runs and searches of a storage. Parses and prints; `reports/overview.py` reads."""

from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.cli.options import STORAGE, JsonOption, StorageOption, only_json
from orchestrator.cli.printing import cell, print_note

HIDDEN = ("problems", "driver_here", "log_written")  # of an entry: how it was read


def runs(storage: StorageOption = STORAGE, as_json: JsonOption = False) -> None:
    """List the runs and searches of a storage, the newest first: status, score, progress."""
    from orchestrator.reports.overview import overview

    with only_json(as_json) as emit:
        entries = overview(storage)
        for problem in (problem for entry in entries for problem in entry.problems):
            print_note(f"left out: {problem}")
        emit({"storage": storage, "runs": [entry_json(entry) for entry in entries]})
        if as_json:
            return
        if not entries:
            print_note(f"{storage}: there are no runs or searches")
            return
        Console().print(_table(entries))


def entry_json(entry: Any) -> dict[str, Any]:
    """One run or search for --json."""
    return {key: value for key, value in asdict(entry).items() if key not in HIDDEN}


def status_text(entry: Any) -> str:
    """The status; of a driver that has left no outcome, with its last sign of life, unless its process is seen here."""
    certain = entry.quiet_s is None or (entry.status == "running" and entry.driver_here)
    return str(entry.status) if certain else f"{entry.status}, last sign of life {ago(entry.quiet_s)}"


def scores_text(entry: Any) -> str:
    """The scores of the models, or the best objective of a search, with the name of the metric."""
    if not entry.scores:
        return ""
    if entry.kind == "search":
        return f"{entry.metric} {entry.scores['best']:.4f}"
    models = ", ".join(f"{model} {score:.3f}" for model, score in entry.scores.items())
    return f"{entry.part} {entry.metric}: {models}"


def progress_text(entry: Any) -> str:
    """Steps or trials: `120 of 1,080 steps`; empty where none is known."""
    unit = "trials" if entry.kind == "search" else "steps"
    if entry.done is None:
        return "" if entry.total is None else f"0 of {entry.total:,} {unit}"
    return f"{entry.done:,} {unit}" if entry.total is None else f"{entry.done:,} of {entry.total:,} {unit}"


def ago(seconds: float) -> str:
    """An age in its largest unit: `3 min ago`."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (seconds >= size and unit != "days"):
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _table(entries: list[Any]) -> Table:
    table = Table()
    for column in ("id", "recipe", "status", "score", "done", "started", "updated"):
        table.add_column(column, overflow="fold", no_wrap=column == "status")
    for entry in entries:
        recipe = f"{entry.recipe} (search)" if entry.kind == "search" else entry.recipe
        times = [f"{datetime.fromtimestamp(entry.started):%Y-%m-%d %H:%M}", ago(entry.updated_s)]
        texts = [entry.id, recipe, entry.status, scores_text(entry), progress_text(entry), *times]
        table.add_row(*map(cell, texts))
    return table
