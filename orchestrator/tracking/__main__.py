"""The replaying process: `python -m orchestrator.tracking LOG URI`."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from orchestrator.tracking.log_reader import Cursor, TrackingUnavailable, Writer, follow, say
from orchestrator.tracking.mlflow_run import open_destination
from orchestrator.tracking.replayer import CLIENT, STARTED

LOCK_S = 30.0


GRACE_S = 600.0  # how long the replayer knocks at a closed door once everything is written


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay one spool. Exit code: 0 delivered, 1 could not start, 3 gave up (the spool stays as it is)."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.tracking", description=main.__doc__)
    parser.add_argument("event_log", type=Path)
    parser.add_argument("uri")
    parser.add_argument("--writer-pid", type=int, default=0, help="who writes the spool; 0: nobody any more")
    parser.add_argument("--writer-started", type=float, default=0.0)
    parser.add_argument("--old-bytes", type=int, default=0, help="what was in the spool before this attempt's end")
    parser.add_argument("--grace", type=float, default=GRACE_S, help="seconds to go on trying after the run's end")
    args = parser.parse_args(arguments)
    os.environ.update(CLIENT)
    try:
        # the replayer of an earlier attempt may be about to finish
        with FileLock(f"{args.event_log}.lock", timeout=LOCK_S):
            return _replay(args)
    except (TrackingUnavailable, ImportError, OSError, ValueError) as error:
        print(error, file=sys.stderr)  # the log's last line: the driver quotes it
        return 1


def _replay(args: argparse.Namespace) -> int:
    run = open_destination(args.event_log, args.uri)
    with suppress(BrokenPipeError):  # the driver may be gone already
        os.write(1, f"{STARTED} {run.run_id}\n".encode())
    os.dup2(2, 1)  # nobody reads that pipe from here on
    cursor = Cursor(args.event_log, f"{args.uri} {run.run_id}")
    cursor.resume()
    writer = Writer(pid=args.writer_pid, started=args.writer_started)
    code = follow(cursor, run, writer=writer, old_bytes=args.old_bytes, grace_s=args.grace)
    if code:
        again = shlex.join(["antiphon", "track", "replay", str(args.event_log.parent)])
        say(f"gave up; the spool {args.event_log} is complete; once MLflow is reachable, deliver it with: {again}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
