"""The outcome of a run, computed from its event log. Writes no report (`reports/write.py` does, afterwards)."""

from typing import Any

from orchestrator.runs.location import RunLocation
from orchestrator.runs.process_identity import seconds_running
from orchestrator.storage import object_store
from workloads.runtime.atomic_files import replace_text
from workloads.runtime.event_log import EVENT_LOG, end_of, read_event_log
from workloads.runtime.json_files import json_text
from workloads.runtime.redaction import redacted

BAD_NUMBERS = "bad-numbers.json"
MODEL_KEYS = ("params", "steps_taught", "steps_learned", "val", "test", "checkpoint", "weights_sha256")


def conclude(location: RunLocation, *, publish: bool) -> dict[str, Any]:
    """The run's outcome, the object that --json prints; with `publish` also written to the run's folder or URI.

    Called by the driver once its workers have ended. `outcome.json` is written last, after the records: it holds
    whether the run is done, so a kill before it leaves a run that `--resume` continues.
    """
    records = read_event_log(location.event_log)
    outcome = _outcome(location, records)
    if not publish:
        return outcome
    bad = [record for record in records if record["kind"] == "bad"]
    if bad:
        replace_text(location.folder / BAD_NUMBERS, json_text(bad, indent=1))
    if not object_store.is_local(location.uri):
        publish_event_log(location)
        if bad:
            object_store.put_text(
                object_store.join(location.uri, BAD_NUMBERS), (location.folder / BAD_NUMBERS).read_text()
            )
    object_store.put_text(object_store.join(location.uri, "outcome.json"), json_text(outcome, indent=1))
    return outcome


def publish_event_log(location: RunLocation) -> None:
    """Copy the event log to the run's storage, if that is elsewhere; called at the start and at the end of a driver."""
    if not object_store.is_local(location.uri):
        object_store.put_text(object_store.join(location.uri, EVENT_LOG), location.event_log.read_text())


def _outcome(location: RunLocation, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The outcome by the last attempt's records; it has ended. `seconds`: of the records of that attempt."""
    end = end_of(records)
    assert end is not None, "the driver records the end before it concludes"
    began = [record["t"] for record in records if record["kind"] == "run" and "child" not in record][-1]
    starts = [number for number, record in enumerate(records) if record["kind"] == "start"]
    attempt = records[starts[-1] :] if starts else []
    result: dict[str, Any] = next((record for record in attempt if record["kind"] == "result"), {})
    resumed_from = attempt[0]["step"] if attempt else 0
    last_step = max((record["step"] for record in attempt if record["kind"] in ("metrics", "checkpoint")), default=0)
    return {
        "run_id": location.run_id,
        "status": end["status"],
        "error": end["error"],
        "mistake": end["mistake"],
        "seconds": round(_seconds(began, end["t"]), 1),
        "report": object_store.join(location.uri, "report.html"),
        "tracking": redacted(location.tracking),
        "resumed_from_step": resumed_from,
        "steps_run": max(result.get("steps", last_step) - resumed_from, 0),
        "compare": next((record["models"] for record in attempt[::-1] if record["kind"] == "comparison"), {}),
        "models": {name: {key: row[key] for key in MODEL_KEYS} for name, row in result.get("models", {}).items()},
    }


def _seconds(began_ms: int, ended_ms: int) -> float:
    """By the records, as a process may train several runs; of the process where the clock was set meanwhile."""
    running = seconds_running()
    by_records = (ended_ms - began_ms) / 1000
    return by_records if 0 < by_records < running else running
