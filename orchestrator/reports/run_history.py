"""A run's story, told from its spool: curves, phases, results, how it ended. Draws nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Curve = list[tuple[int, float]]  # (step, value), one value a step, in order
UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Phase:
    """One phase of the role schedule, in steps from `start` to `end` (as far as the run came)."""

    index: int
    start: int
    end: int
    trains: tuple[str, ...]
    edges: tuple[dict[str, Any], ...]

    def role(self, model: str) -> str:
        """What a model does in this phase; empty: nothing."""
        learns = model in self.trains
        teaches = any(edge["teacher"] == model for edge in self.edges)
        return " and ".join(word for word, holds in (("learns", learns), ("teaches", teaches)) if holds)


@dataclass
class RunHistory:
    """Everything a report tells. Where a resumed run logged a step twice, the later value counts."""

    records: list[dict[str, Any]]
    recipe: dict[str, Any]
    curves: dict[str, Curve] = field(init=False)
    phases: list[Phase] = field(init=False)

    def __post_init__(self) -> None:
        by_step: dict[str, dict[int, float]] = {}
        for record in self._all("metrics"):
            for key, value in record["values"].items():
                by_step.setdefault(key, {})[record["step"]] = value
        self.curves = {key: sorted(values.items()) for key, values in by_step.items()}
        planned = {record["index"]: record for record in self._all("phase")}
        self.phases = [
            Phase(
                index,
                record["step"],
                min(record["step"] + record["steps"], max(self.last_step, record["step"])),
                tuple(record["trains"]),
                tuple(record["edges"]),
            )
            for index, record in sorted(planned.items())
        ]

    def _all(self, kind: str) -> Iterator[dict[str, Any]]:
        return (record for record in self.records if record["kind"] == kind)

    def _last(self, kind: str) -> dict[str, Any]:
        return next((record for record in reversed(self.records) if record["kind"] == kind), {})

    @property
    def models(self) -> list[str]:
        """The models in the recipe's order."""
        return list(self.recipe["models"])

    @property
    def edges(self) -> list[str]:
        """The keys of the recipe's edges, `teacher-to-student`."""
        return [f"{edge['teacher']}-to-{edge['student']}" for edge in self.recipe["edges"]]

    @property
    def data(self) -> dict[str, Any]:
        """The data record; empty if the run did not come that far."""
        return self._last("data")

    @property
    def run(self) -> dict[str, Any]:
        """The first run record: when it all began."""
        return next(self._all("run"), {})

    @property
    def starts(self) -> list[dict[str, Any]]:
        """One record for each time that the run began or went on, in order; from which step, past which damage."""
        return sorted(self._all("start"), key=lambda record: record["attempt"])

    @property
    def bad(self) -> list[dict[str, Any]]:
        """The steps at which numbers were not finite."""
        return list(self._all("bad"))

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """The result row of each model; empty for a run without a result."""
        rows: dict[str, dict[str, Any]] = self._last("result").get("models", {})
        return rows

    @property
    def last_step(self) -> int:
        """The last step that any record speaks of."""
        steps = [record["step"] for record in self.records if record["kind"] in ("metrics", "checkpoint", "phase")]
        return max([*steps, self._last("result").get("steps", 0)], default=0)

    @property
    def planned_steps(self) -> int | None:
        """The steps of the whole schedule; None while that is not known."""
        newest = self._last("phase")
        return newest.get("total") if newest else None

    @property
    def status(self) -> str:
        """done, failed, preempted, or unfinished: the spool does not say how it ended."""
        last = [record for record in self.records if record["kind"] in ("run", "end")][-1:]
        return last[0]["status"] if last and last[0]["kind"] == "end" else UNFINISHED

    @property
    def error(self) -> str:
        """Why it failed; empty if it did not."""
        return str(self._last("end").get("error", "")) if self.status != UNFINISHED else ""

    @property
    def score(self) -> str:
        """The metric by which models are compared (`workloads.metrics.primary`)."""
        labels = self.data.get("labels", self.recipe["data"]["labels"])
        return "accuracy" if labels == "single" else "mAP"

    def spans(self, model: str) -> list[tuple[int, int, str]]:
        """(start, end, role) of a model, neighbouring phases with one role joined."""
        return _joined([(phase.start, phase.end, phase.role(model)) for phase in self.phases])

    def while_open(self, key: str, curve: Curve) -> list[tuple[int, float | None]]:
        """A model's or an edge's curve, broken where the model did not learn or the edge was not open."""
        spans = [
            (phase.start, phase.end, "open")
            for phase in self.phases
            if key in phase.trains or key in {f"{edge['teacher']}-to-{edge['student']}" for edge in phase.edges}
        ]
        broken: list[tuple[int, float | None]] = []
        before = None
        for step, value in curve:
            here = next((start for start, end, _ in _joined(spans) if start < step <= end), before)
            if broken and here != before:
                broken.append((step, None))
            broken.append((step, value))
            before = here
        return broken


def _joined(spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    joined: list[tuple[int, int, str]] = []
    for start, end, role in spans:
        if joined and joined[-1][1:] == (start, role):
            joined[-1] = (joined[-1][0], end, role)
        else:
            joined.append((start, end, role))
    return [span for span in joined if span[2]]
