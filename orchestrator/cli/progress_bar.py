"""A run's progress, read from its event log while it is written: a bar in a terminal, else a line per evaluation.

Contract: one daemon thread of the driver's process reads the log every POLL_S seconds, and a last time when the context
ends; it writes nothing but the terminal.
"""

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from orchestrator.cli.printing import cell
from workloads.config.edge import teacher_name
from workloads.runtime.background import in_background
from workloads.runtime.event_log import parse_line

POLL_S = 0.5


@contextmanager
def progress(event_log: Path, console: Console, *, warned: Collection[str] = ()) -> Iterator[None]:
    """Show the progress that the event log records from now on, until the context ends; `warned`: warnings printed
    before."""
    display = (_Bar if console.is_terminal else _Lines)(console, warned)
    follow = partial(_follow, event_log, event_log.stat().st_size, display)
    with display.shown(), in_background(follow, name="progress"):
        yield


@dataclass
class _Progress:
    """What the records so far say: the phase, the newest losses and scores of each model, and the speed."""

    step: int = 0
    total: int = 0
    roles: str = "starting"
    losses: dict[str, float] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # metric -> model -> value
    scored: bool = True  # whether there are validation clips
    began: tuple[int, int] = (0, 0)  # time in ms and step of this attempt's start

    def update(self, record: dict[str, Any]) -> None:
        kind = record["kind"]
        if kind == "start":
            self.began = (record["t"], record["step"])
        if kind == "data":
            self.scored = record["clips"]["val"] > 0
        if kind == "phase":
            self.roles, self.total = roles(record), record["total"]
        if kind in ("metrics", "checkpoint"):
            self.step = record["step"]
        for key, value in record["values"].items() if kind == "metrics" else ():
            model, _, name = key.partition("/")
            if name == "loss":
                self.losses[model] = value
            if name in ("val/accuracy", "val/mAP"):
                self.scores.setdefault(name.removeprefix("val/"), {})[model] = value

    @property
    def numbers(self) -> str:
        """The models' newest training losses and validation scores; accuracy alone where there is one."""
        parts = [("loss", self.losses)] if self.losses else []
        if metric := next((name for name in ("accuracy", "mAP") if name in self.scores), ""):
            parts.append((f"val {metric}", self.scores[metric]))
        return "; ".join(
            f"{name} " + ", ".join(f"{model} {value:.3f}" for model, value in values.items()) for name, values in parts
        )

    def time_left(self, now_ms: int) -> str:
        """As H:MM:SS, by the mean speed of this attempt; empty before its first step."""
        began, first_step = self.began
        if self.step <= first_step:
            return ""
        seconds = (now_ms - began) / 1000 / (self.step - first_step) * (self.total - self.step)
        return str(timedelta(seconds=round(seconds)))


class _Display(ABC):
    """Shows records as they come; messages (warnings, damaged checkpoints, bad numbers) are lines either way."""

    def __init__(self, console: Console, warned: Collection[str]) -> None:
        self._console, self._progress = console, _Progress()
        self._warned = {f"warning: {warning}" for warning in warned}

    @contextmanager
    def shown(self) -> Iterator[None]:
        yield

    def show(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            self._progress.update(record)
            for message in _messages(record):
                if message not in self._warned:
                    self._console.print(cell(message), soft_wrap=True)
                if record["kind"] in ("data", "replaced"):  # restarted workers may record these again
                    self._warned.add(message)
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


def _follow(event_log: Path, start: int, display: _Display, ended: threading.Event) -> None:
    with event_log.open("rb") as file:
        file.seek(start)
        while not ended.wait(POLL_S):
            display.show(_whole_lines(file))
        display.show(_whole_lines(file))


def _whole_lines(file: BinaryIO) -> list[dict[str, Any]]:
    """The records written since the last call; a line that is still being written is left for the next."""
    text = file.read()
    whole = text.rfind(b"\n") + 1
    file.seek(whole - len(text), os.SEEK_CUR)
    records = []
    for line in text[:whole].splitlines():
        with suppress(ValueError):  # whoever reads the log for more than this names its damaged lines
            records.append(parse_line(line, file.name))
    return records


def _messages(record: dict[str, Any]) -> list[str]:
    if record["kind"] == "data":
        return [f"warning: {warning}" for warning in record["warnings"]]
    if record["kind"] == "replaced":
        return [
            f"warning: clip {record['clip_id']} cannot be used any more: {record['reason']}; it is replaced by clip "
            f"{record['by']} in every epoch"
        ]
    if record["kind"] == "worker-failed":
        return [f"worker {record['rank']} has failed: {record['error']}"]
    if record["kind"] == "leaving":
        nodes = "a node is" if record["nodes"] == 1 else f"{record['nodes']} nodes are"
        return [f"step {record['step']}: saved, since {nodes} to be taken away; the workers start again on others"]
    if record["kind"] == "bad":
        return [f"step {record['step']}: numbers of {', '.join(record['models'])} are not finite"]
    if record["kind"] != "start":
        return []
    resumes = [f"attempt {record['attempt']} resumes from step {record['step']}"]
    return [f"damaged: {problem}" for problem in record["damaged"]] + (
        resumes if record["damaged"] or record["step"] else []
    )


def roles(phase: dict[str, Any]) -> str:
    """The models that a phase trains, each with its teachers: `phase 3/9: cnn -> vit`, `phase 3/9: a+b -> c`."""
    teachers: dict[str, list[str]] = {}
    for edge in phase["edges"]:
        teachers.setdefault(edge["student"], []).append(teacher_name(edge["teacher"]))
    students = [f"{'+'.join(teachers[name])} -> {name}" if name in teachers else name for name in phase["trains"]]
    return f"phase {phase['index'] + 1}/{phase['of']}: {', '.join(students)}"
