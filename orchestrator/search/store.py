"""What a search keeps on its storage: who it is, what each task tries, and, once, what came of it.

SEARCH/search.json first, SEARCH/trials/0000/ and SEARCH/finals/NAME/ with settings.json when begun and result.json
when over, SEARCH/outcome.json last (while a search that was over goes on it is called earlier.json). Whoever comes back
reads these; there is no other state. `trials.py` reads them for people, and for them alone are cluster.json, a trial's
rungs.json while it runs, and mlflow.json (`family.py`).
"""

import json
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.search.trial_spec import Task
from orchestrator.storage import object_store
from orchestrator.storage.retry import retry_while_unavailable

PATIENCE_S = 300.0  # for the search's store, wherever something of it is written or read
Value = TypeVar("Value")
OUTCOME, EARLIER = "outcome.json", "earlier.json"


def begin(search_uri: str, facts: dict[str, Any]) -> bool:
    """Write search.json; False where there is such a search already."""
    return object_store.create_exclusively(
        object_store.join(search_uri, "search.json"), json.dumps(facts, indent=1).encode()
    )


def facts_of(search_uri: str) -> dict[str, Any]:
    """What search.json says; ValueError where there is none."""
    facts = _read(object_store.join(search_uri, "search.json"))
    if facts is None:
        raise ValueError(f"search {search_uri!r}: no search.json there; give the id of a search under --storage")
    return facts


def write_cluster(search_uri: str, *, slots: int, dashboard: str, trials: int) -> None:
    """Say where the search goes on now: trials at once, the address of Ray's dashboard (empty: it has none), and how
    many trials there are to be."""
    _write(object_store.join(search_uri, "cluster.json"), {"slots": slots, "dashboard": dashboard, "trials": trials})


def reopen(search_uri: str) -> None:
    """Go on: what an earlier driver's search came to is kept apart until this one's is written, which adds to it."""
    uri = object_store.join(search_uri, OUTCOME)
    if (outcome := _read(uri)) is not None:
        _write(object_store.join(search_uri, EARLIER), outcome)
        _retry(lambda: object_store.remove_file(uri), uri)


def earlier(search_uri: str) -> dict[str, Any]:
    """What the search came to before it was reopened; empty where it never was over."""
    return _read(object_store.join(search_uri, EARLIER)) or {}


def write_outcome(search_uri: str, outcome: dict[str, Any]) -> None:
    """Say what the search came to: it is over."""
    _write(object_store.join(search_uri, OUTCOME), outcome)


def known_trials(search_uri: str) -> list[tuple[Task, dict[str, Any] | None]]:
    """Every trial that was begun, by number, with its result if it has one."""
    found, uri = [], object_store.join(search_uri, "trials")
    for name in sorted(_retry(lambda: object_store.list_names(uri), uri)):
        said = _read(object_store.join(uri, name, "settings.json"))
        if said is not None:
            task = Task("trial", said["number"], said["settings"], said["seed"])
            found.append((task, read_result(search_uri, task)))
    return found


def write_settings(search_uri: str, task: Task, *, began: float) -> None:
    """Say that a task is begun; a later beginning replaces an earlier one that came to nothing."""
    _write(object_store.join(search_uri, task.folder, "settings.json"), asdict(task) | {"began": began})


def write_rungs(
    search_uri: str, task: Task, history: list[dict[str, Any]], *, began: float, loop_seconds: float
) -> None:
    """Say how a task that is not over stood at its rungs so far, and how long that took."""
    said = {"history": history, "began": began, "loop_seconds": loop_seconds, "told": time.time()}
    _write(object_store.join(search_uri, task.folder, "rungs.json"), said)


def read_rungs(search_uri: str, task: Task) -> dict[str, Any] | None:
    """What `write_rungs` said last, if anything."""
    return _read(object_store.join(search_uri, task.folder, "rungs.json"))


def write_result(search_uri: str, task: Task, result: dict[str, Any]) -> None:
    """Commit what came of a task, unless that was done before."""
    said = asdict(task) | {"second": None, "host": socket.gethostname()} | result | {"ended": time.time()}
    uri = object_store.join(search_uri, task.folder, "result.json")
    _retry(lambda: object_store.create_exclusively(uri, json.dumps(said).encode()), uri)


def read_result(search_uri: str, task: Task) -> dict[str, Any] | None:
    """What came of a task, if it is over."""
    return _read(object_store.join(search_uri, task.folder, "result.json"))


def share(search_uri: str, file: Path) -> None:
    """Put a file of the driver's beside what is kept, if it is there and that is elsewhere; once, without patience."""
    if not object_store.is_local(search_uri) and file.exists():
        object_store.put_text(object_store.join(search_uri, file.name), file.read_text())


def _read(uri: str) -> dict[str, Any] | None:
    def read() -> dict[str, Any] | None:
        return json.loads(object_store.get_text(uri)) if object_store.exists(uri) else None

    return _retry(read, uri)


def _write(uri: str, said: dict[str, Any]) -> None:
    _retry(lambda: object_store.put_text(uri, json.dumps(said, indent=1)), uri)


def _retry(call: Callable[[], Value], what: str) -> Value:
    return retry_while_unavailable(call, what=what, patience_s=PATIENCE_S)
