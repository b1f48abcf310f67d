"""Where a training run lives: which worker this is, where its reports go, when it must stop.

The loop knows only `Session`. `LocalSession` trains without Ray, for instance on a bare GPU machine.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from workloads.spool import Spool


class Session(Protocol):
    """The loop's surroundings. `report` and `should_stop` are called by every worker equally often."""

    rank: int
    world_size: int
    device: torch.device
    work_dir: Path  # this worker's scratch folder

    def report(self, records: list[dict[str, Any]], checkpoint: Path | None = None) -> None:
        """Hand over spool records and, if any, a finished checkpoint folder, which then belongs to the session."""
        ...

    def deliver(self, folder: Path) -> str:
        """Publish a finished tagger folder and return its URI; called by rank 0 only."""
        ...

    def restore(self) -> Path | None:
        """The newest committed checkpoint of this run as a local folder, or None for a fresh start."""
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
        spool: Spool,
        publish: Callable[[Path, str], str],
        device: str = "cpu",
        restore_from: Path | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.work_dir = work_dir
        self.device = torch.device(device)
        self.should_stop = should_stop
        self._spool, self._publish, self._restore_from = spool, publish, restore_from

    def report(self, records: list[dict[str, Any]], checkpoint: Path | None = None) -> None:
        if checkpoint is not None:
            self._publish(checkpoint, f"checkpoints/{checkpoint.name}")
        for record in records:
            self._spool.append(record)

    def deliver(self, folder: Path) -> str:
        return self._publish(folder, f"models/{folder.name}")

    def restore(self) -> Path | None:
        return self._restore_from


def gather(session: Session, value: Any) -> list[Any]:
    """Every worker's value, by rank, on every worker (small Python objects; control flow and metrics, not tensors)."""
    if session.world_size == 1:
        return [value]
    values: list[Any] = [None] * session.world_size
    dist.all_gather_object(values, value)
    return values
