"""Where the things of a run or a search are: the published ones, and the driver's own files."""

import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.storage import object_store
from orchestrator.tracking.uri import sqlite_uri


@dataclass(frozen=True)
class RunLocation:
    """Where a run's things are: published ones under `uri`, the driver's own files in `folder`."""

    run_id: str
    uri: str
    folder: Path
    tracking: str

    @property
    def event_log(self) -> Path:
        return self.folder / "events.jsonl"


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def location_of(storage: str, run_id: str, tracked: str) -> RunLocation:
    """Where the things of a run called `run_id` go; ValueError for a name that is none."""
    if not NAME.fullmatch(run_id):
        raise ValueError(
            f"run id {run_id!r}: must be letters, digits, '.', '_' and '-', and begin with a letter or digit"
        )
    if object_store.is_local(storage):
        local = object_store.local_path(storage)
        uri = str(local / run_id)
    else:
        local = Path("~/.cache/antiphon/runs").expanduser()
        uri = object_store.join(storage, run_id)
    return RunLocation(run_id, uri, local / run_id, tracked or sqlite_uri(local))
