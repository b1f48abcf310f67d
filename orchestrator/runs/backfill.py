"""Sending a run's records to MLflow afterwards, in this process: `antiphon track replay`.

Finds the records and the MLflow they belong to. Safe to repeat: points that MLflow holds are not sent again. MLflow is
imported by the call, after its environment variables are set.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from orchestrator.runs.records import records_of
from orchestrator.storage import object_store
from orchestrator.tracking.log_reader import Cursor, send_pending
from orchestrator.tracking.mlflow_pages import store_report
from orchestrator.tracking.mlflow_run import open_destination
from orchestrator.tracking.record_mapping import REPORT_FILE, RunRecord
from orchestrator.tracking.replayer import MLFLOW_ENVIRONMENT
from orchestrator.tracking.uri import NONE, require_driver, with_secret
from workloads.runtime.event_log import EVENT_LOG
from workloads.runtime.json_files import json_text, parse_json
from workloads.runtime.opener import require_own_file
from workloads.runtime.redaction import redacted
from workloads.runtime.scratch import scratch_folder

LOCK_S = 5.0  # how long to wait for a replayer process that is about to finish
SILENT_S = 120.0  # a living driver appends a system metrics record every ten seconds


def replay_run(run: str, uri: str = "") -> dict[str, Any]:
    """Send all records of a run, a folder or URI, to the MLflow at `uri` (empty: where the run was tracked).

    Returns run, mlflow_run_id, tracking, points_sent, and points_held (MLflow had those already). Raises ValueError for
    the user's mistakes, TrackingUnavailable when MLflow does not take everything.
    """
    with _local_event_log(run) as event_log:
        with require_own_file(event_log).open("rb") as file:
            record = parse_json(file.readline(), f"{event_log}, line 1", RunRecord)
        uri = uri or with_secret(_recorded_tracking(run, record))
        require_driver(uri)
        os.environ.update(MLFLOW_ENVIRONMENT)
        destination = open_destination(event_log, uri)
        cursor = Cursor(event_log, f"{redacted(uri)} {destination.run_id}")
        send_pending(cursor, destination, as_one_batch=True)  # so that a finished run is not shown as running meanwhile
        report = event_log.with_name(REPORT_FILE)
        if report.is_file() and cursor.log_has_ended(0):
            store_report(event_log, uri, report)
        silent_s = time.time() - cursor.last["t"] / 1000
        if object_store.is_local(run) and not cursor.log_has_ended(0) and silent_s > SILENT_S:
            destination.mark_killed(cursor.last["t"])
    return {
        "run": record["run_id"],
        "mlflow_run_id": destination.run_id,
        "tracking": redacted(uri),
        "points_sent": destination.points_sent,
        "points_held": destination.points_held,
    }


@contextmanager
def _local_event_log(run: str) -> Iterator[Path]:
    """The run's event log as a local file that no replayer process sends meanwhile; a copy of a remote one."""
    if not object_store.exists(object_store.join(run, EVENT_LOG)):
        raise ValueError(f"run {run!r}: no {EVENT_LOG} there; give a run's folder or URI, STORAGE/RUN_ID")
    if not object_store.is_local(run):
        with scratch_folder() as scratch:
            copy = scratch / EVENT_LOG
            copy.write_text("".join(json_text(record) + "\n" for record in records_of(run)))
            yield copy
        return
    event_log = object_store.local_path(run) / EVENT_LOG
    try:
        with FileLock(f"{event_log}.lock", timeout=LOCK_S):
            yield event_log
    except Timeout:
        log = event_log.with_name("tracking.log")
        raise ValueError(
            f"run {run!r}: its replayer process is still sending records (log: {log}); wait until it has finished"
        ) from None


def _recorded_tracking(run: str, record: dict[str, Any]) -> str:
    """The MLflow URI in the run's outcome, else in its first record; ValueError for a run without tracking."""
    outcome = object_store.join(run, "outcome.json")
    uri = ""
    if object_store.exists(outcome):
        uri = object_store.read_json(outcome).get("tracking", "")
    uri = uri or record["tags"].get("tracking", "")
    if uri in ("", NONE):
        raise ValueError(f"run {run!r}: was not tracked anywhere; give the MLflow to send it to: --tracking URI")
    return str(uri)
