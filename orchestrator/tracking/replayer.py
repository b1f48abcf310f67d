"""The driver's side of tracking: starts the process that sends a run's event log to MLflow.

Contract: the driver starts one replayer process per attempt (`python -m orchestrator.tracking EVENT_LOG`, see
`__main__.py`) in a separate session, so it outlives a driver that is killed or interrupted, and continues until every
record is sent or it gives up. Training never waits for MLflow: the driver waits for the replayer twice, with a timeout,
until the MLflow run exists and at the end of the run. Records arrive at least once and are stored once.

MLflow is imported in the replayer process (and by `antiphon track replay`), never here: importing this module is cheap.
Why not log directly: reference/storage.md 2.1.
"""

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from orchestrator.storage.retry import Unavailable
from orchestrator.tracking.uri import NONE, VARIABLE

STARTED = "started"  # first word of the line that the replayer writes to stdout, before the MLflow run's id
REFUSED, NO_ANSWER = 1, 75  # the replayer's exit codes where it could not start
# Environment of a process that uses MLflow; set it before MLflow is imported.
MLFLOW_ENVIRONMENT = {
    # no retries inside the client: a create_run that timed out would be sent again, and there would be two runs
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",  # loses points silently
    "MLFLOW_LOGGING_LEVEL": "ERROR",  # the log file is for what was not delivered
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # else the user's own uv.lock is stored with a registered model
    "GIT_PYTHON_REFRESH": "quiet",
}


ASK_S = 1.0
SEND_REPORT_S = 30.0


def _never() -> bool:
    return False


class NullTracking:
    """Stands for a replayer where nothing is tracked, with the same interface."""

    def wait_started(self, *, timeout_s: float = 120.0, stopped: Callable[[], bool] = _never) -> str:
        """Return an empty id: there is no MLflow run."""
        return ""

    def wait(self, *, timeout_s: float) -> int | None:
        """Return 0 at once."""
        return 0

    def explanation(self) -> str:
        """Return an empty text."""
        return ""


class Replayer:
    """Handle of the replayer process in the driver. Used by one thread; the process may outlive this handle."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def wait_started(self, *, timeout_s: float = 120.0, stopped: Callable[[], bool] = _never) -> str:
        """Wait until the MLflow run exists and return its id; call it once.

        If the process ends or does not answer in time, it is killed, and Unavailable or, where MLflow has refused,
        RuntimeError is raised with the reason. Unavailable too once `stopped` says so, which is asked every second:
        then the process goes on.
        """
        assert self.process.stdout is not None
        ready: list[Any] = []
        deadline = time.monotonic() + timeout_s
        while not ready and time.monotonic() < deadline:
            if stopped():
                raise Unavailable("stopped before tracking had answered")
            ready, _, _ = select.select([self.process.stdout], [], [], min(ASK_S, timeout_s))
        answer = self.process.stdout.readline().decode().split() if ready else []
        if len(answer) == 2 and answer[0] == STARTED:
            return answer[1]
        reason = self.explanation() if ready else f"no answer within {timeout_s:.0f} s (log: {self.log})"
        if not ready:
            self.process.kill()
        kind = RuntimeError if self.process.wait() == REFUSED else Unavailable
        raise kind(f"tracking could not start: {reason}\nFix that, or run with --tracking {NONE}")

    def wait(self, *, timeout_s: float) -> int | None:
        """Wait for the process; its exit code (0 all sent, 3 gave up, see `explanation`), None while it is running."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def explanation(self) -> str:
        """The last line of the process's log: the reason where it ended with an error."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"its log {self.log} is empty"


def start_replayer(event_log: Path, uri: str, *, log: Path) -> Replayer | NullTracking:
    """Start the process that sends `event_log` to the MLflow at `uri` ("none": to none), and return at once.

    This process is named as the log's writer: the replayer finishes after the log's `end` record, or once this process
    has exited and all records are sent. The log must begin with its `run` record, and the `run` record of a resumed
    run must have been appended too: everything in the log now counts as old (`--old-bytes`).
    """
    if uri == NONE:
        return NullTracking()
    event_log = event_log.resolve()
    assert event_log.stat().st_size, "write the run record first"
    me = psutil.Process()
    options = [f"--old-bytes={event_log.stat().st_size}"]
    options += [f"--writer-pid={me.pid}", f"--writer-started={me.create_time()}"]
    return Replayer(_start(event_log, uri, options, log=log), log)


def send_report(event_log: Path, uri: str, report: Path) -> None:
    """Store a finished run's report among the run's files in MLflow, by a process of its own.

    Called by the driver's process after the report is written. Waits for at most SEND_REPORT_S; the process goes on
    after that. What fails is in the replayer's log, and changes nothing of the run.
    """
    if uri == NONE or not event_log.exists():
        return
    options = [f"--report={report.resolve()}"]
    process = _start(event_log.resolve(), uri, options, log=event_log.with_name("tracking.log"))
    with suppress(subprocess.TimeoutExpired):
        process.wait(SEND_REPORT_S)


def _start(event_log: Path, uri: str, options: list[str], *, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "orchestrator.tracking", str(event_log), *options]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            env=os.environ | {"PYTHONPATH": path, VARIABLE: uri},  # every user of the machine can read command lines
            start_new_session=True,  # neither Ctrl-C nor the driver's end reaches it
        )
