"""The progress bar: follows a run's spool and shows who learns and who teaches right now."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

LOOK_S = 0.5


@contextmanager
def progress(event_log: Path, console: Console) -> Iterator[None]:
    """Show the spool's progress until the context ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    stop = threading.Event()
    with Progress(*columns, console=console) as bar:
        follower = threading.Thread(target=_follow, args=(event_log, bar, stop), daemon=True)
        follower.start()
        try:
            yield
        finally:
            stop.set()
            follower.join()


def _follow(event_log: Path, bar: Progress, stop: threading.Event) -> None:
    task = bar.add_task("starting", total=None)
    with event_log.open("rb") as file:
        while not stop.wait(LOOK_S):
            _show(bar, task, _whole_lines(file))
        _show(bar, task, _whole_lines(file))


def _whole_lines(file: BinaryIO) -> list[dict[str, Any]]:
    """What was written since the last look; a line that is still being written waits."""
    text = file.read()
    whole = text.rfind(b"\n") + 1
    file.seek(whole - len(text), os.SEEK_CUR)
    return [json.loads(line) for line in text[:whole].splitlines()]


def _show(bar: Progress, task: TaskID, records: list[dict[str, Any]]) -> None:
    for record in records:
        if record["kind"] == "start":
            _tell_start(bar, record)
        if record["kind"] == "bad":
            bar.console.print(f"[red]step {record['step']}: numbers of {', '.join(record['models'])} are not finite[/]")
        if record["kind"] == "phase":
            bar.update(task, description=roles(record), total=record["total"])
        if record["kind"] in ("metrics", "checkpoint"):
            bar.update(task, completed=record["step"])


def _tell_start(bar: Progress, start: dict[str, Any]) -> None:
    for words in start["damaged"]:
        bar.console.print(f"[red]damaged:[/] {escape(words)}", highlight=False, soft_wrap=True)
    if start["damaged"] or start["step"]:
        bar.console.print(f"attempt {start['attempt']} goes on from step {start['step']}", highlight=False)


def roles(phase: dict[str, Any]) -> str:
    """Who learns from whom in a phase, in a few words."""
    taught = {edge["student"]: edge["teacher"] for edge in phase["edges"]}
    learns = [f"{taught[name]} -> {name}" if name in taught else name for name in phase["trains"]]
    return f"phase {phase['index'] + 1}/{phase['of']}: {', '.join(learns)}"
