"""What a run has recorded: its event log, and the copy of it that each checkpoint carries."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from orchestrator.recipes.chosen import chosen_parameters
from orchestrator.recipes.loader import resolve
from orchestrator.runs.checkpoint_store import resume_order
from orchestrator.runs.location import RunLocation
from orchestrator.storage import object_store, published_folders
from workloads.config.recipe import Recipe
from workloads.runtime.checkpoint_store import MARKER
from workloads.runtime.event_log import EVENT_LOG, EventLog, parse_event_log, read_event_log
from workloads.runtime.json_files import parse_marker
from workloads.runtime.redaction import redacted
from workloads.runtime.version import VERSION


def checkpointed_records(run_uri: str) -> list[dict[str, Any]]:
    """All records up to the run's last intact checkpoint, which carries them; the driver's own are not among them."""
    checkpoints = object_store.join(run_uri, "checkpoints")
    for name in resume_order(published_folders.list_committed(checkpoints)):
        try:
            marker, copy = (object_store.join(checkpoints, name, file) for file in (MARKER, EVENT_LOG))
            digest = parse_marker(object_store.get_bytes(marker), marker)[EVENT_LOG]
            text = object_store.get_bytes(copy)
        except (ValueError, KeyError, FileNotFoundError):  # damaged: resuming from it reports that
            continue
        if hashlib.sha256(text).hexdigest() == digest:
            return parse_event_log(text, copy)
    return []


def records_of(run_uri: str) -> list[dict[str, Any]]:
    """All records of a run that can be read from its storage: its event log, then what only a checkpoint holds."""
    uri, records = object_store.join(run_uri, EVENT_LOG), []
    if object_store.exists(uri):
        records = parse_event_log(object_store.get_bytes(uri), uri)
    return records + _missing_from(records, checkpointed_records(run_uri))


def recovered_records(location: RunLocation) -> list[dict[str, Any]]:
    """Records in the run's storage that this machine's event log lacks: another host's, or those of a lost log."""
    local = read_event_log(location.event_log) if location.event_log.exists() else []
    return _missing_from(local, records_of(location.uri))


def continue_event_log(event_log: EventLog, location: RunLocation, own_record: dict[str, Any]) -> None:
    """Append what earlier attempts have recorded elsewhere, then this attempt's own `run` record.

    Called by a driver before its first record: it publishes the event log as a whole, so a record that it did not take
    over from the published one would be lost. An event log begins with a `run` record: this attempt's own, where those
    of earlier ones are known from a checkpoint only, which has none.
    """
    recovered = recovered_records(location)
    has_begun = event_log.path.stat().st_size > 0 or (recovered and recovered[0]["kind"] == "run")
    for record in [*recovered, own_record] if has_begun else [own_record, *recovered]:
        event_log.append(record)


def _missing_from(known: list[dict[str, Any]], records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines = {json.dumps(record) for record in known}
    return [record for record in records if json.dumps(record) not in lines]


def run_record(recipe: Recipe, location: RunLocation, *, command: str, workers: str, options: str) -> dict[str, Any]:
    """The record that an event log begins with, and that each attempt adds again.

    `options` are those of a command that repeats the run from its recipe.json.
    """
    return {
        "kind": "run",
        "run_id": location.run_id,
        "experiment": "antiphon",
        "name": recipe.name,
        "about": recipe.about,
        "params": chosen_parameters(recipe),
        "resolved": resolve(recipe),
        "tags": {
            "antiphon_version": VERSION,
            "git_commit": git_commit(),
            "schedule": recipe.schedule.kind,
            "command": command,
            "options": options,
            "storage": location.uri,
            "tracking": redacted(location.tracking),
            "workers": workers,
        },
    }


def end_record(status: str, error: str = "", *, mistake: bool = False) -> dict[str, Any]:
    """The record that ends an event log; `mistake` marks an error that the user can mend."""
    return {"kind": "end", "status": status, "error": error, "mistake": mistake}


def git_commit() -> str:
    """The commit of the code that runs; empty for an installed copy, or where there is no git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or not shutil.which("git"):
        return ""
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
