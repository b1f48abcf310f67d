"""How far a run is, from the records of its event log, and a reader of a log that another process writes.

Does not depend on how it is shown: a bar beside the run (`cli/progress_bar.py`), or `antiphon status`.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from workloads.config.edge import teacher_name
from workloads.runtime.event_log import parse_line


@dataclass
class RunProgress:
    """What the records so far say: the phase, the newest losses and scores of each model, the speed, the alerts."""

    step: int = 0
    total: int = 0
    roles: str = "starting"
    workers: int | None = None  # the newest number; None: its record is not among these
    nodes: dict[str, int] = field(default_factory=dict)  # address -> its workers, at the newest start on Ray
    losses: dict[str, float] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # metric -> model -> value
    scored: bool = True  # whether there are validation clips
    alerts: list[str] = field(default_factory=list)  # in order
    last_ms: int = 0  # the time of the newest record of a step
    began: tuple[int, int] = (0, 0)  # time in ms and step of this attempt's start
    known: set[str] = field(default_factory=set)  # alerts that are not given again

    def update(self, record: dict[str, Any]) -> list[str]:
        """Take one more record into account; returns the alerts that it brings."""
        kind = record["kind"]
        if kind == "run" and record.get("tags", {}).get("workers", "").isdigit():
            self.workers = int(record["tags"]["workers"])
        if kind == "workers":
            self.workers, self.nodes = record["count"], record.get("nodes", {})  # a run of another version has none
        if kind == "start":
            self.began, self.step, self.last_ms = (record["t"], record["step"]), record["step"], record["t"]
        if kind == "data":
            self.scored = record["clips"]["val"] > 0
        if kind == "phase":
            self.roles, self.total = roles(record), record.get("total", self.total)
        if kind in ("metrics", "checkpoint"):
            self.step, self.last_ms = record["step"], record["t"]
        for key, value in record["values"].items() if kind == "metrics" else ():
            model, _, name = key.partition("/")
            if name == "loss":
                self.losses[model] = value
            if name in ("val/accuracy", "val/mAP"):
                self.scores.setdefault(name.removeprefix("val/"), {})[model] = value
        new = [message for message in messages(record) if message not in self.known]
        if kind in ("data", "replaced"):  # restarted workers may record these again
            self.known.update(new)
        self.alerts += new
        return new

    @property
    def metric(self) -> str:
        """The validation score that is shown: accuracy where there is one; empty before the first evaluation."""
        return next((name for name in ("accuracy", "mAP") if name in self.scores), "")

    @property
    def numbers(self) -> str:
        """The models' newest training losses and validation scores; accuracy alone where there is one."""
        parts = [("loss", self.losses)] if self.losses else []
        if self.metric:
            parts.append((f"val {self.metric}", self.scores[self.metric]))
        return "; ".join(
            f"{name} " + ", ".join(f"{model} {value:.3f}" for model, value in values.items()) for name, values in parts
        )

    def seconds_per_step(self, now_ms: int) -> float | None:
        """The mean of this attempt; None before its first step."""
        began, first_step = self.began
        return (now_ms - began) / 1000 / (self.step - first_step) if self.step > first_step else None

    def seconds_left(self, now_ms: int) -> float | None:
        """Until the last step, by the mean speed of this attempt; None before its first step."""
        seconds = self.seconds_per_step(now_ms)
        return None if seconds is None else seconds * (self.total - self.step)

    def time_left(self, now_ms: int) -> str:
        """The same as H:MM:SS; empty before this attempt's first step."""
        seconds = self.seconds_left(now_ms)
        return "" if seconds is None else str(timedelta(seconds=round(seconds)))


class EventLogTail:
    """Reads the records that another process, or another thread, appends to a local event log.

    Each record is returned once. A line that is still being written is left for the next call; one that is no record is
    left out, and counted in `damaged`.
    """

    def __init__(self, event_log: Path, *, start: int = 0) -> None:
        self.damaged = 0
        self._event_log, self._offset = event_log, start

    def read(self) -> list[dict[str, Any]]:
        """The records written since the last call."""
        with self._event_log.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole = text.rfind(b"\n") + 1
        self._offset += whole
        records = []
        for line in text[:whole].splitlines():
            try:
                records.append(parse_line(line, str(self._event_log)))
            except ValueError:
                self.damaged += 1
        return records


def messages(record: dict[str, Any]) -> list[str]:
    """What a record says that somebody should know: warnings, failed workers, bad numbers, damaged checkpoints."""
    if record["kind"] == "data":
        return [f"warning: {warning}" for warning in record.get("warnings", [])]
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
    if record["kind"] == "resizing":
        workers = "1 worker" if record["workers"] == 1 else f"{record['workers']} workers"
        return [f"step {record['step']}: saved by {workers}; the cluster holds another number, which start again"]
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
    of = f"/{phase['of']}" if "of" in phase else ""
    return f"phase {phase['index'] + 1}{of}: {', '.join(students)}"


def progress_after(warned: Collection[str]) -> RunProgress:
    """The progress of a run whose warnings were printed already; they are not given again."""
    return RunProgress(known={f"warning: {warning}" for warning in warned})
