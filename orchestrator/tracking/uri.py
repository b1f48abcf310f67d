"""The URIs that `--tracking` takes. Does not depend on MLflow.

They alone may hold a secret. Records and messages have it replaced (`workloads/runtime/redaction.py`), so whoever sends
records again gets the URI from an option or from the environment.
"""

import os
import shlex
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from filelock import FileLock

from workloads.runtime.redaction import REDACTED, redacted

NONE = "none"
VARIABLE = "MLFLOW_TRACKING_URI"
# MLflow 3.17 shows an experiment as training of models, or as an application of generative AI, by this parameter of
# an address; without it by what the browser was last switched to, at first the latter.
TRAINING_VIEW = "workflowType=machine_learning"
CREATED_S = 60.0  # how long the creation of a database by another process is waited for


def sqlite_uri(folder: Path) -> str:
    """The default, without a server: one database file in `folder`, artifacts beside it."""
    return f"sqlite:///{folder.resolve() / 'mlflow.db'}"


def absolute_uri(uri: str) -> str:
    """The URI with the path of a SQLite database made absolute, so that it means the same in every folder."""
    path, mark, options = uri.removeprefix("sqlite:///").partition("?")
    if not uri.startswith("sqlite:///") or not path or path == ":memory:":
        return uri
    return f"sqlite:///{Path(path).absolute()}{mark}{options}"


def require_driver(uri: str) -> None:
    """Raise ValueError for a PostgreSQL database where the driver that SQLAlchemy takes for it is not installed."""
    if uri.partition(":")[0] in ("postgresql", "postgresql+psycopg2") and find_spec("psycopg2") is None:
        raise ValueError(
            f"--tracking {redacted(uri)!r}: a PostgreSQL database needs psycopg2, which is not installed: "
            "pip install 'antiphon[postgres]'"
        )


def with_secret(recorded: str) -> str:
    """A URI from a record with the secret that was replaced there, if the environment's is the same URI.

    ValueError where it is not: the secret is stored nowhere.
    """
    if REDACTED not in recorded:
        return recorded
    given = os.environ.get(VARIABLE, "")
    if redacted(given) != recorded:
        raise ValueError(
            f"tracking {recorded!r}: the secret in this URI is not stored; give the URI again, with --tracking or "
            f"in {VARIABLE}"
        )
    return given


def split_credentials(uri: str) -> tuple[str, dict[str, str]]:
    """An http(s) URI without user name and password, and the environment from which MLflow takes these.

    MLflow prints addresses of runs, made of the whole URI. What the URI leaves empty keeps its value in the
    environment: MLflow sends a user name only with a password. Other URIs are returned as they are.
    """
    parts = urlsplit(uri)
    user_info, at, host = parts.netloc.rpartition("@")
    if not at or parts.scheme not in ("http", "https"):
        return uri, {}
    user, _, password = user_info.partition(":")
    credentials = {"MLFLOW_TRACKING_USERNAME": unquote(user), "MLFLOW_TRACKING_PASSWORD": unquote(password)}
    return urlunsplit(parts._replace(netloc=host)), {name: value for name, value in credentials.items() if value}


def creation_lock(uri: str) -> AbstractContextManager[Any]:
    """Held while a SQLite database may be created: MLflow does that table by table, and fails where two processes do.

    Raises TimeoutError where another process holds it for `CREATED_S` seconds. Of a server nothing is locked.
    """
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    if not uri.startswith("sqlite:///") or not path or path == ":memory:":
        return nullcontext()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock", timeout=CREATED_S)


def ui_command(uri: str) -> str:
    """The shell command that opens MLflow's pages on `uri`; empty where nothing is tracked."""
    if uri == NONE:
        return ""
    if uri.startswith(("http://", "https://")):
        return shlex.join([sys.executable, "-m", "webbrowser", training_pages(split_credentials(uri)[0])])
    return shlex.join([str(Path(sys.executable).with_name("mlflow")), "ui", "--backend-store-uri", uri])


def training_pages(server: str) -> str:
    """The address of an MLflow server's experiments, as training of models."""
    return f"{server.rstrip('/')}/#/experiments?{TRAINING_VIEW}"


def run_path(experiment_id: str, run_id: str) -> str:
    """The place of a run's page among MLflow's. (By "runs/ID" alone MLflow finds it too, but drops TRAINING_VIEW.)"""
    return f"experiments/{experiment_id}/runs/{run_id}"


def run_page(path: str, *, server: str = "", file: str = "") -> str:
    """The address of a run's page, `path`, as training of models; of one of its files, where `file` is given.

    Without a server it is for links in MLflow's own pages.
    """
    root = f"{server.rstrip('/')}/" if server else ""
    return f"{root}#/{path}{'/artifacts/' if file else ''}{file}?{TRAINING_VIEW}"


def artifact_folder(uri: str) -> str | None:
    """The URI of the folder for a SQLite database's artifacts, created if missing; None: the server decides."""
    if not uri.startswith("sqlite:///"):
        return None
    folder = Path(uri.removeprefix("sqlite:///")).resolve().parent / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.as_uri()
