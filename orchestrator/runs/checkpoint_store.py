"""Checkpoints and delivered taggers of one run, or of one trial of a search, on any fsspec URI.

One fencing rule holds for all of them (`workloads/runtime/checkpoint_store.py`): every commit, replacement and removal
checks first that the store's attempt is still the newest one. Checkpoints are named `step-S-attempt-A`, so attempts
never write into each other's folders. A run resumes from the newest attempt's last step: what an older attempt may have
committed after it was superseded is not what the newer ones continued from.
"""

import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NotRequired, Protocol, Self, TypeVar

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from orchestrator.runs.lease import Attempt
from orchestrator.storage import object_store, published_folders
from orchestrator.storage.retry import print_status, retry_while_unavailable

Value = TypeVar("Value")
Scores = Callable[[str], dict[str, float]]  # of a checkpoint: each model's validation score with exactly these weights
NAME = re.compile(r"step-(\d+)-attempt-(\d+)")


class _CheckpointScores(TypedDict):
    """state.json of a checkpoint: what decides whether it is kept."""

    best_for: NotRequired[dict[str, float]]


class Retention(Protocol):
    """Which checkpoints are committed at all, and which of the committed ones may be removed."""

    @property
    def keeps_any(self) -> bool:
        """Whether any checkpoint is committed at all."""
        ...

    def commits(self, name: str) -> bool: ...

    def removable(self, names: list[str], scores: Scores) -> list[str]:
        """Of `names`, the one to resume from first, those that are needed no longer."""
        ...


@dataclass(frozen=True)
class NewestAndBest:
    """For runs: the newest `keep_last` checkpoints stay, and each model's best by validation score."""

    keep_last: int
    keeps_any = True

    def commits(self, name: str) -> bool:
        return True

    def removable(self, names: list[str], scores: Scores) -> list[str]:
        kept = set(names[: self.keep_last])
        for model in {model for name in names for model in scores(name)}:
            scored = [name for name in names if model in scores(name)]
            kept.add(max(reversed(scored), key=lambda name: scores(name)[model]))  # of equal scores, the oldest
        return [name for name in names if name not in kept]


@dataclass(frozen=True)
class NewestAt:
    """For trials that pause at rungs: checkpoints of these steps only, all those of the newest few steps.

    Population based training may start another trial from one of the last ones, so more than one step stays; of a step
    that several attempts have reached, all checkpoints stay.
    """

    steps: tuple[int, ...]
    keep_last: int = 3

    @property
    def keeps_any(self) -> bool:
        return bool(self.steps)

    def commits(self, name: str) -> bool:
        return step_of(name) in self.steps

    def removable(self, names: list[str], scores: Scores) -> list[str]:
        newest_steps = list(dict.fromkeys(step_of(name) for name in names))[: self.keep_last]
        return [name for name in names if step_of(name) not in newest_steps]


