"""A run in the driver's own process, without Ray (`--local`)."""

import tempfile
from pathlib import Path
from typing import Any

from orchestrator.runs.checkpoint_store import BackgroundUploads, CheckpointStore, NewestAndBest
from orchestrator.runs.lease import Attempt
from orchestrator.runs.location import RunLocation
from orchestrator.runs.records import end_record
from orchestrator.storage import object_store
from orchestrator.training.request import RunRequest, require_gpu
from orchestrator.training.signals import StopSignals
from workloads.runtime.event_log import EventLog


def run_in_process(
    request: RunRequest,
    location: RunLocation,
    attempt: Attempt,
    event_log: EventLog,
    replayer: Any,
    stop: StopSignals,
) -> dict[str, Any]:
    """Train here and return the end record: "preempted" where `stop` was requested. Torch is imported only now."""
    from workloads.runtime.session import LocalSession
    from workloads.train import loop, set_up

    require_gpu(request.recipe)
    replayer.wait_started()
    retention = NewestAndBest(request.recipe.train.keep_last)
    store = CheckpointStore(attempt, retention=retention, patience_s=request.patience_s)
    store.collect_garbage()
    with tempfile.TemporaryDirectory(prefix="antiphon-") as scratch, BackgroundUploads(store) as background:
        session = LocalSession(
            work_dir=Path(scratch),
            event_log=event_log,
            store=background,
            device=request.recipe.train.device,
            should_stop=stop.requested,
        )
        run = set_up(request.recipe, session, files=object_store.FsspecFiles())
        try:
            status = loop(run)
        except ValueError as error:  # once the loop runs, an error is not the user's mistake
            raise RuntimeError(f"step {run.step}: {error}") from error
    return end_record(status)
