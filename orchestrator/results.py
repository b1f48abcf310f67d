"""What a run leaves behind for people: the outcome, the report, the table. Reads the spool, changes nothing in it."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from orchestrator import storage
from workloads.spool import read_spool


@dataclass(frozen=True)
class Place:
    """Where a run's things are: published ones under `uri`, the driver's own files in `folder`."""

    run_id: str
    uri: str
    folder: Path
    tracking: str

    @property
    def spool(self) -> Path:
        return self.folder / "spool.jsonl"


def conclude(place: Place, command: str) -> dict[str, Any]:
    """Write the report and publish the run's records; returns the outcome (the object that --json prints)."""
    from orchestrator.report import write_report  # Plotly costs a second; a mistake should be told before that

    records = read_spool(place.spool)
    recipe = json.loads(storage.get_text(storage.join(place.uri, "recipe.json")))
    report = place.folder / "report.html"
    write_report(records, recipe, run_id=place.run_id, command=command, out=report)
    outcome = _outcome(place, records)
    (place.folder / "outcome.json").write_text(json.dumps(outcome, indent=1))
    if not storage.is_local(place.uri):
        for path in (place.spool, report, place.folder / "outcome.json"):
            storage.put_text(storage.join(place.uri, path.name), path.read_text())
    return outcome


def _outcome(place: Place, records: list[dict[str, Any]]) -> dict[str, Any]:
    end = records[-1]
    result: dict[str, Any] = next((record for record in reversed(records) if record["kind"] == "result"), {})
    steps = [record["step"] for record in records if record["kind"] in ("metrics", "checkpoint")]
    resumed_from = result.get("resumed_from_step", 0)
    shown = ("params", "steps_taught", "steps_learned", "val", "test", "checkpoint", "weights_sha256")
    return {
        "run_id": place.run_id,
        "status": end["status"],
        "error": end["error"],
        "mistake": end["mistake"],
        "seconds": round(time.time() - psutil.Process().create_time(), 1),  # of the whole command
        "report": storage.join(place.uri, "report.html"),
        "tracking": place.tracking,
        "resumed_from_step": resumed_from,
        "steps_run": result.get("steps", max(steps, default=0)) - resumed_from,
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
