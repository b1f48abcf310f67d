"""Tracking: what a run says reaches MLflow without the run ever waiting for it. The user of mlflow, with `registry.py`.

The driver's side starts a process of its own (`python -m orchestrator.tracking SPOOL URI`), which reads the spool
and replays it. MLflow is imported in that process alone (and by `antiphon track replay`); importing this module is
cheap. What the records mean to MLflow is in `deliveries.py`. Why not log directly: reference/storage.md 2.1.
"""

import argparse
import json
import os
import select
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from orchestrator.deliveries import PARAM_LENGTH, RUN_ID_TAG, TAG_LENGTH, Delivery, Point, cut, delivery
from orchestrator.family import Family
from orchestrator.replay import Away, Cursor, Writer, follow, say
from workloads.runtime.event_log import read_spool

NONE = "none"
STARTED = "started"
LOCK_S = 30.0
GRACE_S = 600.0  # how long the replayer knocks at a closed door once everything is written
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


def start_replayer(spool: Path, uri: str, *, log: Path) -> Replayer | NullTracking:
    """Start replaying `spool` into the MLflow at `uri` ("none": nowhere), for as long as this process lives.

    The spool must begin with its `run` record, and the `run` record of a resumed run must be in it as well.
    """
    if uri == NONE:
        return NullTracking()
    spool = spool.resolve()
    assert spool.stat().st_size, "write the run record first"
    me = psutil.Process()
    command = [sys.executable, "-m", "orchestrator.tracking", str(spool), uri, f"--old-bytes={spool.stat().st_size}"]
    command += [f"--writer-pid={me.pid}", f"--writer-started={me.create_time()}"]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
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


def sqlite_uri(folder: Path) -> str:
    """The embedded default: one database file in `folder`, artifacts beside it."""
    return f"sqlite:///{folder.resolve() / 'mlflow.db'}"


def ui_command(uri: str) -> str:
    """The shell command that opens MLflow's pages on `uri`; empty where nothing is tracked."""
    if uri == NONE:
        return ""
    if uri.startswith(("http://", "https://")):
        return shlex.join([sys.executable, "-m", "webbrowser", uri])
    return shlex.join([str(Path(sys.executable).with_name("mlflow")), "ui", "--backend-store-uri", uri])


def _artifacts(uri: str) -> str | None:
    """The folder URI of a SQLite database's artifacts, made if need be; None: the server decides."""
    if not uri.startswith("sqlite:///"):
        return None
    folder = Path(uri.removeprefix("sqlite:///")).resolve().parent / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.as_uri()


