"""What a run leaves behind for people: the outcome, the report, the table. Reads the spool, changes nothing in it."""

import json
import os
import time
from typing import Any

from rich.table import Table

from orchestrator.runs.lease import seconds_since_boot
from orchestrator.runs.location import Place
from orchestrator.storage import object_store
from workloads.runtime.event_log import read_spool


def conclude(place: Place, command: str, *, publish: bool) -> dict[str, Any]:
    """The run's outcome, the object that --json prints; with `publish` also written, with report and records.

    The outcome is written last, since it says whether the run is done.
    """
    from orchestrator.reports.run_page import (
        write_report,  # Plotly costs a second; a mistake should be told before that
    )

    records = read_spool(place.spool)
    outcome = _outcome(place, records)
    if not publish:
        return outcome
    recipe = json.loads(object_store.get_text(object_store.join(place.uri, "recipe.json")))
    write_report(records, recipe, run_id=place.run_id, command=command, out=place.folder / "report.html")
    bad = [record for record in records if record["kind"] == "bad"]
    if bad:
        (place.folder / "bad-numbers.json").write_text(json.dumps(bad, indent=1))
    if not object_store.is_local(place.uri):
        share_spool(place)
        for name in ("report.html", "bad-numbers.json"):
            if (place.folder / name).exists():
                object_store.put_text(object_store.join(place.uri, name), (place.folder / name).read_text())
    object_store.put_text(object_store.join(place.uri, "outcome.json"), json.dumps(outcome, indent=1))
    return outcome


def share_spool(place: Place) -> None:
    """Put what was recorded so far where the run's other things are: at its beginning, that it began and how."""
    if not object_store.is_local(place.uri):
        object_store.put_text(object_store.join(place.uri, "spool.jsonl"), place.spool.read_text())


def _outcome(place: Place, records: list[dict[str, Any]]) -> dict[str, Any]:
    end = records[-1]
    starts = [number for number, record in enumerate(records) if record["kind"] == "start"]
    attempt = records[starts[-1] :] if starts else []
    result: dict[str, Any] = next((record for record in attempt if record["kind"] == "result"), {})
    resumed_from = attempt[0]["step"] if attempt else 0
    last = max((record["step"] for record in attempt if record["kind"] in ("metrics", "checkpoint")), default=0)
    shown = ("params", "steps_taught", "steps_learned", "val", "test", "checkpoint", "weights_sha256")
    return {
        "run_id": place.run_id,
        "status": end["status"],
        "error": end["error"],
        "mistake": end["mistake"],
        "seconds": round(time.clock_gettime(time.CLOCK_BOOTTIME) - seconds_since_boot(os.getpid()), 1),
        "report": object_store.join(place.uri, "report.html"),
        "tracking": place.tracking,
        "resumed_from_step": resumed_from,
        "steps_run": max(result.get("steps", last) - resumed_from, 0),
        "models": {name: {key: row[key] for key in shown} for name, row in result.get("models", {}).items()},
    }


def table(outcome: dict[str, Any]) -> Table:
    """The run's headline: one row a model."""
    rows = outcome["models"]
    metric = "accuracy" if any("accuracy" in row["val"] for row in rows.values()) else "mAP"
    shown = Table(title=f"{outcome['run_id']}: {outcome['status']} in {outcome['seconds']:.0f} s")
    columns = ("model", "taught", "learned", f"val {metric}", f"test {metric}", "parameters", "checkpoint")
    for column in columns:
        shown.add_column(column, overflow="fold", justify="left" if column in ("model", "checkpoint") else "right")
    for name, row in rows.items():
        scores = [f"{row[part][metric]:.3f}" if row[part] else "-" for part in ("val", "test")]
        shown.add_row(
            name,
            str(row["steps_taught"]),
            str(row["steps_learned"]),
            *scores,
            f"{row['params']:,}",
            row["checkpoint"],
        )
    return shown
