"""One run in MLflow: found or created, and sent what it does not hold yet.

Runs in the replayer process, or in that of `antiphon track replay`; one process at a time writes a run (see
`log_reader.py`). MLflow is imported by the first call, not with this module: its environment variables are set first.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.storage.retry import describe_error
from orchestrator.tracking.log_reader import TrackingRefused, TrackingUnavailable, log_line
from orchestrator.tracking.mlflow_pages import describe_run, log_data, mark_as_training, store_recipe
from orchestrator.tracking.nested_runs import NestedRuns
from orchestrator.tracking.record_mapping import (
    NOTE_TAG,
    PARAM_LENGTH,
    RUN_ID_TAG,
    TAG_LENGTH,
    MlflowUpdate,
    Point,
    RunRecord,
    truncate,
    update_for,
)
from orchestrator.tracking.uri import artifact_folder, creation_lock, run_path, split_credentials
from workloads.runtime.event_log import read_event_log
from workloads.runtime.json_files import parse_json
from workloads.runtime.redaction import redacted


class MlflowRun:
    """One MLflow run, found by our run id or created, and a copy of what it holds.

    Contract: every method may be called again with the same records, after TrackingUnavailable or in the next process
    after a kill: what MLflow holds is read once, when the object is made, and only what is missing is sent. A point is
    identified by (key, step); the first value of a step counts.
    """

    def __init__(self, uri: str, run_record: dict[str, Any]) -> None:
        self.steps_held: defaultdict[str, set[int]] = defaultdict(set)  # metric key -> its steps
        self.points_sent = self.points_held = 0
        with _as_unavailable():
            from mlflow import MlflowClient

            from orchestrator.tracking.model_registry import ModelRegistry

            with creation_lock(uri):
                self.uri, self.client = uri, MlflowClient(tracking_uri=uri)
                experiment = self._experiment(run_record["experiment"], artifact_folder(uri))
                mark_as_training(self.client, experiment)
            run = self._find(experiment, run_record["run_id"]) or self._create(experiment, run_record)
            self.run_id: str = run.info.run_id
            self.path = run_path(experiment, self.run_id)
            self.registry = ModelRegistry(self.client, run, run_record)
            self.params: dict[str, str] = dict(run.data.params)
            self.tags: dict[str, str] = dict(run.data.tags)
            self.status = (run.info.status, run.info.end_time)
            self.data = {each.dataset.digest for each in run.inputs.dataset_inputs} if run.inputs else set()
            if NOTE_TAG not in self.tags:  # else it is ours, or what a person wrote in its place
                self._send_tags({NOTE_TAG: describe_run(run, run_record)})
            self.resolved: dict[str, Any] = run_record.get("resolved", {})
            for key in run.data.metrics:
                self.steps_held[key] = {metric.step for metric in self.client.get_metric_history(self.run_id, key)}

    def log_records(self, records: Sequence[dict[str, Any]]) -> None:
        """Send what MLflow does not hold yet, then register the models of a `result` record."""
        update = update_for(records)
        for problem in update.invalid:
            log_line(f"not a record that can be sent to MLflow: {problem}")
        with _as_unavailable():
            self._send_params(update)
            self._send_tags(update.tags)
            self._send_points(update.points)
            if update.data and update.data.digest not in self.data:
                log_data(self.client, self.run_id, update.data, self.resolved.get("data", {}))
                self.data.add(update.data.digest)
            self._set_status(update.status)
        if update.recipe:
            store_recipe(self.client, self.run_id, update.recipe)
        for model, row in update.models.items():  # last, so that a registry that is unavailable delays nothing else
            self.registry.register(model, row)

    def mark_killed(self, end_ms: int) -> None:
        """Set the status of a run whose driver ended without an `end` record."""
        with _as_unavailable():
            self._send_tags(
                {"antiphon.status": "killed", "antiphon.error": "the driver ended without recording its end"}
            )
            self._set_status(("KILLED", end_ms))

    def _experiment(self, name: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self.client.create_experiment(name, artifact_location=artifacts))
            except MlflowException:
                experiment = self.client.get_experiment_by_name(name)
                if experiment is None:  # else another run has just created it
                    raise
        if experiment.lifecycle_stage == "deleted":  # MLflow keeps its name, and takes no runs in it
            raise ValueError(
                f"experiment {name!r} (id {experiment.experiment_id}) at {self.uri} is deleted; restore it, `mlflow "
                f"experiments restore --experiment-id {experiment.experiment_id}` with MLFLOW_TRACKING_URI={self.uri}, "
                "or track elsewhere with --tracking"
            )
        return str(experiment.experiment_id)

    def _find(self, experiment: str, run_id: str) -> Any:
        condition = f"tags.`{RUN_ID_TAG}` = '{run_id}'"
        runs = self.client.search_runs([experiment], condition, order_by=["attributes.start_time ASC"])
        return next(iter(runs), None)

    def _create(self, experiment: str, record: dict[str, Any]) -> Any:
        tags = {RUN_ID_TAG: record["run_id"]}
        return self.client.create_run(experiment, start_time=record["t"], tags=tags, run_name=record["name"])

    def _send_params(self, update: MlflowUpdate) -> None:
        """Send new parameters; a value that differs from the one held becomes a tag of `update`."""
        from mlflow.entities import Param

        values = {key: truncate(value, PARAM_LENGTH) for key, value in update.params.items()}
        new = {key: value for key, value in values.items() if key not in self.params}
        for batch in _batches([Param(key, value) for key, value in new.items()], 100):
            self.client.log_batch(self.run_id, params=batch)
        self.params |= new
        update.tags |= {f"resumed.{key}": value for key, value in values.items() if self.params[key] != value}

    def _send_tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        new = {key: truncate(value, TAG_LENGTH) for key, value in tags.items()}.items() - self.tags.items()
        for batch in _batches([RunTag(key, value) for key, value in sorted(new)], 100):
            self.client.log_batch(self.run_id, tags=batch)
        self.tags |= dict(new)

    def _send_points(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        new: dict[tuple[str, int], Point] = {}
        for point in points:  # of a step that was trained twice, before and after a resume, the first value counts
            if point.step not in self.steps_held[point.key]:
                new.setdefault((point.key, point.step), point)
        for batch in _batches([Metric(p.key, p.value, p.t, p.step) for p in new.values()], 1000):
            self.client.log_batch(self.run_id, metrics=batch)  # MLflow stores an identical point once
        for key, step in new:
            self.steps_held[key].add(step)
        self.points_sent += len(new)
        self.points_held += len(points) - len(new)

    def _set_status(self, status: tuple[str, int | None] | None) -> None:
        if status is None or status == self.status:
            return
        name, end_ms = status
        if end_ms:
            self.client.set_terminated(self.run_id, name, end_ms)
        else:
            self.client.update_run(self.run_id, status=name)
        self.status = status


@contextmanager
def _as_unavailable() -> Iterator[None]:
    """Raise whatever MLflow, its HTTP client or its database raise as TrackingUnavailable, in one line.

    As TrackingRefused where a server answered with a status of 400 to 499, or a database cannot be used at all.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # MLflow does not catch those while it opens a database

    try:
        yield
    except (MlflowException, OSError, SQLAlchemyError) as error:
        kind = TrackingRefused if _is_refusal(error) else TrackingUnavailable
        raise kind(redacted(describe_error(error))[:500]) from error


