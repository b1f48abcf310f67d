"""Where an attempt of a run keeps its checkpoints and taggers: publishing, finding, retention, garbage.

Checkpoints are named `step-S-attempt-A`: attempts never write into each other's folders. To go on from is the newest
attempt's last one, since what an older attempt may still have committed is not what the newer ones built on.
"""

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from orchestrator.runs.lease import Attempt
from orchestrator.storage import object_store
from orchestrator.storage.retry import retry_while_unavailable

Value = TypeVar("Value")
NAME = re.compile(r"step-(\d+)-attempt-(\d+)")


class RunCheckpointStore:
    """`workloads.session.Shelf` on any fsspec URI, guarded by the attempt that may commit."""

    def __init__(self, attempt: Attempt, *, keep_last: int, patience_s: float) -> None:
        self.attempt = attempt.number
        self._claim, self._keep_last, self._patience_s = attempt, keep_last, patience_s
        self._checkpoints = object_store.join(attempt.run_uri, "checkpoints")
        self._best: dict[str, dict[str, float]] = {}  # checkpoint -> its models' scores; markers never change

    def publish(self, folder: Path) -> None:
        """Commit a training state, then let those go that are neither new nor anybody's best.

        Raises attempts.Superseded if this attempt may not commit any more, OSError where the store stays away.
        """
        self._put(folder, object_store.join(self._checkpoints, folder.name))
        self._retry(self._tidy, self._checkpoints)

    def deliver(self, folder: Path) -> str:
        """Commit a tagger under `models/`; one that an older attempt left there is replaced if it differs."""
        return self._put(folder, object_store.join(self._claim.run_uri, "models", folder.name))

    def names(self) -> list[str]:
        """Committed checkpoints, the one to go on from first."""
        return self._retry(self._committed, self._checkpoints)

    def fetch(self, name: str, work_dir: Path) -> Path:
        """A committed checkpoint as a local folder."""
        uri = object_store.join(self._checkpoints, name)
        return self._retry(lambda: object_store.fetch(uri, work_dir / "restored" / name), uri)

    def collect_garbage(self) -> None:
        """Remove what killed attempts began to save and never committed; called before this one saves anything."""

        def collect() -> None:
            finished = object_store.list_committed(self._checkpoints)
            for name in object_store.list_names(self._checkpoints):
                if name not in finished:
                    object_store.remove_folder(object_store.join(self._checkpoints, name))
            object_store.abort_stale_uploads(self._claim.run_uri)

        self._retry(collect, self._checkpoints)

    def _put(self, folder: Path, uri: str) -> str:
        def put() -> str:
            self._claim.check_newest()
            return object_store.publish(folder, uri, before_commit=self._claim.check_newest)

        published = self._retry(put, uri)
        shutil.rmtree(folder)
        return published

    def _retry(self, call: Callable[[], Value], what: str) -> Value:
        return retry_while_unavailable(call, what=what, patience_s=self._patience_s)

    def _committed(self) -> list[str]:
        return ordered(object_store.list_committed(self._checkpoints))

    def _tidy(self) -> None:
        for name in self._superfluous():
            object_store.remove_folder(object_store.join(self._checkpoints, name))

    def _superfluous(self) -> list[str]:
        found = self._committed()
        kept = set(found[: self._keep_last])
        for model in {model for name in found for model in self._scores(name)}:
            scored = [name for name in found if model in self._scores(name)]
            kept.add(max(reversed(scored), key=lambda name: self._scores(name)[model]))  # of equals, the oldest
        return [name for name in found if name not in kept]

    def _scores(self, name: str) -> dict[str, float]:
        if name not in self._best:
            state: dict[str, Any] = json.loads(
                object_store.get_text(object_store.join(self._checkpoints, name, "state.json"))
            )
            self._best[name] = state["best_for"]
        return self._best[name]


class BackgroundUploads:
    """A shelf on which training does not wait for uploads: one runs at a time, and its failure is raised by the next
    call; at the context's end by the context."""

    def __init__(self, store: RunCheckpointStore) -> None:
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


def ordered(names: list[str]) -> list[str]:
    """Checkpoint names, the one to go on from first: the newest attempt's last step."""

    def key(name: str) -> tuple[int, int]:
        step, attempt = NAME.fullmatch(name).groups()  # type: ignore[union-attr]
        return int(attempt), int(step)

    return sorted(names, key=key, reverse=True)
