"""What Ray Train runs in each worker: a session that reports through Ray, and the loop, which knows no Ray."""

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
from orchestrator.runs.checkpoint_store import RunCheckpointStore
from orchestrator.runs.lease import Driver, Superseded, asked_to_stop, take_next
from orchestrator.storage import object_store
from workloads.config.recipe import Recipe
from workloads.evaluate.predict import BadNumbers
from workloads.runtime.event_log import EventLog, timestamped
from workloads.runtime.session import gather
from workloads.train import loop, set_up

STOP_EVERY = 5  # calls of should_stop between two questions to rank 0
LOOK_S = 1.0  # rank 0 looks into the storage at most this often
REPORT_S = 1.0  # Ray takes one report per poll of its controller: more would queue up behind each other


class RaySession:
    """A worker of a Ray Train run: records and checkpoints leave through `ray.train.report`, uploads in the background.

    "Latest" is what our markers say, never Ray's own snapshot.
    """

    def __init__(self, run_uri: str, driver: Driver, device: str) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device() if device == "cuda" else torch.device("cpu")
        self.work_dir = Path(tempfile.mkdtemp(prefix=f"antiphon-{self.rank}-"))
        self._run_uri, self._driver, self._asked, self._stop = run_uri, driver, 0, False
        self._looked = self._sent = time.monotonic()
        self._held: list[dict[str, Any]] = []

    def claim(self, recipe: Recipe, *, patience_s: float) -> None:
        """Take the next attempt of the run for this group of workers; Superseded on all of them if it is not theirs."""
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
        self._store = RunCheckpointStore(answer, keep_last=recipe.train.keep_last, patience_s=patience_s)
        if self.rank == 0:
            self._store.collect_garbage()

    def report(self, records: list[dict[str, Any]], checkpoint: Path | None = None) -> None:
        """Records wait for a checkpoint or for their time; rank 0 decides, so that all workers do the same."""
        self._held += records
        if not gather(self, checkpoint is not None or time.monotonic() - self._sent > REPORT_S)[0]:
            return
        self._sent = time.monotonic()
        held, self._held = self._held, []
        ray.train.report(
            {"records": held},
            checkpoint=Checkpoint.from_directory(str(checkpoint)) if checkpoint else None,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=self._upload,
            delete_local_checkpoint_after_upload=False,  # the shelf has consumed it
        )

    def _upload(self, local: Checkpoint, _: str) -> Checkpoint:
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
        """Whether the driver left its wish in the run's folder; all workers hear rank 0's answer."""
        self._asked += 1
        if self._asked % STOP_EVERY == 0 and not self._stop:
            self._stop = gather(self, self._stop_wanted())[0]
        return self._stop

    def _stop_wanted(self) -> bool:
        if self.rank or time.monotonic() - self._looked < LOOK_S:
            return False
        self._looked = time.monotonic()
        try:
            return asked_to_stop(self._run_uri, self._driver)
        except Exception:  # a store that is away for a moment must not end the training; the next look comes
            return False

    def close(self, status: str, error: str = "", *, mistake: bool = False) -> None:
        """The last word; a report without ASYNC waits for the uploads before it."""
        closed = timestamped("closed", status=status, error=error, mistake=mistake)
        ray.train.report({"records": [*self._held, closed]})


class EventLogCallback(UserCallback):
    """In Ray's controller, on the driver's node: rank 0's records go to the spool as they arrive."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._event_log: EventLog | None = None  # opened where the callback runs, not where it is made

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        self._event_log = self._event_log or EventLog(Path(self._path))
        for record in metrics[0]["records"]:
            self._event_log.append(record)


def train_worker(config: dict[str, Any]) -> None:
    """The whole life of a worker. What Ray would only repeat ends the run: mistakes, bad numbers, a run taken over."""
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
