"""What Ray Train runs in each worker: a session that reports through Ray, and the training loop, which knows no Ray."""

import os
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointUploadMode, UserCallback

from orchestrator.recipes.loader import parse
from orchestrator.runs.checkpoint_store import BackgroundUploads, CheckpointStore, NewestAndBest
from orchestrator.runs.lease import Driver, stop_requested, take_next
from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.storage.retry import retry_while_unavailable
from orchestrator.training.ray_elastic import RESIZE_REQUEST, SAVED
from orchestrator.training.ray_metrics import RunMetrics
from orchestrator.training.ray_teachers import RayTeachers
from workloads.config.recipe import Recipe
from workloads.evaluate.predict import BadNumbers
from workloads.run import set_up
from workloads.runtime.checkpoint_store import Superseded
from workloads.runtime.event_log import EventLog, timestamped
from workloads.runtime.redaction import redacted
from workloads.runtime.scratch import scratch_folder
from workloads.runtime.session import StepTimes, gather
from workloads.runtime.text import one_line
from workloads.train import loop

STOP_EVERY = 5  # calls of should_stop between two exchanges with rank 0, where steps are short
SHORT_STEP_S = 0.2
LEFT = 75  # the exit code of a worker whose node is to be taken away, once all is saved
POLL_S = 1.0  # rank 0 reads the storage for a stop request at most this often
RESIZE_S = 300.0  # how long workers that have saved wait to be started again as more or fewer
REPORT_S = 1.0  # Ray takes one report per poll of its controller; more of them would queue up


class RaySession:
    """A worker's session. Records leave through `ray.train.report`; rank 0 uploads checkpoints in the background.

    `claim`, `report`, `should_stop` and `close` are called by all workers equally often, since they exchange values;
    `deliver` and `checkpoints` by rank 0 only; `fetch` by each worker for itself. Ray is told of no checkpoint: its
    asynchronous uploads queue up without a limit, and records would wait in that queue too.
    """

    def __init__(self, run_uri: str, driver: Driver, device: str, work_dir: Path, *, label: str) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device() if device == "cuda" else torch.device("cpu")
        self.work_dir = work_dir
        self._run_uri, self._driver = run_uri, driver
        self._calls_to_exchange, self._stop = STOP_EVERY, False
        self._exchanged_at, self._stop_every = time.monotonic(), STOP_EVERY
        self.leaving: frozenset[str] = frozenset()  # ids of nodes that are to be taken away
        self.resizing = False  # whether the workers are to start again as more or fewer
        self._polled_at = self._reported_at = time.monotonic()
        self._unreported: list[dict[str, Any]] = []
        self.metrics = RunMetrics(label, self.rank, self.device)
        self.teachers: RayTeachers | None = None

    def claim(self, recipe: Recipe, *, patience_s: float) -> None:
        """Claim the run's next attempt for these workers; Superseded is raised on all of them if it is not theirs.

        Waits for a store that is unavailable: workers that failed at once would use up Ray's restarts in a minute.
        """
        answer: Any = None
        if self.rank == 0:
            try:
                answer = retry_while_unavailable(
                    lambda: take_next(self._run_uri, self._driver), what=self._run_uri, patience_s=patience_s
                )
            except Superseded as error:
                answer = error
        answer = gather(self, answer)[0]
        if isinstance(answer, Superseded):
            raise answer
        self.attempt = answer.number
        nodes = Counter(gather(self, ray.util.get_node_ip_address()))
        if self.rank == 0:
            self._unreported.append(timestamped("workers", count=self.world_size, nodes=dict(nodes)))
        retention = NewestAndBest(recipe.train.keep_last)
        store = CheckpointStore(
            answer, retention=retention, patience_s=patience_s, hurried=lambda: self._stop or bool(self.leaving)
        )
        if self.rank == 0:
            store.collect_garbage()
        self.uploads = BackgroundUploads(store)

    def report(self, records: list[dict[str, Any]], checkpoint: Path | None = None) -> None:
        """Send records with a checkpoint, or about once a second; rank 0 decides when, for all workers.

        Rank 0 raises here what the upload before has failed with; then Ray starts the workers again.
        """
        self._unreported += records
        self.metrics.on_records(records)
        if checkpoint is not None:
            self.uploads.publish(checkpoint)
        if not gather(self, checkpoint is not None or time.monotonic() - self._reported_at > REPORT_S)[0]:
            return
        self._reported_at = time.monotonic()
        unreported, self._unreported = self._unreported, []
        # ASYNC: does not wait for the controller's next poll
        ray.train.report({"records": unreported}, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)

    def on_step(self, step: int, times: StepTimes) -> None:
        self.metrics.on_step(step, times)

    def deliver(self, folder: Path) -> str:
        return self.uploads.deliver(folder)

    def checkpoints(self) -> list[str]:
        return self.uploads.names()

    def fetch(self, name: str) -> Path:
        return self.uploads.fetch(name, self.work_dir)

    def should_stop(self) -> bool:
        """Whether the driver has asked to stop, a node of these workers is to be taken away (`leaving`), or the cluster
        holds another number of them (`resizing`).

        Rank 0 finds out about once a second, or after every step where steps take longer, and all workers get the same
        answer.
        """
        self._calls_to_exchange -= 1
        if self._calls_to_exchange <= 0 and not self._stop:
            now = time.monotonic()
            short = (now - self._exchanged_at) / self._stop_every < SHORT_STEP_S
            due, self._stop_every = gather(self, (now - self._polled_at >= POLL_S, STOP_EVERY if short else 1))[0]
            self._exchanged_at, self._calls_to_exchange = now, self._stop_every
            if due:
                self._polled_at = now
                asked, resize = gather(self, self._requests())[0]
                self._stop = asked or self._must_leave() or resize
                self.resizing = resize and not asked and not self.leaving
        return self._stop

    def _requests(self) -> tuple[bool, bool]:
        """Whether a stop and another number of workers are asked for, as far as rank 0 knows."""
        return (self._stop_requested(), RESIZE_REQUEST.made()) if self.rank == 0 else (False, False)

    def _stop_requested(self) -> bool:
        try:
            return stop_requested(self._run_uri, self._driver)
        except Exception:  # a short outage of the store must not end the training; the next poll follows
            return False

    def _must_leave(self) -> bool:
        info = ray.train.get_preemption_info()
        self.leaving = frozenset(info.preempted_node_ids) if info else frozenset()
        return bool(self.leaving)

    def leave(self, step: int) -> NoReturn:
        """End these workers, once what they have learned is saved; Ray starts them again on other nodes.

        Called by all of them. Those on nodes that are to be taken away exit: Ray sees where they were, and counts no
        failure, of which it forgives few.
        """
        records = [timestamped("leaving", step=step, nodes=len(self.leaving))] if self.rank == 0 else []
        ray.train.report({"records": [*self._unreported, *records]})
        for _ in range(2):
            # each returns once the one before is taken; when the second is, the answer that took the first has arrived
            ray.train.report({"records": []})
        gather(self, None)  # that of all workers, without which Ray's controller passes on none
        if ray.get_runtime_context().get_node_id() in self.leaving:
            os._exit(LEFT)
        raise NodesAreLeaving("the workers start again on other nodes")

    def wait_to_be_resized(self, step: int) -> None:
        """Say that all is saved, and wait for Ray's controller to end these workers and to start others.

        Called by all of them. Returns where the driver asks to stop meanwhile.
        """
        records = [timestamped("resizing", step=step, workers=self.world_size)] if self.rank == 0 else []
        unreported, self._unreported = self._unreported, []
        ray.train.report({"records": [*unreported, *records], SAVED: True})
        deadline = time.monotonic() + RESIZE_S
        while not self._stop_requested():
            if time.monotonic() > deadline:
                raise TimeoutError(f"another number of workers was not started within {RESIZE_S:.0f} s")
            time.sleep(POLL_S)

    def close(self, status: str, error: str = "", *, mistake: bool = False) -> None:
        """Report how the workers ended; a report without ASYNC waits for the records before it."""
        closed = timestamped("closed", status=status, error=error, mistake=mistake)
        ray.train.report({"records": [*self._unreported, closed]})


