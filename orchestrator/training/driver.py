"""The driver of one training run: check, record, launch, watch, sum up. The worker's side is `worker.py`."""

import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.runs.checkpoint_store import BackgroundUploads, RunCheckpointStore
from orchestrator.runs.lease import Attempt, Driver, beating, is_driven_by
from orchestrator.runs.location import RunLocation
from orchestrator.runs.outcome import conclude, publish_event_log
from orchestrator.runs.records import end_record, recovered, run_record
from orchestrator.runs.resume import open_run
from orchestrator.storage import object_store
from orchestrator.storage.retry import retry_while_unavailable
from orchestrator.tracking.replayer import start_replayer
from orchestrator.training.ray_trainer import _run_on_ray
from orchestrator.training.request import Request, absolute, check
from orchestrator.training.signals import on_sigterm
from orchestrator.training.system_metrics import sampling
from workloads.data.clips import split
from workloads.data.manifest import read_dataset
from workloads.runtime.event_log import EventLog

Show = Callable[[RunLocation], AbstractContextManager[None]]
TRACKING_GRACE_S = 30.0  # how long the end of a run waits for the tracker to catch up


@dataclass(frozen=True)
class RunResult:
    """What came of a run: its outcome, and whether this driver published it (else it was done already, or is resumed
    by another driver by now)."""

    outcome: dict[str, Any]
    location: RunLocation
    published: bool


def run(request: Request, *, show: Show) -> RunResult:
    """The whole run; returns its outcome, the object that --json prints, also of a run that failed.

    `show` opens a context in which the spool's progress is shown. Raises ValueError for the user's mistakes that can
    be seen before anything starts.
    """
    check(request)
    request = replace(request, recipe=absolute(request.recipe))
    split(read_dataset(request.recipe.data, object_store.FsspecFiles()), request.recipe.data)
    object_store.check_storage(request.storage)
    driver = Driver()
    opened = open_run(
        request.recipe,
        storage=request.storage,
        run_id=request.run_id,
        resume=request.resume,
        tracked=request.tracking,
        driver=driver,
        patience_s=request.patience_s,
    )
    location = opened.location
    if opened.outcome is not None:  # done already: then nothing is left to do
        return RunResult(opened.outcome, location, published=False)
    assert opened.attempt is not None
    with beating(location.uri, driver):
        replayer = _drive(request, location, opened.attempt, show)
        wait_for_tracking(replayer)

        def concluded() -> RunResult:
            mine = is_driven_by(location.uri, driver)  # else somebody else has resumed it by now
            return RunResult(conclude(location, publish=mine), location, published=mine)

        return retry_while_unavailable(concluded, what=location.uri, patience_s=request.patience_s)


def _drive(request: Request, location: RunLocation, attempt: Attempt, show: Show) -> Any:
    """Record what happens until the run has ended, one way or another; returns the replayer."""
    location.folder.mkdir(parents=True, exist_ok=True)
    with EventLog(location.event_log) as event_log:
        missing = recovered(location)
        event_log.append(run_record(request.recipe, location, command=request.command, workers=request.workers))
        for record in missing:
            event_log.append(record)
        publish_event_log(location)
        replayer = start_replayer(location.event_log, location.tracking, log=location.folder / "tracking.log")
        launch = _run_locally if request.local else _run_on_ray
        try:
            with show(location), sampling(event_log):
                end = launch(request, location, attempt, event_log, replayer)
            event_log.append(end)
        except BaseException as error:
            try:
                (location.folder / "error.log").write_text(traceback.format_exc())
                event_log.append(end_record("failed", _reason(error), mistake=isinstance(error, ValueError)))
            except OSError as full:
                raise OSError(f"{_reason(error)}; `--resume {location.run_id}` goes on once that is mended") from full
            if not isinstance(error, Exception):
                raise
    return replayer


def _reason(error: BaseException) -> str:
    """An error in one line; of Ray's, which carry a worker's whole traceback, the last one."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines) if len(lines) <= 3 else lines[-1]


def _run_locally(
    request: Request, location: RunLocation, attempt: Attempt, event_log: EventLog, replayer: Any
) -> dict[str, Any]:
    """The loop in this process. Torch is imported only here."""
    from workloads.runtime.session import LocalSession
    from workloads.train import loop, set_up

    if request.recipe.train.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("train.device = 'cuda': this machine has no GPU that torch can use; set it to 'cpu'")
    replayer.wait_started()
    stop = threading.Event()
    store = RunCheckpointStore(attempt, keep_last=request.recipe.train.keep_last, patience_s=request.patience_s)
    store.collect_garbage()
    with tempfile.TemporaryDirectory(prefix="antiphon-") as scratch, BackgroundUploads(store) as background:
        session = LocalSession(
            work_dir=Path(scratch),
            event_log=event_log,
            store=background,
            device=request.recipe.train.device,
            should_stop=stop.is_set,
        )
        with on_sigterm(stop.set):
            run = set_up(request.recipe, session, files=object_store.FsspecFiles())
            try:
                status = loop(run)
            except ValueError as error:  # once the loop runs, it is not the user's mistake
                raise RuntimeError(f"step {run.step}: {error}") from error
    return end_record(status)


def wait_for_tracking(replayer: Any) -> None:
    """Give the tracker time to catch up; what it has not delivered stays in the spool."""
    code = replayer.wait(timeout_s=TRACKING_GRACE_S)
    if code is None:
        print("tracking is still catching up in the background; nothing is lost", file=sys.stderr)
    elif code != 0:
        print(f"tracking: {replayer.explanation()}", file=sys.stderr)
