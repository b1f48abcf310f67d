"""A run as its event log records it: curves, phases, results, status. Does not depend on figures or pages."""

import bisect
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from workloads.config.edge import edge_key, teacher_name
from workloads.runtime.event_log import end_of

Curve = list[tuple[int, float]]  # (step, value), one value per step, in order of steps
UNFINISHED = "unfinished"
TRAINING, TEACHING, BOTH = "training", "teaching", "training and teaching"


@dataclass(frozen=True)
class Phase:
    """One phase of the schedule, from step `start` to step `end`, or to the last recorded step within it."""

    index: int
    start: int
    end: int
    trains: tuple[str, ...]
    edges: tuple[dict[str, Any], ...]

    def role(self, model: str) -> str:
        """A model's role in this phase; empty if it has none."""
        trains = model in self.trains
        teaches = any(edge["teacher"] == model for edge in self.edges)
        if trains and teaches:
            return BOTH
        return TRAINING if trains else TEACHING if teaches else ""

    def is_active(self, key: str) -> bool:
        """Whether a model, given by its name, is training or an edge, given by its key, is open."""
        return key in self.trains or any(_edge_key(edge) == key for edge in self.edges)


@dataclass
class RunHistory:
    """Everything that a report shows. Where a resumed run logged a step twice, the later value counts."""

    records: list[dict[str, Any]]
    recipe: dict[str, Any]
    curves: dict[str, Curve] = field(init=False)
    phases: list[Phase] = field(init=False)

    def __post_init__(self) -> None:
        by_step: dict[str, dict[int, float]] = {}
        for record in self._of_kind("metrics"):
            for key, value in record["values"].items():
                by_step.setdefault(key, {})[record["step"]] = value
        self.curves = {key: sorted(values.items()) for key, values in by_step.items()}
        by_index = {record["index"]: record for record in self._of_kind("phase")}
        self.phases = [
            Phase(
                index,
                record["step"],
                min(record["step"] + record["steps"], max(self.last_step, record["step"])),
                tuple(record["trains"]),
                tuple(record["edges"]),
            )
            for index, record in sorted(by_index.items())
        ]

    def _of_kind(self, kind: str) -> Iterator[dict[str, Any]]:
        return (record for record in self.records if record["kind"] == kind)

    def _last(self, kind: str) -> dict[str, Any]:
        return next((record for record in reversed(self.records) if record["kind"] == kind), {})

    @property
    def models(self) -> list[str]:
        """The models in the recipe's order, without controls."""
        controls = self.controls.values()
        return [name for name in self.recipe["models"] if name not in controls]

    @property
    def controls(self) -> dict[str, str]:
        """Student -> its untaught control."""
        return {model["control_of"]: name for name, model in self.recipe["models"].items() if model.get("control_of")}

    @property
    def comparison(self) -> dict[str, dict[str, Any]]:
        """Student -> its scores and its control's; empty for a run that compares none, or has not ended."""
        models: dict[str, dict[str, Any]] = self._last("comparison").get("models", {})
        return models

    @property
    def profiles(self) -> dict[str, Any]:
        """When each model listens, in a few test clips; empty for a run without keywords, or that has not ended."""
        return self._last("profiles")

    @property
    def mistakes(self) -> list[dict[str, Any]]:
        """The test clips that the models got most wrong; empty where none were recorded."""
        clips: list[dict[str, Any]] = self._last("mistakes").get("clips", [])
        return clips

    @property
    def edges(self) -> list[str]:
        """The keys of the recipe's edges: their names, or `teacher-to-student`."""
        return [_edge_key(edge) for edge in self.recipe["edges"]]

    def edges_with(self, metric: str) -> list[str]:
        """The keys of the edges of which a metric was logged."""
        return [edge for edge in self.edges if f"{edge}/{metric}" in self.curves]

    def teachers_of(self, model: str) -> dict[str, str]:
        """The edges that lead to a model: by key the teacher's name."""
        edges = [edge for edge in self.recipe["edges"] if edge["student"] == model]
        return {_edge_key(edge): _teacher_label(edge) for edge in edges}

    @property
    def data(self) -> dict[str, Any]:
        """The data record; empty if the run ended before its data was read."""
        return self._last("data")

    @property
    def run(self) -> dict[str, Any]:
        """The first run record, written when the run was created."""
        return next(self._of_kind("run"), {})

    @property
    def starts(self) -> list[dict[str, Any]]:
        """One start record per attempt, in order: its first step and the damaged checkpoints that it skipped."""
        return sorted(self._of_kind("start"), key=lambda record: record["attempt"])

    @property
    def non_finite_steps(self) -> list[dict[str, Any]]:
        """The records of steps whose loss or gradient was not finite."""
        return list(self._of_kind("bad"))

    @property
    def replaced(self) -> list[dict[str, Any]]:
        """The first record of each clip that was replaced; a run that repeats steps after a kill writes it again."""
        by_clip: dict[str, dict[str, Any]] = {}
        for record in self._of_kind("replaced"):
            by_clip.setdefault(record["clip_id"], record)
        return list(by_clip.values())

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """The result row of each model; empty for a run without a result."""
        rows: dict[str, dict[str, Any]] = self._last("result").get("models", {})
        return rows

    @property
    def scored_part(self) -> str:
        """The part on which tags were scored: test, or val in a run that leaves the test clips alone."""
        return "test" if any(row["test"] for row in self.results.values()) else "val"

    @property
    def is_scored(self) -> bool:
        """Whether there are clips to score models on, as far as is known: data without any label has none."""
        return not self.data or self.data["clips"]["val"] > 0

    @functools.cached_property
    def last_step(self) -> int:
        """The last step that any record mentions."""
        steps = [record["step"] for record in self.records if record["kind"] in ("metrics", "checkpoint", "phase")]
        return max([*steps, self._last("result").get("steps", 0)], default=0)

    @property
    def planned_steps(self) -> int | None:
        """The steps of the whole schedule; None before the first phase."""
        newest = self._last("phase")
        return newest.get("total") if newest else None

    @property
    def status(self) -> str:
        """done, failed, preempted, or unfinished if the event log has no end record for the last attempt."""
        end = end_of(self.records)
        return end["status"] if end else UNFINISHED

    @property
    def error(self) -> str:
        """The error of a failed run; empty for any other."""
        return str(self._last("end").get("error", "")) if self.status != UNFINISHED else ""

    @property
    def primary_metric(self) -> str:
        """The metric by which models are compared (`workloads.evaluate.metrics.primary`)."""
        labels = self.data.get("labels", self.recipe["data"]["labels"])
        return "accuracy" if labels == "single" else "mAP"

    def role_spans(self, model: str) -> list[tuple[int, int, str]]:
        """(start, end, role) of a model in steps; adjacent phases with the same role are merged."""
        return _merge_adjacent([(phase.start, phase.end, phase.role(model)) for phase in self.phases])

    def split_by_activity(self, key: str, curve: Curve) -> list[tuple[int, float | None]]:
        """A model's or an edge's curve, with a gap (None) wherever it was inactive between two points."""
        spans = _merge_adjacent([(phase.start, phase.end, "active") for phase in self.phases if phase.is_active(key)])
        starts = [start for start, _, _ in spans]
        points: list[tuple[int, float | None]] = []
        previous = None
        for step, value in curve:
            place = bisect.bisect_left(starts, step) - 1  # the last span that starts before this step
            current = starts[place] if place >= 0 and step <= spans[place][1] else previous
            if points and current != previous:
                points.append((step, None))
            points.append((step, value))
            previous = current
        return points


def _edge_key(edge: dict[str, Any]) -> str:
    return edge_key(edge["teacher"], edge["student"], edge.get("name", ""), edge.get("carries", "logits"))


def _teacher_label(edge: dict[str, Any]) -> str:
    label = edge.get("name") or teacher_name(edge["teacher"])
    return label if edge.get("carries", "logits") == "logits" else f"{label}, {edge['carries']}"


def _merge_adjacent(spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Spans that touch and have the same role become one; spans without a role are left out."""
    merged: list[tuple[int, int, str]] = []
    for start, end, role in spans:
        if merged and merged[-1][1:] == (start, role):
            merged[-1] = (merged[-1][0], end, role)
        else:
            merged.append((start, end, role))
    return [span for span in merged if span[2]]
