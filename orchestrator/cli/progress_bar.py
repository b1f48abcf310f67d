"""The progress bar: reads a run's event log while it is written, and shows the step and which models learn from which.

Contract: one daemon thread of the driver's process reads the log every POLL_S seconds, and a last time when the context
ends; it writes nothing but the terminal.
"""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from orchestrator.cli.printing import cell
from workloads.runtime.background import in_background

POLL_S = 0.5


@contextmanager
def progress(event_log: Path, console: Console) -> Iterator[None]:
    """Show the progress that the event log records until the context ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar, in_background(partial(_follow, event_log, bar), name="progress"):
        yield


def _follow(event_log: Path, bar: Progress, ended: threading.Event) -> None:
    task = bar.add_task("starting", total=None)
    with event_log.open("rb") as file:
        while not ended.wait(POLL_S):
            _show(bar, task, _whole_lines(file))
        _show(bar, task, _whole_lines(file))


def _whole_lines(file: BinaryIO) -> list[dict[str, Any]]:
    """The records written since the last call; a line that is still being written is left for the next."""
    text = file.read()
    whole = text.rfind(b"\n") + 1
    file.seek(whole - len(text), os.SEEK_CUR)
    return [json.loads(line) for line in text[:whole].splitlines()]


def _show(bar: Progress, task: TaskID, records: list[dict[str, Any]]) -> None:
    for record in records:
        if record["kind"] == "start":
            _print_start(bar, record)
        if record["kind"] == "bad":
            bar.console.print(cell(f"step {record['step']}: numbers of {', '.join(record['models'])} are not finite"))
        if record["kind"] == "phase":
            bar.update(task, description=roles(record), total=record["total"])
        if record["kind"] in ("metrics", "checkpoint"):
            bar.update(task, completed=record["step"])


def _print_start(bar: Progress, start: dict[str, Any]) -> None:
    for problem in start["damaged"]:
        bar.console.print(cell(f"damaged: {problem}"), soft_wrap=True)
    if start["damaged"] or start["step"]:
        bar.console.print(f"attempt {start['attempt']} resumes from step {start['step']}", highlight=False)


def roles(phase: dict[str, Any]) -> str:
    """The models that a phase trains, each with its teachers: `phase 3/9: cnn -> vit`, `phase 3/9: a+b -> c`."""
    teachers: dict[str, list[str]] = {}
    for edge in phase["edges"]:
        teachers.setdefault(edge["student"], []).append(edge["teacher"])
    students = [f"{'+'.join(teachers[name])} -> {name}" if name in teachers else name for name in phase["trains"]]
    return f"phase {phase['index'] + 1}/{phase['of']}: {', '.join(students)}"
