"""The surroundings of a training run: which worker this is, where its records and checkpoints go, when it must stop.

The loop depends on `Session` only. `LocalSession` trains without Ray, for instance on a single GPU machine.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from workloads.runtime.checkpoint_store import CheckpointStore
from workloads.runtime.event_log import EventLog


@dataclass(frozen=True)
class StepTimes:
    """How long one worker took for one training step, in seconds of the host's clock; nothing waited for a GPU.

    The step as a whole is exact on a GPU too, since the loop waits for its losses. Of work that a GPU is only told to
    do, `teacher` is the time of telling it.
    """

    step: float  # without validation and checkpoints
    data_wait: float  # until the crops of its shards were read, or handed over by loaders
    teacher: float  # asking teachers: forwards of frozen ones, reading stores
    clips: int  # that this worker trained on
    exchange: dict[str, float] = field(default_factory=dict)  # by model: see `TrainState.exchange_seconds`


class Session(Protocol):
    """What the loop needs of its surroundings.

    Every worker calls `report` and `should_stop` equally often and in the same order: an implementation may communicate
    with the other workers in them. Only rank 0 calls `deliver` and `checkpoints`; each worker calls `fetch` and
    `on_step` for itself.
    """

    rank: int
    world_size: int
    device: torch.device
    work_dir: Path  # this worker's scratch folder
    attempt: int  # attempt number of this run, from 1
    teachers: Any  # the servers of frozen teachers (`distill/service.py`); None: there are none

    def report(self, records: list[dict[str, Any]], checkpoint: Path | None = None) -> None:
        """Append records to the event log and publish a finished checkpoint folder, which then belongs to the session.

        A session may hold records back until a later call. A kill loses records and a checkpoint that have not been
        written yet, never half of a checkpoint: without its marker file it does not count.
        """
        ...

    def on_step(self, step: int, times: StepTimes) -> None:
        """Take the times of this worker's step, after which `step` steps are done; must return within microseconds."""
        ...

    def deliver(self, folder: Path) -> str:
        """Publish a finished tagger folder and return its URI; called by rank 0 only."""
        ...

    def checkpoints(self) -> list[str]:
        """The names of this run's committed checkpoints, the one to resume from first."""
        ...

    def fetch(self, name: str) -> Path:
        """A committed checkpoint as a local folder; the caller checks whether it is intact."""
        ...

    def should_stop(self) -> bool:
        """Whether the run was asked to save a checkpoint and stop; the same on every worker."""
        ...


class LocalSession:
    """A run with this process as its only worker: no Ray, no process group."""

    rank = 0
    world_size = 1
    teachers: Any = None

    def __init__(
        self,
        *,
        work_dir: Path,
        event_log: EventLog,
        store: CheckpointStore,
        device: str = "cpu",
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        # the loop keeps its own copy of the records in work_dir, under the same file name
        assert event_log.path.parent != work_dir, "the event log must not lie in work_dir"
        self.work_dir = work_dir
        self.device = torch.device(device)
        self.attempt = store.attempt
        self.should_stop = should_stop
        self.deliver, self.checkpoints = store.deliver, store.names
        self._event_log, self._store = event_log, store

    def report(self, records: list[dict[str, Any]], checkpoint: Path | None = None) -> None:
        for record in records:
            self._event_log.append(record)
        if checkpoint is not None:
            self._store.publish(checkpoint)

    def on_step(self, step: int, times: StepTimes) -> None:
        """Nothing: the loop records the times of this only worker."""

    def fetch(self, name: str) -> Path:
        return self._store.fetch(name, self.work_dir)


def gather(session: Session, value: Any) -> list[Any]:
    """The values of all workers, ordered by rank. Every worker calls it, and equally often.

    For small Python objects that control the loop or are logged, not for tensors. On workers with GPUs the process
    group needs a backend for the CPU too: torch takes that one for objects.
    """
    if session.world_size == 1:
        return [value]
    values: list[Any] = [None] * session.world_size
    dist.all_gather_object(values, value)
    return values
