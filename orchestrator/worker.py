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

from orchestrator import storage
from orchestrator.recipe import parse
from workloads.session import gather
from workloads.spool import Spool, stamped
from workloads.train import loop, set_up

KEPT = 2  # newest checkpoints of a run that stay: one may be in use while the other is written
STOP_EVERY = 5  # calls of should_stop between two questions to rank 0
LOOK_S = 1.0  # rank 0 looks into the storage at most this often
REPORT_S = 1.0  # Ray takes one report per poll of its controller: more would queue up behind each other


class RaySession:
    """A worker of a Ray Train run: records and checkpoints leave through `ray.train.report`, uploads in the background.

    "Latest" is what our markers say, never Ray's own snapshot.
    """

    def __init__(self, run_uri: str, device: str) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device() if device == "cuda" else torch.device("cpu")
        self.work_dir = Path(tempfile.mkdtemp(prefix=f"antiphon-{self.rank}-"))
        self._run_uri, self._asked, self._stop = run_uri, 0, False
        self._looked = self._sent = time.monotonic()
        self._held: list[dict[str, Any]] = []

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
            delete_local_checkpoint_after_upload=True,
        )

    def _upload(self, local: Checkpoint, _: str) -> Checkpoint:
        folder = Path(local.path)
        uri = publish_checkpoint(self._run_uri, folder)
        context = ray.train.get_context().get_storage()
        return Checkpoint(
            storage.join(context.experiment_fs_path, "checkpoints", uri.rsplit("/", 1)[-1]), context.storage_filesystem
        )

    def deliver(self, folder: Path) -> str:
        return storage.publish(folder, storage.join(self._run_uri, "models", folder.name))

    def restore(self) -> Path | None:
        return newest_checkpoint(self._run_uri, self.work_dir)

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
            return storage.exists(stop_mark(self._run_uri))
        except OSError:  # a store that is away for a moment must not end the training; the next look comes
            return False

    def close(self, status: str, error: str = "", *, mistake: bool = False) -> None:
        """The last word; a report without ASYNC waits for the uploads before it."""
        end = stamped("end", status=status, error=error, mistake=mistake)
        ray.train.report({"records": [*self._held, end]})


class SpoolCallback(UserCallback):
    """In Ray's controller, on the driver's node: rank 0's records go to the spool as they arrive."""

    def __init__(self, path: str, run_uri: str) -> None:
        self._path, self._run_uri = path, run_uri
        self._spool: Spool | None = None  # opened where the callback runs, not where it is made

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        self._spool = self._spool or Spool(Path(self._path))
        for record in metrics[0]["records"]:
            self._spool.append(record)
        if checkpoint is not None:
            share_spool(Path(self._path), self._run_uri)


def train_worker(config: dict[str, Any]) -> None:
    """The whole life of a worker. The user's mistakes end the run at once: Ray would only repeat them."""
    recipe = parse(config["recipe"])
    session = RaySession(config["run_uri"], recipe.train.device)
    try:
        try:
            run = set_up(recipe, session, files=storage.FsspecFiles())
        except ValueError as mistake:
            session.close("failed", str(mistake), mistake=True)
        else:
            session.close(loop(run))
    finally:
        shutil.rmtree(session.work_dir)


def share_spool(path: Path, run_uri: str) -> None:
    """Let the spool travel with the checkpoints, where they go elsewhere."""
    if not storage.is_local(run_uri):
        storage.put_text(storage.join(run_uri, "spool.jsonl"), path.read_text())


def publish_checkpoint(run_uri: str, folder: Path) -> str:
    """Publish a training state under the run and let older ones go."""
    uri = storage.publish(folder, storage.join(run_uri, "checkpoints", folder.name))
    storage.keep_last(storage.join(run_uri, "checkpoints"), KEPT)
    return uri


def newest_checkpoint(run_uri: str, work_dir: Path) -> Path | None:
    """The newest committed training state of a run, as a local folder."""
    checkpoints = storage.join(run_uri, "checkpoints")
    names = storage.committed(checkpoints)
    return storage.fetch(storage.join(checkpoints, names[-1]), work_dir / "restored" / names[-1]) if names else None


def stop_mark(run_uri: str) -> str:
    """The object whose presence asks a run's workers to save and stop."""
    return storage.join(run_uri, "STOP")
