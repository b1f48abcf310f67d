"""Mapping of an event log's records to MLflow: metric points, parameters, tags, a status.

Owns MLflow's names and limits. Pure functions: neither MLflow (`mlflow_run.py` calls it) nor any file is used.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple, NotRequired

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from orchestrator.tracking.uri import run_page

# Limits of MLflow 3.17 (mlflow/utils/validation.py), which truncates longer values without any mark.
PARAM_LENGTH = 6000
TAG_LENGTH = 8000
STATUS = {"done": "FINISHED", "failed": "FAILED", "preempted": "KILLED"}
# What is compared beside the primary score: frames of models that have them, attention on keywords.
OF_COMPARISON = ("log_loss", "frame_mAP", "attention_mass", "own_attention_mass")
RUN_ID_TAG = "antiphon.run_id"  # a run is looked up by this tag
# Names that MLflow's pages know (mlflow/utils/mlflow_tags.py)
NOTE_TAG = "mlflow.note.content"
SOURCE_TAG, SOURCE_TYPE_TAG, COMMIT_TAG = "mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit"
RECIPE_FILE, REPORT_FILE = "recipe.json", "report.html"  # artifacts of a run
DIGEST_LENGTH = 36  # of a data set


class RunRecord(TypedDict):
    """The first line of an event log."""

    kind: str
    t: int
    run_id: str
    experiment: str
    name: str
    params: dict[str, str]
    tags: dict[str, str]
    about: NotRequired[str]
    resolved: NotRequired[dict[str, Any]]  # the whole recipe, of which `params` are what was chosen


class Point(NamedTuple):
    """One value of one metric; `t` in milliseconds since the epoch."""

    key: str
    value: float
    t: int
    step: int


class DataInput(NamedTuple):
    """A run's data set as MLflow lists it; its name and place are in the recipe."""

    digest: str
    profile: dict[str, Any]


@dataclass
class MlflowUpdate:
    """What MLflow must store for some records. `status`: (MLflow's status, end time in ms or None); None: unchanged."""

    points: list[Point] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)  # model name -> result row of a tagger to register
    recipe: dict[str, Any] | None = None  # the resolved one, to be stored as a file
    data: DataInput | None = None
    status: tuple[str, int | None] | None = None
    invalid: list[str] = field(default_factory=list)  # one message for each record that could not be mapped


def update_for(records: Iterable[dict[str, Any]]) -> MlflowUpdate:
    """Map records in order; a later tag or status replaces an earlier one, of a parameter the first value counts."""
    update = MlflowUpdate()
    for record in records:
        try:
            _ADD[record["kind"]](record, update)
        except (KeyError, TypeError, ValueError) as error:  # one invalid record must not keep the others away
            update.invalid.append(f"{type(error).__name__} {error} in {str(record)[:100]}")
    return update


def truncate(value: str, limit: int) -> str:
    """The value, or its beginning with a visible note; the resolved recipe has the whole value."""
    if len(value) <= limit:
        return value
    note = f" ... [cut: {len(value)} characters, all of them in the resolved recipe]"
    return value[: limit - len(note)] + note


def _add_run(record: dict[str, Any], to: MlflowUpdate) -> None:
    # a parameter of an MLflow run cannot change; a value that a resumed run changes becomes a tag
    changed = {key: value for key, value in record["params"].items() if to.params.get(key, value) != value}
    to.params = record["params"] | to.params
    to.tags |= {f"resumed.{key}": value for key, value in changed.items()}
    to.tags |= record["tags"] | {RUN_ID_TAG: record["run_id"], "antiphon.status": "running", "antiphon.error": ""}
    to.tags |= _source(record["tags"])
    to.recipe = record.get("resolved", to.recipe)
    to.status = ("RUNNING", None)


def _source(tags: dict[str, str]) -> dict[str, str]:
    """What MLflow shows as a run's source: the command without its options, and the code's commit.

    Of a name with slashes MLflow's pages show what follows the last one; the tag `command` has the whole command.
    """
    words = itertools.takewhile(lambda word: not word.startswith("-"), tags.get("command", "").split())
    named = {SOURCE_TAG: " ".join(PurePath(word).name for word in words), COMMIT_TAG: tags.get("git_commit", "")}
    return {key: value for key, value in named.items() if value} | {SOURCE_TYPE_TAG: "LOCAL"}


def note_of(record: dict[str, Any], path: str) -> str:
    """A run's description for MLflow, in Markdown; `path` is that of its page (`uri.run_path`)."""
    report, recipe = (run_page(path, file=file) for file in (REPORT_FILE, RECIPE_FILE))
    links = [] if "child" in record else [f"[Report]({report}), once the run has ended"]
    links += [f"[whole recipe]({recipe})"] if "resolved" in record else []
    lines = [record.get("about", ""), "; ".join(links)]
    if "resolved" in record:
        lines.append("Parameters are the values that differ from the defaults; a missing one is the default.")
    return "\n\n".join(filter(None, [*lines, f"Stored at `{record['tags'].get('storage', '')}`."]))


