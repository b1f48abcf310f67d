"""What a spool's records become in MLflow: points of curves, parameters, tags, a status.

Pure: it owns MLflow's names and limits but neither calls MLflow (`tracking.py` does) nor reads files.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# Limits of MLflow 3.17 (mlflow/utils/validation.py); it cuts longer values itself, without leaving a trace.
PARAM_LENGTH = 6000
TAG_LENGTH = 8000
STATUS = {"done": "FINISHED", "failed": "FAILED", "preempted": "KILLED"}
RUN_ID_TAG = "antiphon.run_id"  # by this a run is found again


class Point(NamedTuple):
    """One value of one curve; `t` in milliseconds since the epoch."""

    key: str
    value: float
    t: int
    step: int


@dataclass
class Delivery:
    """What some records ask of MLflow. `status` is (MLflow's status, end time in ms or None), None: unchanged."""

    points: list[Point] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)  # result rows of taggers to register
    status: tuple[str, int | None] | None = None
    bad: list[str] = field(default_factory=list)  # records that are not what they should be, in words


def delivery(records: Iterable[dict[str, Any]]) -> Delivery:
    """Collect records in order; a later tag or status replaces an earlier one."""
    collected = Delivery()
    for record in records:
        try:
            _ADD[record["kind"]](record, collected)
        except (KeyError, TypeError, ValueError) as error:  # one bad record must not keep all later ones away
            collected.bad.append(f"{type(error).__name__} {error} in {str(record)[:100]}")
    return collected


def cut(value: str, limit: int) -> str:
    """The value, or as much of it as fits with a visible note; the whole of it is in the run's resolved recipe."""
    if len(value) <= limit:
        return value
    note = f" ... [cut: {len(value)} characters, all of them in the resolved recipe]"
    return value[: limit - len(note)] + note


def _add_run(record: dict[str, Any], to: Delivery) -> None:
    # a parameter of an MLflow run never changes; what a resumed run does differently becomes a tag
    changed = {key: value for key, value in record["params"].items() if to.params.get(key, value) != value}
    to.params = record["params"] | to.params
    to.tags |= {f"resumed.{key}": value for key, value in changed.items()}
    to.tags |= record["tags"] | {RUN_ID_TAG: record["run_id"], "antiphon.status": "running", "antiphon.error": ""}
    to.status = ("RUNNING", None)


def _add_start(record: dict[str, Any], to: Delivery) -> None:
    to.tags["antiphon.attempt"] = str(record["attempt"])
    if record["step"]:
        to.tags["antiphon.resumed_from"] = str(record["step"])


def _add_data(record: dict[str, Any], to: Delivery) -> None:
    to.tags |= {
        "data.fingerprint": record["fingerprint"],
        "data.labels": record["labels"],
        "data.tags": str(len(record["tags"])),
        "data.quarantined": str(len(record["quarantined"])),
        **{f"data.clips.{part}": str(count) for part, count in record["clips"].items()},
    }


def _add_phase(record: dict[str, Any], to: Delivery) -> None:
    to.points.append(Point("phase", record["index"], record["t"], record["step"]))
    to.tags["antiphon.phase"] = f"{record['index'] + 1} of {record['of']}, trains {', '.join(record['trains'])}"


def _add_metrics(record: dict[str, Any], to: Delivery) -> None:
    to.points += [Point(key, float(value), record["t"], record["step"]) for key, value in record["values"].items()]


def _add_bad(record: dict[str, Any], to: Delivery) -> None:
    to.tags["antiphon.bad_numbers"] = f"step {record['step']}: {', '.join(record['models'])}"


def _add_checkpoint(record: dict[str, Any], to: Delivery) -> None:
    to.points.append(Point("checkpoint_seconds", record["seconds"], record["t"], record["step"]))
    to.tags["antiphon.checkpoint"] = record["name"]


def _add_result(record: dict[str, Any], to: Delivery) -> None:
    # validation scores are left out: the curve `<model>/val/...` is there already, and may be of other weights
    to.models |= record["models"]
    for model, result in record["models"].items():
        values = {f"{model}/test/{metric}": value for metric, value in result["test"].items()}
        values |= {f"{model}/{name}": result[name] for name in ("params", "steps_taught", "steps_learned")}
        to.points += [Point(key, value, record["t"], record["steps"]) for key, value in values.items()]
        to.tags |= {f"{model}.checkpoint": result["checkpoint"], f"{model}.weights_sha256": result["weights_sha256"]}


def _add_end(record: dict[str, Any], to: Delivery) -> None:
    to.tags |= {"antiphon.status": record["status"], "antiphon.error": record["error"]}
    to.status = (STATUS[record["status"]], record["t"])


_ADD = {
    "run": _add_run,
    "start": _add_start,
    "data": _add_data,
    "phase": _add_phase,
    "metrics": _add_metrics,
    "machine": _add_metrics,  # its step is a time, so that the samples of two attempts never share one
    "bad": _add_bad,
    "checkpoint": _add_checkpoint,
    "result": _add_result,
    "closed": lambda record, to: None,  # the workers' last word; the driver's `end` repeats it
    "end": _add_end,
}
