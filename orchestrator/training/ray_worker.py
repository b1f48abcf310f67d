"""What Ray Train runs in each worker: a session that reports through Ray, and the training loop, which knows no Ray."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointUploadMode, UserCallback

from orchestrator.recipes.loader import parse
from orchestrator.runs.checkpoint_store import CheckpointStore, NewestAndBest
from orchestrator.runs.lease import Driver, stop_requested, take_next
from orchestrator.storage import object_store
from workloads.config.recipe import Recipe
from workloads.evaluate.predict import BadNumbers
from workloads.runtime.checkpoint_store import Superseded
from workloads.runtime.event_log import EventLog, timestamped
from workloads.runtime.session import gather
from workloads.train import loop, set_up

STOP_EVERY = 5  # calls of should_stop between two exchanges with rank 0
POLL_S = 1.0  # rank 0 reads the storage for a stop request at most this often
REPORT_S = 1.0  # Ray takes one report per poll of its controller; more of them would queue up


class RaySession:
    """A worker's session. Records and checkpoints leave through `ray.train.report`; uploads run in the background.

    `claim`, `report`, `should_stop` and `close` are called by all workers equally often, since they exchange values;
    `deliver` and `checkpoints` by rank 0 only; `fetch` by each worker for itself.
    """

    def __init__(self, run_uri: str, driver: Driver, device: str) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device() if device == "cuda" else torch.device("cpu")
        self.work_dir = Path(tempfile.mkdtemp(prefix=f"antiphon-{self.rank}-"))
        self._run_uri, self._driver = run_uri, driver
        self._num_stop_calls, self._stop = 0, False
        self._polled_at = self._reported_at = time.monotonic()
        self._unreported: list[dict[str, Any]] = []

    def claim(self, recipe: Recipe, *, patience_s: float) -> None:
        """Claim the run's next attempt for these workers; Superseded is raised on all of them if it is not theirs."""
        answer: Any = None
        if self.rank == 0:
            try:
                answer = take_next(self._run_uri, self._driver)
            except Superseded as error:
                answer = error
        answer = gather(self, answer)[0]
        if isinstance(answer, Superseded):
            raise answer
        self.attempt = answer.number
        retention = NewestAndBest(recipe.train.keep_last)
        self._store = CheckpointStore(answer, retention=retention, patience_s=patience_s)
        if self.rank == 0:
            self._store.collect_garbage()

    def report(self, records: list[dict[str, Any]], checkpoint: Path | None = None) -> None:
        """Send records with a checkpoint, or about once a second; rank 0 decides when, for all workers."""
        self._unreported += records
        if not gather(self, checkpoint is not None or time.monotonic() - self._reported_at > REPORT_S)[0]:
            return
        self._reported_at = time.monotonic()
        unreported, self._unreported = self._unreported, []
        ray.train.report(
            {"records": unreported},
            checkpoint=Checkpoint.from_directory(str(checkpoint)) if checkpoint else None,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=self._upload,
            delete_local_checkpoint_after_upload=False,  # the checkpoint store has consumed it
        )

    def _upload(self, local: Checkpoint, _: str) -> Checkpoint:
        """Called by Ray in a thread of rank 0, one checkpoint at a time."""
        folder = Path(local.path)
        self._store.publish(folder)
        context = ray.train.get_context().get_storage()
        path = object_store.join(context.experiment_fs_path, "checkpoints", folder.name)
        return Checkpoint(path, context.storage_filesystem)

    def deliver(self, folder: Path) -> str:
        return self._store.deliver(folder)

    def checkpoints(self) -> list[str]:
        return self._store.names()

    def fetch(self, name: str) -> Path:
        return self._store.fetch(name, self.work_dir)

    def should_stop(self) -> bool:
        """Whether the driver has asked to stop; rank 0 finds out, and all workers get the same answer."""
        self._num_stop_calls += 1
        if self._num_stop_calls % STOP_EVERY == 0 and not self._stop:
            self._stop = gather(self, self._poll_stop_request())[0]
        return self._stop

    def _poll_stop_request(self) -> bool:
        if self.rank or time.monotonic() - self._polled_at < POLL_S:
            return False
        self._polled_at = time.monotonic()
        try:
            return stop_requested(self._run_uri, self._driver)
        except Exception:  # a short outage of the store must not end the training; the next poll follows
            return False

    def close(self, status: str, error: str = "", *, mistake: bool = False) -> None:
        """Report how the workers ended; a report without ASYNC waits for the uploads before it."""
        closed = timestamped("closed", status=status, error=error, mistake=mistake)
        ray.train.report({"records": [*self._unreported, closed]})


class EventLogCallback(UserCallback):
    """Appends rank 0's records to the event log as they arrive. Runs in Ray's controller, on the driver's node."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._event_log: EventLog | None = None  # opened in the controller's process, not where this is pickled

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        self._event_log = self._event_log or EventLog(Path(self._path))
        for record in metrics[0]["records"]:
            self._event_log.append(record)


def train_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs in each worker, once per start of the group.

    Mistakes, bad numbers and a superseded attempt end the run by a `closed` record: raised, Ray would only repeat them.
    """
    recipe = parse(config["recipe"])
    session = RaySession(config["run_uri"], Driver(**config["driver"]), recipe.train.device)
    try:
        session.claim(recipe, patience_s=config["patience_s"])
        try:
            run = set_up(recipe, session, files=object_store.FsspecFiles())
        except ValueError as mistake:
            session.close("failed", str(mistake), mistake=True)
        else:
            session.close(loop(run, until=config["until"]))
    except (BadNumbers, Superseded) as error:
        session.close("failed", str(error))
    finally:
        shutil.rmtree(session.work_dir)
