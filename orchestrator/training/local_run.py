"""A run in the driver's own process, without Ray (`--local`)."""

from typing import Any

from orchestrator.runs.checkpoint_store import BackgroundUploads, CheckpointStore, NewestAndBest
from orchestrator.runs.records import end_record
from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.training.claimed_run import ClaimedRun
from orchestrator.training.request import require_gpu
from workloads.runtime.scratch import scratch_folder


def run_in_process(claimed: ClaimedRun) -> dict[str, Any]:
    """Train here and return the end record: "preempted" where a stop was requested. Torch is imported only now."""
    from workloads.run import set_up
    from workloads.runtime.session import LocalSession
    from workloads.train import loop

    request, recipe = claimed.request, claimed.request.recipe
    require_gpu(recipe)
    claimed.replayer.wait_started(stopped=claimed.stop.requested)
    retention = NewestAndBest(recipe.train.keep_last)
    store = CheckpointStore(
        claimed.attempt, retention=retention, patience_s=request.patience_s, hurried=claimed.stop.requested
    )
    store.collect_garbage()
    with scratch_folder() as scratch, BackgroundUploads(store) as background:
        session = LocalSession(
            work_dir=scratch,
            event_log=claimed.event_log,
            store=background,
            device=recipe.train.device,
            should_stop=claimed.stop.requested,
        )
        run = set_up(recipe, session, files=FsspecFiles())
        try:
            status = loop(run)
        except ValueError as error:  # once the loop runs, an error is not the user's mistake
            raise RuntimeError(f"step {run.step}: {error}") from error
    return end_record(status)