def _add_start(record: dict[str, Any], to: MlflowUpdate) -> None:
    to.tags["antiphon.attempt"] = str(record["attempt"])
    if record["step"]:
        to.tags["antiphon.resumed_from"] = str(record["step"])


def _add_data(record: dict[str, Any], to: MlflowUpdate) -> None:
    to.tags |= {
        "data.fingerprint": record["fingerprint"],
        "data.labels": record["labels"],
        "data.tags": str(len(record["tags"])),
        "data.quarantined": str(len(record["quarantined"])),
        **{f"data.clips.{part}": str(count) for part, count in record["clips"].items()},
    }
    profile = {"clips": record["clips"], "tags": len(record["tags"]), "labels": record["labels"]}
    to.data = DataInput(record["fingerprint"][:DIGEST_LENGTH], profile)


def _add_replaced(record: dict[str, Any], to: MlflowUpdate) -> None:
    to.tags["data.replaced"] = f"step {record['step']}: {record['clip_id']} by {record['by']}: {record['reason']}"


def _add_phase(record: dict[str, Any], to: MlflowUpdate) -> None:
    to.points.append(Point("phase", record["index"], record["t"], record["step"]))
    to.tags["antiphon.phase"] = f"{record['index'] + 1} of {record['of']}, trains {', '.join(record['trains'])}"


def _add_metrics(record: dict[str, Any], to: MlflowUpdate) -> None:
    to.points += [Point(key, float(value), record["t"], record["step"]) for key, value in record["values"].items()]


def _add_bad(record: dict[str, Any], to: MlflowUpdate) -> None:
    to.tags["antiphon.bad_numbers"] = f"step {record['step']}: {', '.join(record['models'])}"


def _add_checkpoint(record: dict[str, Any], to: MlflowUpdate) -> None:
    to.points.append(Point("checkpoint_seconds", record["seconds"], record["t"], record["step"]))
    to.tags["antiphon.checkpoint"] = record["name"]


def _add_result(record: dict[str, Any], to: MlflowUpdate) -> None:
    # without validation scores: the metric `<model>/val/...` exists already, and may be of other weights
    to.models |= record["models"]
    _add_control_result(record, to)


def _add_control_result(record: dict[str, Any], to: MlflowUpdate) -> None:
    """Scores of untaught controls, which the registry gets no versions of."""
    for model, result in record["models"].items():
        values = {f"{model}/test/{metric}": value for metric, value in result["test"].items()}
        values |= {f"{model}/{name}": result[name] for name in ("params", "steps_taught", "steps_learned")}
        to.points += [Point(key, value, record["t"], record["steps"]) for key, value in values.items()]
        to.tags |= {f"{model}.checkpoint": result["checkpoint"], f"{model}.weights_sha256": result["weights_sha256"]}


def _add_comparison(record: dict[str, Any], to: MlflowUpdate) -> None:
    for model, compared in record["models"].items():
        rows = {compared["metric"]: compared, **{name: compared[name] for name in OF_COMPARISON if name in compared}}
        for metric, row in rows.items():
            low, high = row["interval"]
            values = {"difference": row["difference"], "low": low, "high": high}
            prefix = f"{model}/compare/{metric}"
            to.points += [
                Point(f"{prefix}/{name}", value, record["t"], record["step"]) for name, value in values.items()
            ]


def _add_end(record: dict[str, Any], to: MlflowUpdate) -> None:
    to.tags |= {"antiphon.status": record["status"], "antiphon.error": record["error"]}
    to.status = (STATUS[record["status"]], record["t"])


_ADD = {
    "run": _add_run,
    "start": _add_start,
    "data": _add_data,
    "replaced": _add_replaced,
    "phase": _add_phase,
    "metrics": _add_metrics,
    "timings": _add_metrics,
    "cost": lambda record, to: None,  # summed by the study that the run belongs to
    "machine": _add_metrics,  # its step is a time, so samples of two attempts have different steps
    "bad": _add_bad,
    "checkpoint": _add_checkpoint,
    "result": _add_result,
    "control_result": _add_control_result,
    "comparison": _add_comparison,
    "worker-failed": lambda record, to: None,  # where the run goes on, its numbers say nothing of it
    "leaving": lambda record, to: None,
    "resizing": lambda record, to: None,
    "profiles": lambda record, to: None,  # a picture of the report
    "mistakes": lambda record, to: None,  # sounds of the report
    "workers": lambda record, to: None,  # the run's tag says how many were asked for
    "closed": lambda record, to: None,  # the worker's last record; the driver's `end` repeats its content
    "end": _add_end,
}