class NodesAreLeaving(Exception):
    """Ends a worker because the node of another one is to be taken away."""


class EventLogCallback(UserCallback):
    """Appends rank 0's records to the event log as they arrive, and the failures of workers.

    Runs in Ray's controller, on the driver's node.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._event_log: EventLog | None = None  # opened in the controller's process, not where this is pickled
        self._leaving = False  # whether the workers' last words were that they end because nodes are taken away

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        records = metrics[0]["records"]
        self._leaving = self._leaving if not records else records[-1]["kind"] == "leaving"
        self._append(records)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Ray calls this before it starts the workers again, or gives up."""
        if self._leaving:
            return
        self._append(
            [
                timestamped("worker-failed", rank=rank, error=redacted(one_line(error)))
                for rank, error in sorted(worker_exceptions.items())
            ]
        )

    def _append(self, records: list[dict[str, Any]]) -> None:
        self._event_log = self._event_log or EventLog(Path(self._path))
        for record in records:
            self._event_log.append(record)


def train_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs in each worker, once per start of the group.

    Mistakes, bad numbers and a superseded attempt end the run by a `closed` record: raised, Ray would only repeat them.
    An attempt that is superseded while it trains fails on rank 0 alone: Ray starts the workers again, and all of them
    learn it when they claim.
    """
    recipe = parse(config["recipe"])
    with scratch_folder() as work_dir:
        session = RaySession(
            config["run_uri"], Driver(**config["driver"]), recipe.train.device, work_dir, label=config["label"]
        )
        try:
            session.claim(recipe, patience_s=config["patience_s"])
        except Superseded as error:
            session.close("failed", str(error))
            return
        with session.uploads, session.metrics.refreshed():
            status, step = _train(recipe, session, until=config["until"])
        if session.leaving and status["status"] == "preempted":
            session.leave(step)
        if session.resizing and status["status"] == "preempted":
            session.wait_to_be_resized(step)
        session.close(**status)


def _train(recipe: Recipe, session: RaySession, *, until: int | None) -> tuple[dict[str, Any], int]:
    """Train, and return how it ended, the arguments of `RaySession.close`, and at which step."""
    try:
        if recipe.placement == "service":
            session.teachers = RayTeachers(recipe, rank=session.rank, gather=partial(gather, session))
        run = set_up(recipe, session, files=FsspecFiles())
    except ValueError as mistake:
        return {"status": "failed", "error": str(mistake), "mistake": True}, 0
    try:
        return {"status": loop(run, until=until)}, run.step
    except BadNumbers as error:
        return {"status": "failed", "error": str(error)}, run.step