class CheckpointStore:
    """`workloads.runtime.checkpoint_store.CheckpointStore` on any fsspec URI, for the process that holds `claim`.

    Each call waits up to `patience_s` seconds for a store that is unavailable, then raises OSError; calls that change
    something raise Superseded if a newer attempt exists. A kill leaves a folder without its marker, which counts as
    absent and is removed by `collect_garbage` of a later attempt. With `start`, a checkpoint's URI, possibly another
    trial's, it resumes from that one instead of its own newest. While `hurried`, checkpoints are committed and none is
    removed: who preempts a run soon kills it. The next attempt removes them.
    """

    def __init__(
        self,
        claim: Attempt,
        *,
        retention: Retention,
        patience_s: float,
        start: str = "",
        hurried: Callable[[], bool] = lambda: False,
    ) -> None:
        self.attempt = claim.number
        self.newest_uri = ""  # of the checkpoint committed last by this store
        self._claim, self._retention, self._patience_s, self._start = claim, retention, patience_s, start
        self._hurried = hurried
        self._checkpoints = object_store.join(claim.run_uri, "checkpoints")
        self._scores_of: dict[str, dict[str, float]] = {}  # read once: a committed checkpoint never changes

    def publish(self, folder: Path) -> None:
        """Commit a checkpoint if the retention wants it, then remove those that it needs no longer, unless hurried."""
        if not self._retention.commits(folder.name):
            shutil.rmtree(folder)
            return
        self.newest_uri = self._put(folder, object_store.join(self._checkpoints, folder.name))
        if self._hurried():
            return
        for name in self._retention.removable(self._own_names(), self._scores):
            self.remove(name)

    def deliver(self, folder: Path) -> str:
        """Commit a tagger in `models/NAME/attempt-N` and return `models/NAME`, which stands for the newest attempt's.

        Attempts never write into, or remove, each other's folders: an attempt that was superseded between its check and
        its request cannot touch what the newer one has delivered.
        """
        uri = object_store.join(self._claim.run_uri, "models", folder.name)
        self._put(folder, object_store.join(uri, f"attempt-{self.attempt}"))
        return uri

    def names(self) -> list[str]:
        """Committed checkpoints, the one to resume from first."""
        if self._start:
            return [self._start.rsplit("/", 1)[-1]]
        return self._own_names() if self._retention.keeps_any else []

    def newest_step(self) -> int:
        """The step of the checkpoint to resume from; 0 where there is none."""
        names = self.names()
        return step_of(names[0]) if names else 0

    def fetch(self, name: str, work_dir: Path) -> Path:
        """A committed checkpoint as a local folder."""
        uri = self._start or object_store.join(self._checkpoints, name)
        return self._retry(lambda: published_folders.fetch(uri, work_dir / "restored" / name), uri)

    def remove(self, name: str) -> None:
        """Remove one checkpoint."""
        uri = object_store.join(self._checkpoints, name)

        def remove() -> None:
            self._claim.check_newest()
            published_folders.remove_folder(uri)

        self._retry(remove, uri)

    def collect_garbage(self) -> None:
        """Remove what killed attempts began to save and never committed; called before this attempt saves anything."""

        def collect() -> None:
            self._claim.check_newest()
            committed = published_folders.list_committed(self._checkpoints)
            for name in object_store.list_names(self._checkpoints):
                if name not in committed:
                    published_folders.remove_folder(object_store.join(self._checkpoints, name))
            object_store.abort_stale_uploads(self._claim.run_uri)

        self._retry(collect, self._checkpoints)

    def _put(self, folder: Path, uri: str) -> str:
        def put() -> str:
            self._claim.check_newest()
            return published_folders.publish(folder, uri, before_commit=self._claim.check_newest)

        published = self._retry(put, uri)
        shutil.rmtree(folder)
        return published

    def _own_names(self) -> list[str]:
        return self._retry(lambda: resume_order(published_folders.list_committed(self._checkpoints)), self._checkpoints)

    def _scores(self, name: str) -> dict[str, float]:
        if name not in self._scores_of:
            uri = object_store.join(self._checkpoints, name, "state.json")
            try:
                state = self._retry(lambda: object_store.read_json(uri, _CheckpointScores), uri)
            except ValueError as error:  # training goes on: it cannot be resumed from, so it need not be kept either
                print_status(f"counts as without scores: {error}")
                state = {}
            self._scores_of[name] = state.get("best_for", {})
        return self._scores_of[name]

    def _retry(self, call: Callable[[], Value], what: str) -> Value:
        return retry_while_unavailable(call, what=what, patience_s=self._patience_s)


class BackgroundUploads:
    """A checkpoint store whose `publish` returns at once: a thread uploads, one checkpoint at a time.

    Called by the training thread. The failure of an upload is raised by the next call, or at the end of the context,
    which waits for the last upload. A kill loses at most the checkpoint that is being uploaded.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self.attempt, self._store = store.attempt, store
        self._uploads = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._last: Future[None] | None = None

    def publish(self, folder: Path) -> None:
        self._wait()
        self._last = self._uploads.submit(self._store.publish, folder)

    def deliver(self, folder: Path) -> str:
        self._wait()
        return self._store.deliver(folder)

    def names(self) -> list[str]:
        self._wait()
        return self._store.names()

    def fetch(self, name: str, work_dir: Path) -> Path:
        return self._store.fetch(name, work_dir)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._uploads.shutdown()
        if error is None:
            self._wait()


def resume_order(names: list[str]) -> list[str]:
    """Checkpoint names, the one to resume from first: the newest attempt's last step."""
    return sorted(names, key=lambda name: (_attempt_of(name), step_of(name)), reverse=True)


def step_of(name: str) -> int:
    """The step of a checkpoint called step-S-attempt-A."""
    return int(_parts(name)[0])


def _attempt_of(name: str) -> int:
    return int(_parts(name)[1])


def _parts(name: str) -> tuple[str, ...]:
    match = NAME.fullmatch(name)
    assert match, f"checkpoint {name}: must be called step-S-attempt-A"
    return match.groups()