class MlflowRun:
    """One MLflow run, found by our run id or created, and what it already holds. Every method raises Away."""

    def __init__(self, uri: str, run_record: dict[str, Any]) -> None:
        self.held: defaultdict[str, set[int]] = defaultdict(set)  # curve -> its steps
        self.points_sent = self.points_held = 0
        with _away():
            from mlflow import MlflowClient

            from orchestrator.registry import Registry

            self.client = MlflowClient(tracking_uri=uri)
            experiment = self._experiment(run_record["experiment"], _artifacts(uri))
            run = self._find(experiment, run_record["run_id"]) or self._create(experiment, run_record)
            self.run_id: str = run.info.run_id
            self.registry = Registry(self.client, run, run_record)
            self.params: dict[str, str] = dict(run.data.params)
            self.tags: dict[str, str] = dict(run.data.tags)
            self.status = (run.info.status, run.info.end_time)
            for key in run.data.metrics:
                self.held[key] = {metric.step for metric in self.client.get_metric_history(self.run_id, key)}

    def accept(self, records: Sequence[dict[str, Any]]) -> None:
        """Send what is not there yet; MLflow stores a point once, however often it is sent."""
        parcel = delivery(records)
        for words in parcel.bad:
            say(f"not a record that MLflow can be told of: {words}")
        with _away():
            self._send_params(parcel)
            self._send_tags(parcel.tags)
            self._send_points(parcel.points)
            self._set_status(parcel.status)
        for model, row in parcel.models.items():  # last: everything else has arrived while this is tried again
            self.registry.add(model, row)

    def lost_writer(self, end_ms: int) -> None:
        """Say of a run that its driver is gone and never said how it ended."""
        with _away():
            self._send_tags({"antiphon.status": "killed", "antiphon.error": "the driver ended without a word"})
            self._set_status(("KILLED", end_ms))

    def _experiment(self, name: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        known = self.client.get_experiment_by_name(name)
        if known is None:
            try:
                return str(self.client.create_experiment(name, artifact_location=artifacts))
            except MlflowException:
                known = self.client.get_experiment_by_name(name)
                if known is None:  # else another run has just created it
                    raise
        return str(known.experiment_id)

    def _find(self, experiment: str, run_id: str) -> Any:
        which = f"tags.`{RUN_ID_TAG}` = '{run_id}'"
        return next(iter(self.client.search_runs([experiment], which, order_by=["attributes.start_time ASC"])), None)

    def _create(self, experiment: str, record: dict[str, Any]) -> Any:
        tags = {RUN_ID_TAG: record["run_id"]}
        return self.client.create_run(experiment, start_time=record["t"], tags=tags, run_name=record["name"])

    def _send_params(self, parcel: Delivery) -> None:
        from mlflow.entities import Param

        values = {key: cut(value, PARAM_LENGTH) for key, value in parcel.params.items()}
        fresh = {key: value for key, value in values.items() if key not in self.params}
        for some in _parts([Param(key, value) for key, value in fresh.items()], 100):
            self.client.log_batch(self.run_id, params=some)
        self.params |= fresh
        parcel.tags |= {f"resumed.{key}": value for key, value in values.items() if self.params[key] != value}

    def _send_tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        fresh = {key: cut(value, TAG_LENGTH) for key, value in tags.items()}.items() - self.tags.items()
        for some in _parts([RunTag(key, value) for key, value in sorted(fresh)], 100):
            self.client.log_batch(self.run_id, tags=some)
        self.tags |= dict(fresh)

    def _send_points(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        fresh: dict[tuple[str, int], Point] = {}
        for point in points:  # of a step done twice, before and after a resume, the first counts
            if point.step not in self.held[point.key]:
                fresh.setdefault((point.key, point.step), point)
        for some in _parts([Metric(p.key, p.value, p.t, p.step) for p in fresh.values()], 1000):
            self.client.log_batch(self.run_id, metrics=some)
        for key, step in fresh:
            self.held[key].add(step)
        self.points_sent += len(fresh)
        self.points_held += len(points) - len(fresh)

    def _set_status(self, status: tuple[str, int | None] | None) -> None:
        if status is None or status == self.status:
            return
        name, end_ms = status
        if end_ms:
            self.client.set_terminated(self.run_id, name, end_ms)
        else:
            self.client.update_run(self.run_id, status=name)
        self.status = status


@contextmanager
def _away() -> Iterator[None]:
    """Turn whatever MLflow, its HTTP client or its database raise into Away, in one line."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # MLflow lets those through while it opens a database

    try:
        yield
    except (MlflowException, OSError, SQLAlchemyError) as error:
        raise Away(" ".join(str(error).split())[:500]) from error


def _parts(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay one spool. Exit code: 0 delivered, 1 could not start, 3 gave up (the spool stays as it is)."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.tracking", description=main.__doc__)
    parser.add_argument("spool", type=Path)
    parser.add_argument("uri")
    parser.add_argument("--writer-pid", type=int, default=0, help="who writes the spool; 0: nobody any more")
    parser.add_argument("--writer-started", type=float, default=0.0)
    parser.add_argument("--old-bytes", type=int, default=0, help="what was in the spool before this attempt's end")
    parser.add_argument("--grace", type=float, default=GRACE_S, help="seconds to go on trying after the run's end")
    args = parser.parse_args(arguments)
    os.environ.update(CLIENT)
    try:
        # the replayer of an earlier attempt may be about to finish
        with FileLock(f"{args.spool}.lock", timeout=LOCK_S):
            return _replay(args)
    except (Away, ImportError, OSError, ValueError) as error:
        print(error, file=sys.stderr)  # the log's last line: the driver quotes it
        return 1


def destination(spool: Path, uri: str) -> Family:
    """The MLflow run that a spool's records go to, with a run of its own for every child. Raises Away."""

    def birth(child: str) -> dict[str, Any]:
        return next(record for record in read_spool(spool) if record["kind"] == "run" and record.get("child") == child)

    with spool.open("rb") as file:
        return Family(json.loads(file.readline()), lambda record: MlflowRun(uri, record), birth, spool.parent)


def _replay(args: argparse.Namespace) -> int:
    run = destination(args.spool, args.uri)
    with suppress(BrokenPipeError):  # the driver may be gone already
        os.write(1, f"{STARTED} {run.run_id}\n".encode())
    os.dup2(2, 1)  # nobody reads that pipe from here on
    cursor = Cursor(args.spool, f"{args.uri} {run.run_id}")
    cursor.resume()
    writer = Writer(pid=args.writer_pid, started=args.writer_started)
    code = follow(cursor, run, writer=writer, old_bytes=args.old_bytes, grace_s=args.grace)
    if code:
        again = shlex.join(["antiphon", "track", "replay", str(args.spool.parent)])
        say(f"gave up; the spool {args.spool} is complete; once MLflow is reachable, deliver it with: {again}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
