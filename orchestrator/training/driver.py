"""The driver of one training run: check, claim, record, launch, watch, conclude, and only then wait for MLflow.

The driver is the process of `antiphon run`. It writes the event log, sends the heartbeat and starts the replayer
process; training itself happens in this process (`local_run.py`) or in Ray Train's workers (`ray_trainer.py`,
`ray_worker.py`). A kill at any instant leaves the committed checkpoints, from which `--resume` continues.
"""

import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.runs.comparison import comparison_record
from orchestrator.runs.lease import Attempt, Driver, beating, is_driven_by
from orchestrator.runs.location import RunLocation
from orchestrator.runs.outcome import conclude, publish_event_log
from orchestrator.runs.records import continue_event_log, end_record, run_record
from orchestrator.runs.resume import open_run
from orchestrator.storage import object_store
from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.storage.retry import Unavailable, print_status, retry_while_unavailable
from orchestrator.tracking.replayer import start_replayer
from orchestrator.training.claimed_run import ClaimedRun
from orchestrator.training.local_run import run_in_process
from orchestrator.training.ray_trainer import run_on_ray
from orchestrator.training.request import RunRequest, check_request, with_absolute_paths
from orchestrator.training.signals import StopSignals
from orchestrator.training.system_metrics import sampling
from workloads.config.controls import without_controls
from workloads.config.recipe import Recipe
from workloads.data.check import check_data, has_training_labels
from workloads.distill.schedule import label_learners, plan_phases
from workloads.distill.store_checks import check_stores
from workloads.runtime.atomic_files import replace_text
from workloads.runtime.event_log import EventLog
from workloads.runtime.precision import precision_warnings
from workloads.runtime.redaction import redacted
from workloads.runtime.text import one_line

Progress = Callable[[RunLocation], AbstractContextManager[None]]
# how long the end of a run waits for the replayer to catch up, by the run's status; who preempts a run soon kills it
TRACKING_GRACE_S = {"done": 30.0, "failed": 30.0, "preempted": 2.0}


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run, and whether this driver published it.

    It did not where the run was done before, or where another driver has resumed it meanwhile. `resume_id` is the run
    that `--resume` continues, where it is another one.
    """

    outcome: dict[str, Any]
    location: RunLocation
    published: bool
    resume_id: str = ""


def run(request: RunRequest, *, show_progress: Progress, warn: Callable[[str], None]) -> RunResult:
    """Run a recipe from its checks to its outcome (the object that --json prints), also where it fails.

    `show_progress` opens a context in which the event log is followed on the screen; `warn` gets each warning about
    precision and data before anything starts. Raises ValueError for the user's mistakes that can be seen by then.
    """
    check_request(request)
    recipe = with_learnable_controls(with_absolute_paths(request.recipe), warn)
    request = replace(request, recipe=recipe)
    for warning in [*precision_warnings(request.recipe.train), *check_recipe_data(request.recipe)]:
        warn(warning)
    object_store.check_storage(request.storage)
    driver = Driver()
    opened = open_run(
        request.recipe,
        storage=request.storage,
        run_id=request.run_id,
        resume=request.resume,
        tracking=request.tracking,
        driver=driver,
        patience_s=request.patience_s,
    )
    location = opened.location
    print_status(f"run {location.run_id}: {location.uri}")  # first, so that an interrupted one can be resumed
    if opened.outcome is not None:  # the run is done already
        return RunResult(opened.outcome, location, published=False)
    assert opened.attempt is not None
    with StopSignals() as stop, ExitStack() as at_end, beating(location.uri, driver):
        replayer = _record_and_train(request, location, opened.attempt, show_progress, stop, at_end)

        def publish() -> RunResult:
            newest = is_driven_by(location.uri, driver)  # else another driver has resumed the run
            return RunResult(conclude(location, publish=newest), location, published=newest)

        result = retry_while_unavailable(publish, what=location.uri, patience_s=request.patience_s)
    wait_for_tracking(replayer, timeout_s=TRACKING_GRACE_S[result.outcome["status"]])
    return result


def with_learnable_controls(recipe: Recipe, warn: Callable[[str], None]) -> Recipe:
    """The recipe, without its controls where no label is known that they could learn from: `warn` is told.

    Only a recipe whose other models learn from teachers alone can be trained then.
    """
    taught = without_controls(recipe)
    if not recipe.compare or label_learners(plan_phases(taught)):
        return recipe
    files = FsspecFiles()
    if has_training_labels(recipe, files, store_tags=check_stores(recipe, files)):
        return recipe
    warn("compare = true: no label of a training clip is known, so there are no untaught controls to compare with")
    return taught


def check_recipe_data(recipe: Recipe) -> list[str]:
    """Check what is known of the recipe's data before anything starts; returns warnings, raises as `check_data`.

    Controls are not named among those that need labels: `with_learnable_controls` removes them where only they do.
    """
    slices, test = [recipe.data.val_slice], recipe.train.score_test
    learners = label_learners(plan_phases(without_controls(recipe)))
    files = FsspecFiles()
    tags = check_stores(recipe, files)
    return check_data(recipe, files, slices=slices, test=test, train=recipe.train, learners=learners, store_tags=tags)


def _record_and_train(
    request: RunRequest,
    location: RunLocation,
    attempt: Attempt,
    show_progress: Progress,
    stop: StopSignals,
    at_end: ExitStack,
) -> Any:
    """Train, and record how that ended; returns the replayer.

    Errors of training become the `end` record. Raises KeyboardInterrupt and SystemExit, and OSError where the event log
    cannot be written or the store is unavailable.
    """
    location.folder.mkdir(parents=True, exist_ok=True)
    with EventLog(location.event_log) as event_log:
        own_record = run_record(
            request.recipe,
            location,
            command=request.command,
            workers=str(request.workers),
            options=request.repeat_options(location.uri),
        )
        continue_event_log(event_log, location, own_record)
        publish_event_log(location)
        replayer = start_replayer(location.event_log, location.tracking, log=location.folder / "tracking.log")
        train = run_in_process if request.local else run_on_ray
        try:
            with show_progress(location), sampling(event_log):
                end = train(ClaimedRun(request, location, attempt, event_log, replayer, stop, at_end))
            if end["status"] == "done" and request.recipe.compare and request.recipe.train.score_test:
                event_log.append(
                    comparison_record(request.recipe, location, request.seed_runs, patience_s=request.patience_s)
                )
            event_log.append(end)
        except BaseException as error:
            _record_failure(event_log, location, error)
            if not isinstance(error, Exception):
                raise
    return replayer


def _record_failure(event_log: EventLog, location: RunLocation, error: BaseException) -> None:
    """End the event log with the error, and keep its traceback in error.log.

    What is unavailable now ends the run as preempted: what was saved stays, and the same command continues.
    """
    reason = one_line(error)
    status = "preempted" if isinstance(error, Unavailable) else "failed"
    try:
        replace_text(location.folder / "error.log", redacted(traceback.format_exc()))
        event_log.append(end_record(status, reason, mistake=isinstance(error, ValueError)))
    except OSError as full:  # nothing can be recorded on a full disk
        raise OSError(f"{reason}; free space, then `--resume {location.run_id}` continues the run") from full


def wait_for_tracking(replayer: Any, *, timeout_s: float) -> None:
    """Give the replayer time to catch up; what it has not sent by then stays in the event log."""
    code = replayer.wait(timeout_s=timeout_s)
    if code is None:
        print("tracking is still catching up in the background; nothing is lost", file=sys.stderr)
    elif code != 0:
        print(f"tracking: {replayer.explanation()}", file=sys.stderr)