def _is_refusal(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException, RestException
    from sqlalchemy.exc import DatabaseError, OperationalError

    # of a database: it is damaged, or of another version of MLflow; that it is locked or away is an OperationalError
    if isinstance(error, DatabaseError) and not isinstance(error, OperationalError):
        return True
    if isinstance(error, MlflowException) and "out-of-date database schema" in str(error):
        return True
    if isinstance(error, RestException):  # the server's own words
        return 400 <= error.get_http_status_code() < 500
    # of an answer without words MLflow keeps the status in the text alone
    return isinstance(error, MlflowException) and re.search(r"failed with error code 4\d\d\b", str(error)) is not None


def _batches(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def open_destination(event_log: Path, uri: str) -> NestedRuns:
    """The MLflow run that an event log's records go to, and one for every child run in it.

    The log's first record must be its `run` record. Raises TrackingUnavailable. A password in the URI goes into this
    process's environment.
    """
    server, credentials = split_credentials(uri)
    os.environ.update(credentials)

    def child_run_record(child: str) -> dict[str, Any]:
        return next(
            record for record in read_event_log(event_log) if record["kind"] == "run" and record.get("child") == child
        )

    with event_log.open("rb") as file:
        run_record = parse_json(file.readline(), f"{event_log}, line 1", RunRecord)
    return NestedRuns(run_record, lambda record: MlflowRun(server, record), child_run_record, event_log.parent)
