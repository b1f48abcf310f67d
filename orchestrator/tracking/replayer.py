"""Tracking: what a run says reaches MLflow without the run ever waiting for it. The user of mlflow, with `registry.py`.

The driver's side starts a process of its own (`python -m orchestrator.tracking SPOOL URI`), which reads the spool
and replays it. MLflow is imported in that process alone (and by `antiphon track replay`); importing this module is
cheap. What the records mean to MLflow is in `deliveries.py`. Why not log directly: reference/storage.md 2.1.
"""

import os
import select
import subprocess
import sys
from pathlib import Path

import psutil

from orchestrator.tracking.uri import NONE

STARTED = "started"
CLIENT = {
    # no retries inside the client: a create_run that timed out would be sent again, and there would be two runs
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",  # loses points silently
    "MLFLOW_LOGGING_LEVEL": "ERROR",  # the log is for what did not arrive
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # else a registered model takes the user's own uv.lock along
    "GIT_PYTHON_REFRESH": "quiet",
}


class NullTracking:
    """No tracking, with the same interface: the driver does not ask whether there is any."""

    def wait_started(self, *, timeout_s: float = 120.0) -> str:
        """No MLflow run, hence no id of one."""
        return ""

    def wait(self, *, timeout_s: float) -> int | None:
        """Done at once."""
        return 0

    def explanation(self) -> str:
        """Nothing to explain."""
        return ""


class Replayer:
    """The replaying process, seen from the driver; it outlives the driver when it must."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def wait_started(self, *, timeout_s: float = 120.0) -> str:
        """Wait until the MLflow run exists; its id. RuntimeError with the reason if it cannot be had."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        answer = self.process.stdout.readline().decode().split() if ready else []
        if len(answer) == 2 and answer[0] == STARTED:
            return answer[1]
        reason = self.explanation() if ready else f"no answer within {timeout_s:.0f} s; its log is {self.log}"
        self.process.kill()
        self.process.wait()
        raise RuntimeError(f"tracking could not start: {reason}\nMend that, or run with --tracking {NONE}")

    def wait(self, *, timeout_s: float) -> int | None:
        """Its exit code (0 all delivered, 3 given up, see `explanation`), None while it is still delivering."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def explanation(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it said nothing in {self.log}"


def start_replayer(event_log: Path, uri: str, *, log: Path) -> Replayer | NullTracking:
    """Start replaying `spool` into the MLflow at `uri` ("none": nowhere), for as long as this process lives.

    The spool must begin with its `run` record, and the `run` record of a resumed run must be in it as well.
    """
    if uri == NONE:
        return NullTracking()
    event_log = event_log.resolve()
    assert event_log.stat().st_size, "write the run record first"
    me = psutil.Process()
    command = [
        sys.executable,
        "-m",
        "orchestrator.tracking",
        str(event_log),
        uri,
        f"--old-bytes={event_log.stat().st_size}",
    ]
    command += [f"--writer-pid={me.pid}", f"--writer-started={me.create_time()}"]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # neither Ctrl-C nor a killed driver takes it along
        )
    return Replayer(process, log)
