"""Where a training run lives: which worker this is, where its reports go, when it must stop.

The loop knows only `Session`. `LocalSession` trains without Ray, for instance on a bare GPU machine.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from workloads.runtime.checkpoint_store import CheckpointStore
from workloads.runtime.event_log import EventLog


class Session(Protocol):
    """The loop's surroundings. `report` and `should_stop` are called by every worker equally often."""

    rank: int
    world_size: int
    device: torch.device
    work_dir: Path  # this worker's scratch folder
    attempt: int  # the how manieth time somebody works on this run

    def report(self, records: list[dict[str, Any]], checkpoint: Path | None = None) -> None:
        """Hand over spool records and, if any, a finished checkpoint folder, which then belongs to the session."""
        ...

    def deliver(self, folder: Path) -> str:
        """Publish a finished tagger folder and return its URI; called by rank 0 only."""
        ...

    def checkpoints(self) -> list[str]:
        """The names of this run's committed checkpoints, the one to go on from first."""
        ...

    def fetch(self, name: str) -> Path:
        """A committed checkpoint as a local folder; whether it is whole is the caller's question."""
        ...

    def should_stop(self) -> bool:
        """Whether the run was asked to save and stop."""
        ...


class LocalSession:
    """A run in this process, alone: no Ray, no process group."""

    rank = 0
    world_size = 1

    def __init__(
        self,
        *,
        work_dir: Path,
        event_log: EventLog,
        store: CheckpointStore,
        device: str = "cpu",
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
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

    def fetch(self, name: str) -> Path:
        return self._store.fetch(name, self.work_dir)


def gather(session: Session, value: Any) -> list[Any]:
    """Every worker's value, by rank, on every worker (small Python objects; control flow and metrics, not tensors)."""
    if session.world_size == 1:
        return [value]
    values: list[Any] = [None] * session.world_size
    dist.all_gather_object(values, value)
    return values
