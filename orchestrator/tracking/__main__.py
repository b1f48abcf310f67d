"""The replayer process: `python -m orchestrator.tracking EVENT_LOG`; `replayer.py` starts it from the driver.

MLFLOW_TRACKING_URI in its environment says where the records go: the URI may hold a password.

Contract: one process at a time replays an event log, because it locks the file EVENT_LOG.lock; a second process waits
LOCK_S for it. Once the MLflow run exists, the process writes one line to stdout, "started MLFLOW_RUN_ID", and nothing
more. It may outlive the driver. Records reach MLflow at least once and are stored once (`log_reader.py`,
`mlflow_run.py`), so after a kill at any point the next replayer, or `antiphon track replay`, sends what is missing.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path

from filelock import FileLock

from orchestrator.tracking.log_reader import (
    Cursor,
    TrackingRefused,
    TrackingUnavailable,
    Writer,
    log_line,
    replay_until_complete,
)
from orchestrator.tracking.mlflow_pages import store_report
from orchestrator.tracking.mlflow_run import open_destination
from orchestrator.tracking.replayer import MLFLOW_ENVIRONMENT, NO_ANSWER, REFUSED, STARTED
from orchestrator.tracking.uri import VARIABLE, split_credentials
from workloads.runtime.redaction import redacted, redacting_stderr

LOCK_S = 30.0
GRACE_S = 600.0  # how long sending is retried once the event log is complete


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay one event log.

    Exit code: 0 all sent, 1 refused by MLflow, 3 gave up (the event log stays as it is), 75 MLflow did not answer.
    """
    args = _parse(arguments)
    os.environ.update(MLFLOW_ENVIRONMENT)  # before MLflow is imported, which reads it then
    try:
        if args.report:
            store_report(args.event_log, os.environ[VARIABLE], args.report)
            return 0
        # the replayer of an earlier attempt may be about to finish
        with FileLock(f"{args.event_log}.lock", timeout=LOCK_S):
            return _replay(args)
    except (TrackingUnavailable, ImportError, OSError, ValueError) as error:
        print(error, file=sys.stderr)  # the log's last line: the driver quotes it
        unanswered = isinstance(error, TrackingUnavailable) and not isinstance(error, TrackingRefused)
        return NO_ANSWER if unanswered else REFUSED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.tracking", description=main.__doc__)
    parser.add_argument("event_log", type=Path)
    parser.add_argument("--writer-pid", type=int, default=0, help="process that writes the log; 0: it has ended")
    parser.add_argument("--writer-started", type=float, default=0.0, help="its start time, seconds since the epoch")
    parser.add_argument("--old-bytes", type=int, default=0, help="size of the log before this attempt's own records")
    parser.add_argument("--report", type=Path, help="store this file in the log's MLflow run, and send nothing else")
    parser.add_argument("--grace", type=float, default=GRACE_S, help="seconds to retry once the log is complete")
    return parser.parse_args(arguments)


def _replay(args: argparse.Namespace) -> int:
    uri = os.environ[VARIABLE]
    os.environ[VARIABLE] = split_credentials(uri)[0]  # MLflow reads it too
    run = open_destination(args.event_log, uri)
    with suppress(BrokenPipeError):  # the driver may have ended already
        os.write(1, f"{STARTED} {run.run_id}\n".encode())
    os.dup2(2, 1)  # the driver reads one line only: later output must not fill the pipe and block
    cursor = Cursor(args.event_log, f"{redacted(uri)} {run.run_id}")
    cursor.resume()
    writer = Writer(pid=args.writer_pid, started=args.writer_started)
    code = replay_until_complete(cursor, run, writer=writer, old_bytes=args.old_bytes, grace_s=args.grace)
    if code:
        again = shlex.join(["antiphon", "track", "replay", str(args.event_log.parent)])
        log_line(
            f"gave up; the event log {args.event_log} is complete; once MLflow is reachable, send it with: {again}"
        )
    return code


if __name__ == "__main__":
    with redacting_stderr(), redirect_stdout(sys.stderr):  # both are the log
        raise SystemExit(main())
