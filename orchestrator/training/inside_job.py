"""What differs for a command that runs as a Ray job: what it would keep in its folder is gone when the job ends.

Ray unpacks a job's files into a scratch folder of the node that the driver happens to be on; a repeated job may be on
another one. Imports no Ray.
"""

import json
import os
from pathlib import Path

from orchestrator.storage import object_store
from orchestrator.tracking.uri import NONE

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # the name of the variable that Ray sets for a job's command


def submission_id() -> str:
    """The id of the Ray job that this process belongs to; empty outside of jobs."""
    config = os.environ.get(JOB_CONFIG)
    return str(json.loads(config).get("metadata", {}).get("job_submission_id", "unnamed")) if config else ""


def require_lasting_storage(uri: str, option: str, *, job: str | None = None) -> None:
    """Raise ValueError for a relative folder within a Ray job: this process's, or one that is to be submitted."""
    job = submission_id() if job is None else job
    if job and object_store.is_local(uri) and not Path(uri.removeprefix("file://")).is_absolute():
        raise ValueError(
            f"{option} {uri!r}: within Ray job {job} this is a folder that is removed with the job; give "
            "s3://bucket/prefix, or the absolute path of a folder that all nodes share"
        )


def require_lasting_tracking(uri: str, *, job: str | None = None) -> None:
    """Raise ValueError within a Ray job where MLflow's records would go to a database on the driver's node."""
    job = submission_id() if job is None else job
    if job and (not uri or uri.startswith("sqlite:") or (uri != NONE and object_store.is_local(uri))):
        raise ValueError(
            f"--tracking {uri or 'sqlite (the default)'}: within Ray job {job} the database would stay on the driver's "
            f"node; give the address of an MLflow server (or MLFLOW_TRACKING_URI), or {NONE}"
        )
