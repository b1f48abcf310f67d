"""The URIs that `--tracking` takes. Does not depend on MLflow."""

import shlex
import sys
from pathlib import Path

NONE = "none"


def sqlite_uri(folder: Path) -> str:
    """The default, without a server: one database file in `folder`, artifacts beside it."""
    return f"sqlite:///{folder.resolve() / 'mlflow.db'}"


def ui_command(uri: str) -> str:
    """The shell command that opens MLflow's pages on `uri`; empty where nothing is tracked."""
    if uri == NONE:
        return ""
    if uri.startswith(("http://", "https://")):
        return shlex.join([sys.executable, "-m", "webbrowser", uri])
    return shlex.join([str(Path(sys.executable).with_name("mlflow")), "ui", "--backend-store-uri", uri])


def artifact_folder(uri: str) -> str | None:
    """The URI of the folder for a SQLite database's artifacts, created if missing; None: the server decides."""
    if not uri.startswith("sqlite:///"):
        return None
    folder = Path(uri.removeprefix("sqlite:///")).resolve().parent / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.as_uri()
