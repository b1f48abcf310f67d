"""Where a run keeps checkpoints and delivered taggers, and the rule that only its newest attempt may change them.

The rule (fencing): each attempt claims the run by creating `attempts/N` exclusively, N counting from 1, and checks
before every commit, replacement and removal that no `attempts/N+1` exists. A process that was believed dead, but still
runs after another has resumed its run, can therefore change nothing any more. The orchestrator's store follows the same
rule on object stores (`orchestrator/runs/checkpoint_store.py`).
"""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import filelock

MARKER = "COMMITTED.json"  # the file that makes a folder a checkpoint, written last
DELIVERED = re.compile(r"attempt-(\d+)")  # a folder within models/NAME: what that attempt delivered


class Superseded(RuntimeError):
    """A newer attempt has resumed this run; this one must not commit anything any more."""


class AlreadyDriven(RuntimeError):
    """Another process drives this run, or claimed it in the same moment; trying again later may help."""


def newest_delivered(names: Iterable[str]) -> str | None:
    """Of the committed folders within `models/NAME`, that of the newest attempt; None where there is none."""
    numbers = [int(match[1]) for name in names if (match := DELIVERED.fullmatch(name))]
    return f"attempt-{max(numbers)}" if numbers else None


class CheckpointStore(Protocol):
    """Storage of one attempt of a run. `publish` and `deliver` consume the folder that they are given."""

    attempt: int  # number of this attempt, from 1

    def publish(self, folder: Path) -> None:
        """Commit a checkpoint; raises Superseded if a newer attempt exists."""

    def deliver(self, folder: Path) -> str:
        """Commit a finished tagger's folder and return its URI; raises Superseded if a newer attempt exists."""
        ...

    def names(self) -> list[str]:
        """Names of the committed checkpoints, the one to resume from first."""
        ...

    def fetch(self, name: str, work_dir: Path) -> Path:
        """A committed checkpoint as a local folder, below `work_dir` where it has to be downloaded."""
        ...


class LocalCheckpointStore:
    """A checkpoint store in one local folder, for runs without the orchestrator. Claims the next attempt when built.

    A file lock makes the check and what follows it one step for all processes of this machine.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        claims = folder / "attempts"
        claims.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(claims / "lock")
        with self._lock:
            self.attempt = 1 + max((int(claim.name) for claim in claims.iterdir() if claim.name.isdigit()), default=0)
            self._claim(self.attempt).touch(exist_ok=False)

    def publish(self, folder: Path) -> None:
        self._move(folder, "checkpoints")

    def deliver(self, folder: Path) -> str:
        return self._move(folder, "models")

    def names(self) -> list[str]:
        committed = (self._folder / "checkpoints").glob(f"*/{MARKER}")
        return sorted((marker.parent.name for marker in committed), reverse=True)

    def fetch(self, name: str, work_dir: Path) -> Path:
        return self._folder / "checkpoints" / name

    def _claim(self, attempt: int) -> Path:
        return self._folder / "attempts" / str(attempt)

    def _move(self, folder: Path, kind: str) -> str:
        with self._lock:
            if self._claim(self.attempt + 1).exists():
                raise Superseded(f"{self._folder}: a newer attempt has resumed this run; this one commits nothing")
            target = self._folder / kind / folder.name
            if target.exists():  # an earlier attempt's
                shutil.rmtree(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            return str(shutil.move(folder, target))
