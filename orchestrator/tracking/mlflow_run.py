"""One run in MLflow: found or created, and given what it does not hold yet. Imported by the replaying process only."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.tracking.log_reader import TrackingUnavailable, say
from orchestrator.tracking.nested_runs import NestedRuns
from orchestrator.tracking.record_mapping import PARAM_LENGTH, RUN_ID_TAG, TAG_LENGTH, Delivery, Point, cut, delivery
from orchestrator.tracking.uri import artifact_folder
from workloads.runtime.event_log import read_event_log


class MlflowRun:
    """One MLflow run, found by our run id or created, and what it holds. All methods raise TrackingUnavailable."""

    def __init__(self, uri: str, run_record: dict[str, Any]) -> None:
        self.held: defaultdict[str, set[int]] = defaultdict(set)  # curve -> its steps
        self.points_sent = self.points_held = 0
        with _away():
            from mlflow import MlflowClient

            from orchestrator.tracking.model_registry import Registry

            self.client = MlflowClient(tracking_uri=uri)
            experiment = self._experiment(run_record["experiment"], artifact_folder(uri))
            run = self._find(experiment, run_record["run_id"]) or self._create(experiment, run_record)
            self.run_id: str = run.info.run_id
            self.registry = Registry(self.client, run, run_record)
            self.params: dict[str, str] = dict(run.data.params)
            self.tags: dict[str, str] = dict(run.data.tags)
            self.status = (run.info.status, run.info.end_time)
            for key in run.data.metrics:
                self.held[key] = {metric.step for metric in self.client.get_metric_history(self.run_id, key)}

    def accept(self, records: Sequence[dict[str, Any]]) -> None:
        """Send what is not there yet; MLflow stores a point once, however often it is sent."""
        parcel = delivery(records)
        for words in parcel.bad:
            say(f"not a record that MLflow can be told of: {words}")
        with _away():
            self._send_params(parcel)
            self._send_tags(parcel.tags)
            self._send_points(parcel.points)
            self._set_status(parcel.status)
        for model, row in parcel.models.items():  # last: everything else has arrived while this is tried again
            self.registry.add(model, row)

    def lost_writer(self, end_ms: int) -> None:
        """Say of a run that its driver is gone and never said how it ended."""
        with _away():
            self._send_tags({"antiphon.status": "killed", "antiphon.error": "the driver ended without a word"})
            self._set_status(("KILLED", end_ms))

    def _experiment(self, name: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        known = self.client.get_experiment_by_name(name)
        if known is None:
            try:
                return str(self.client.create_experiment(name, artifact_location=artifacts))
            except MlflowException:
                known = self.client.get_experiment_by_name(name)
                if known is None:  # else another run has just created it
                    raise
        return str(known.experiment_id)

    def _find(self, experiment: str, run_id: str) -> Any:
        which = f"tags.`{RUN_ID_TAG}` = '{run_id}'"
        return next(iter(self.client.search_runs([experiment], which, order_by=["attributes.start_time ASC"])), None)

    def _create(self, experiment: str, record: dict[str, Any]) -> Any:
        tags = {RUN_ID_TAG: record["run_id"]}
        return self.client.create_run(experiment, start_time=record["t"], tags=tags, run_name=record["name"])

    def _send_params(self, parcel: Delivery) -> None:
        from mlflow.entities import Param

        values = {key: cut(value, PARAM_LENGTH) for key, value in parcel.params.items()}
        fresh = {key: value for key, value in values.items() if key not in self.params}
        for some in _parts([Param(key, value) for key, value in fresh.items()], 100):
            self.client.log_batch(self.run_id, params=some)
        self.params |= fresh
        parcel.tags |= {f"resumed.{key}": value for key, value in values.items() if self.params[key] != value}

    def _send_tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        fresh = {key: cut(value, TAG_LENGTH) for key, value in tags.items()}.items() - self.tags.items()
        for some in _parts([RunTag(key, value) for key, value in sorted(fresh)], 100):
            self.client.log_batch(self.run_id, tags=some)
        self.tags |= dict(fresh)

    def _send_points(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        fresh: dict[tuple[str, int], Point] = {}
        for point in points:  # of a step done twice, before and after a resume, the first counts
            if point.step not in self.held[point.key]:
                fresh.setdefault((point.key, point.step), point)
        for some in _parts([Metric(p.key, p.value, p.t, p.step) for p in fresh.values()], 1000):
            self.client.log_batch(self.run_id, metrics=some)
        for key, step in fresh:
            self.held[key].add(step)
        self.points_sent += len(fresh)
        self.points_held += len(points) - len(fresh)

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
def _away() -> Iterator[None]:
    """Turn whatever MLflow, its HTTP client or its database raise into TrackingUnavailable, in one line."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # MLflow lets those through while it opens a database

    try:
        yield
    except (MlflowException, OSError, SQLAlchemyError) as error:
        raise TrackingUnavailable(" ".join(str(error).split())[:500]) from error


def _parts(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def open_destination(event_log: Path, uri: str) -> NestedRuns:
    """The MLflow run that an event log's records go to, and one for every child. Raises TrackingUnavailable."""

    def child_run_record(child: str) -> dict[str, Any]:
        return next(
            record for record in read_event_log(event_log) if record["kind"] == "run" and record.get("child") == child
        )

    with event_log.open("rb") as file:
        return NestedRuns(
            json.loads(file.readline()), lambda record: MlflowRun(uri, record), child_run_record, event_log.parent
        )
