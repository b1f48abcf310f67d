"""Where the files of a run or a search are: the published ones, and the driver's own."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.storage import object_store
from orchestrator.tracking.uri import absolute_uri, require_driver, sqlite_uri
from workloads.runtime.event_log import EVENT_LOG

RESERVED = ("mlflow.db", "artifacts")  # what the default tracking keeps beside the runs
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class RunLocation:
    """Published files lie under `uri`, the driver's own (event log, logs, report) in the local `folder`.

    With a local storage the two are the same folder; else `folder` repeats the URI's path, so that runs of the same id
    in two storages do not share one.
    """

    run_id: str
    uri: str
    folder: Path
    tracking: str = field(repr=False)  # MLflow URI, which may hold a password (`redacted` goes into records); or "none"

    @property
    def event_log(self) -> Path:
        return self.folder / EVENT_LOG

    def require_new(self, first_file: str) -> None:
        """Raise ValueError where the driver's folder holds an event log of a run that the storage does not know.

        It is that of a run in a storage that was emptied since, or in another one at the same URI: its records must not
        become part of the run whose first published file, called `first_file`, is about to be created.
        """
        if self.event_log.exists() and not object_store.exists(object_store.join(self.uri, first_file)):
            raise ValueError(
                f"run id {self.run_id!r}: {self.event_log} is the event log of another run called so; choose another "
                "id, or move that folder away"
            )


def location_of(storage: str, run_id: str, tracking: str) -> RunLocation:
    """The location of a run called `run_id` under the URI `storage`; `tracking` "" means SQLite beside the runs.

    Raises ValueError for an id that cannot be a folder's name, or is that of another file there, and for tracking that
    needs a package that is not installed.
    """
    if not NAME.fullmatch(run_id):
        raise ValueError(
            f"run id {run_id!r}: must be letters, digits, '.', '_' and '-', and begin with a letter or digit"
        )
    if run_id.startswith(RESERVED):
        raise ValueError(f"run id {run_id!r}: must not begin with {' or '.join(RESERVED)}, which are MLflow's")
    require_driver(tracking)
    if object_store.is_local(storage):
        local = object_store.local_path(storage)
        return RunLocation(run_id, str(local / run_id), local / run_id, absolute_uri(tracking) or sqlite_uri(local))
    cache, uri = Path("~/.cache/antiphon/runs").expanduser(), object_store.join(storage, run_id)
    path = uri.replace("://", "/")
    if ".." in path.split("/"):
        raise ValueError(f"storage {storage!r}: must not contain '..'; give the bucket's path as it is")
    return RunLocation(run_id, uri, cache / path, absolute_uri(tracking) or sqlite_uri(cache))
