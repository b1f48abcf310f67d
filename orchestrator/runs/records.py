"""What a run has recorded: its event log, and the copy of it that its last checkpoint carries."""

import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.recipes.loader import flatten, resolve
from orchestrator.runs.checkpoint_store import ordered
from orchestrator.runs.location import RunLocation
from orchestrator.storage import object_store
from workloads.config.recipe import Recipe
from workloads.runtime.event_log import read_event_log
from workloads.runtime.opener import HISTORY, MARKER


def history(run_uri: str) -> list[dict[str, Any]]:
    """Everything the run said up to its last checkpoint, which carries it; the driver's own records are not in it."""
    checkpoints = object_store.join(run_uri, "checkpoints")
    for name in ordered(object_store.list_committed(checkpoints)):
        try:
            digest = json.loads(object_store.get_text(object_store.join(checkpoints, name, MARKER)))["files"][HISTORY]
            text = object_store.get_text(object_store.join(checkpoints, name, HISTORY)).encode()
        except (ValueError, KeyError, FileNotFoundError):  # damaged: whoever resumes says so, loudly
            continue
        if hashlib.sha256(text).hexdigest() == digest:
            return [json.loads(line) for line in text.splitlines()]
    return []


def records_of(run_uri: str) -> list[dict[str, Any]]:
    """All that can be read of a run where it is stored: its spool, and what its last checkpoint says beyond that."""
    uri, records = object_store.join(run_uri, "events.jsonl"), []
    if object_store.exists(uri):
        with tempfile.TemporaryDirectory(prefix="antiphon-") as scratch:
            copy = Path(scratch) / "events.jsonl"
            copy.write_text(object_store.get_text(uri))
            records = read_event_log(copy)
    known = {json.dumps(record) for record in records}
    return records + [record for record in history(run_uri) if json.dumps(record) not in known]


def recovered(location: RunLocation) -> list[dict[str, Any]]:
    """What this machine's spool lacks of the run's history: it may be lost, or behind the last checkpoint."""
    known = (
        {json.dumps(record) for record in read_event_log(location.event_log)} if location.event_log.exists() else set()
    )
    return [record for record in history(location.uri) if json.dumps(record) not in known]


def run_record(recipe: Recipe, location: RunLocation, *, command: str, workers: int) -> dict[str, Any]:
    """What a run's spool begins with, and what every attempt adds anew."""
    return {
        "kind": "run",
        "run_id": location.run_id,
        "experiment": "antiphon",
        "name": recipe.name,
        "params": flatten(resolve(recipe)),
        "tags": {
            "git_commit": git_commit(),
            "schedule": recipe.schedule.kind,
            "command": command,
            "storage": location.uri,
            "tracking": location.tracking,
            "workers": str(workers),
        },
    }


def git_commit() -> str:
    """The commit of the code that runs; empty for an installed copy, or where there is no git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or not shutil.which("git"):
        return ""
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def end_record(status: str, error: str = "", *, mistake: bool = False) -> dict[str, Any]:
    return {"kind": "end", "status": status, "error": error, "mistake": mistake}
