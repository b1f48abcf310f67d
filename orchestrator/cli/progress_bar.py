"""A run's progress, read from its event log while it is written: a bar in a terminal, else a line per evaluation.

Contract: one daemon thread of the driver's process reads the log every POLL_S seconds, and a last time when the context
ends; it writes nothing but the terminal.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from orchestrator.cli.printing import cell
from orchestrator.runs.progress import EventLogTail, progress_after
from workloads.runtime.background import in_background

POLL_S = 0.5


@contextmanager
def progress(event_log: Path, console: Console, *, warned: Collection[str] = ()) -> Iterator[None]:
    """Show the progress that the event log records from now on, until the context ends; `warned`: warnings printed
    before."""
    display = (_Bar if console.is_terminal else _Lines)(console, warned)
    follow = partial(_follow, EventLogTail(event_log, start=event_log.stat().st_size), display)
    with display.shown(), in_background(follow, name="progress"):
        yield


class _Display(ABC):
    """Shows records as they come; alerts (warnings, damaged checkpoints, bad numbers) are lines either way."""

    def __init__(self, console: Console, warned: Collection[str]) -> None:
        self._console, self._progress = console, progress_after(warned)

    @contextmanager
    def shown(self) -> Iterator[None]:
        yield

    def show(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            for alert in self._progress.update(record):
                self._console.print(cell(alert), soft_wrap=True)
            self._show(record)

    @abstractmethod
    def _show(self, record: dict[str, Any]) -> None:
        """Show what this record has changed."""


class _Lines(_Display):
    """A line for each evaluation, or without any for each checkpoint: of a log file all lines are kept, and it may be
    read while the run goes on."""

    def _show(self, record: dict[str, Any]) -> None:
        status = self._progress
        validated = record["kind"] == "metrics" and any("/val/" in key for key in record["values"])
        if not validated and (record["kind"] != "checkpoint" or status.scored):
            return
        when = time.strftime("%H:%M:%S", time.localtime(record["t"] / 1000))
        left = status.time_left(record["t"])
        line = f"{when} step {status.step}/{status.total} ({status.roles}): {status.numbers}"
        self._console.print(cell(f"{line}; {left} left" if left else line), soft_wrap=True)


class _Bar(_Display):
    """A bar with the step and the time left, and below it losses and scores."""

    def __init__(self, console: Console, warned: Collection[str]) -> None:
        super().__init__(console, warned)
        roles, left = (TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[left]"))
        self._bar = Progress(roles, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), left, console=console)
        self._task = self._bar.add_task(self._progress.roles, total=None, left="")

    @contextmanager
    def shown(self) -> Iterator[None]:
        with Live(get_renderable=self._render, console=self._console, refresh_per_second=4):
            yield

    def _render(self) -> Group:
        return Group(self._bar.get_renderable(), Text(self._progress.numbers, overflow="ellipsis", no_wrap=True))

    def _show(self, record: dict[str, Any]) -> None:
        status = self._progress
        left = status.time_left(record["t"])
        self._bar.update(
            self._task,
            description=status.roles,
            total=status.total or None,
            completed=status.step,
            left=f"{left} left" if left else "",
        )


def _follow(event_log: EventLogTail, display: _Display, ended: threading.Event) -> None:
    while not ended.wait(POLL_S):
        display.show(event_log.read())
    display.show(event_log.read())
