"""The runs and searches of a storage, each in a few requests: status, score, progress, times.

Does not depend on how they are shown (`cli/runs.py`). Reads only, also while they run; a damaged file of one hides
neither the others nor what its own other files say.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from orchestrator.recipes.loader import parse
from orchestrator.runs.checkpoint_store import NAME as CHECKPOINT_NAME
from orchestrator.runs.checkpoint_store import resume_order, step_of
from orchestrator.runs.lease import DriverState, last_driver
from orchestrator.runs.location import NAME, RESERVED
from orchestrator.runs.resume import RECIPE
from orchestrator.search.files import Definition, SearchCluster
from orchestrator.search.store import CLUSTER, DEFINITION, OUTCOME, RESULT, TRIALS
from orchestrator.storage import object_store
from orchestrator.storage.listing import Listing, list_folder
from orchestrator.storage.retry import retry_while_unavailable
from workloads.config.search import objective_name
from workloads.distill.schedule import plan_phases
from workloads.runtime.checkpoint_store import MARKER
from workloads.runtime.event_log import EVENT_LOG, end_of, parse_event_log
from workloads.runtime.json_files import ARRAY

Value = TypeVar("Value")
PATIENCE_S = 5.0  # how long the list waits for a storage that is unavailable
READERS = 8  # threads: an object store takes a while for each of some hundred small files
# What the newest driver has left, where that is no outcome of its own:
RUNNING, KILLED, SILENT = "running", "killed", "silent"  # `lease.DriverState`
INTERRUPTED = "interrupted"  # it ended with a note, but without an outcome: a second signal, or a store that was gone
NOT_STARTED = "not started"  # created, and never claimed
DAMAGED = "damaged"  # its outcome cannot be read


class _Scores(TypedDict):
    """A model in outcome.json of a run."""

    val: dict[str, float]
    test: dict[str, float]


class _RunOutcome(TypedDict):
    """outcome.json of a run, as far as it is shown."""

    status: str
    error: NotRequired[str]
    resumed_from_step: int
    steps_run: int
    models: dict[str, _Scores]


class _Best(TypedDict):
    """The best trial in outcome.json of a search."""

    objective: float


class _SearchOutcome(TypedDict):
    """outcome.json of a search, as far as it is shown."""

    status: str
    trials: int
    completed: int
    stopped: int
    failed: int
    best: _Best | None


class _CheckpointScores(TypedDict):
    """state.json of a checkpoint: each model's newest validation score, with its step."""

    validated: dict[str, Annotated[tuple[int, float], ARRAY]]


@dataclass
class Entry:
    """A run or a search. Times are in seconds since the epoch, by the store's clock."""

    id: str
    kind: Literal["run", "search"]
    uri: str
    recipe: str = ""  # its name
    status: str = DAMAGED  # of the outcome (done, failed, preempted), else one of the above
    error: str = ""  # of the outcome
    metric: str = ""  # the primary one of the models, or the objective of a search
    part: str = ""  # val, test; empty where there is no score
    scores: dict[str, float] = field(default_factory=dict)  # by model; of a search `best`
    done: int | None = None  # steps, or of a search trials
    total: int | None = None
    started: float = 0.0
    updated: float = 0.0
    updated_s: float = 0.0  # seconds since then
    quiet_s: float | None = None  # since the last sign of life of a driver; None where an outcome says that it ended
    checkpoint: str = ""  # the newest one of an unfinished run
    checkpoint_age_s: float | None = None
    driver_here: bool = False  # its driver ran on this machine
    log_written: float = 0.0  # when the event log in the storage was written; 0: there is none
    problems: list[str] = field(default_factory=list)  # damaged files, which are left out


def overview(storage: str) -> list[Entry]:
    """All runs and searches directly below a storage, the newest first.

    Of requests to a store it takes one for each 1,000 entries of the storage's folder, and for each run or search that
    is done three: a listing, what it is of, and its outcome. One without an outcome takes at most seven: its attempts,
    the claim, its checkpoints (or trials, for each 1,000 files one) and a small file of these besides.
    """
    folders = retry_while_unavailable(lambda: list_folder(storage), what=storage, patience_s=PATIENCE_S).folders
    names = [name for name in folders if NAME.fullmatch(name) and not name.startswith(RESERVED)]
    with ThreadPoolExecutor(READERS) as readers:
        found = readers.map(lambda name: read_entry(object_store.join(storage, name)), names)
        entries = [entry for entry in found if entry is not None]
    return sorted(entries, key=lambda entry: (entry.started, entry.id), reverse=True)


def read_entry(uri: str, *, patience_s: float = PATIENCE_S) -> Entry | None:
    """The run or search at a URI; None where there is neither. Raises OSError where the store stays unavailable."""
    return retry_while_unavailable(lambda: _read_entry(uri), what=uri, patience_s=patience_s)


def _read_entry(uri: str) -> Entry | None:
    files = list_folder(uri)
    name = uri.rstrip("/").rsplit("/", 1)[-1]
    if RECIPE in files.written:
        return _read_run(Entry(name, "run", uri), files)
    return _read_search(Entry(name, "search", uri), files) if DEFINITION in files.written else None


def _read_run(entry: Entry, files: Listing) -> Entry:
    recipe = _readable(entry, lambda: object_store.read_json(_path(entry, RECIPE))) or {}
    entry.recipe = str(recipe.get("name", ""))
    outcome: _RunOutcome | None = _outcome(entry, files, _RunOutcome)
    _set_times(entry, files, RECIPE)
    if outcome is not None:
        entry.status, entry.error = outcome["status"], outcome.get("error", "")
        entry.done = outcome["resumed_from_step"] + outcome["steps_run"]
        entry.part = "test" if any(row["test"] for row in outcome["models"].values()) else "val"
        scores = {name: row[entry.part] for name, row in outcome["models"].items()}  # type: ignore[literal-required]
        entry.metric = "accuracy" if any("accuracy" in row for row in scores.values()) else "mAP"
        entry.scores = {name: row[entry.metric] for name, row in scores.items() if entry.metric in row}
    if entry.status == "done":
        entry.total = entry.done
        return entry
    with suppress(ValueError, RecursionError):  # a recipe of another version, or a damaged one: unknown
        entry.total = sum(phase.steps for phase in plan_phases(parse(recipe)))
    by_outcome = entry.done if _set_status(entry, files) else None
    _read_checkpoints(entry, recipe)
    entry.done = by_outcome or entry.done
    entry.updated_s = max(files.now - entry.updated, 0.0)
    return entry


def _read_checkpoints(entry: Entry, recipe: dict[str, Any]) -> None:
    """Steps and validation scores of a run that is not done, by its newest checkpoint."""
    found = list_folder(_path(entry, "checkpoints"), all_depths=True)
    names = [path.removesuffix(f"/{MARKER}") for path in found.written if path.endswith(f"/{MARKER}")]
    names = resume_order([name for name in names if CHECKPOINT_NAME.fullmatch(name)])
    if not names:
        return
    entry.checkpoint, marker = names[0], f"{names[0]}/{MARKER}"
    entry.checkpoint_age_s, entry.done = found.age(marker), step_of(names[0])
    entry.updated = max(entry.updated, found.written[marker])
    state = _path(entry, "checkpoints", names[0], "state.json")
    if (read := _readable(entry, lambda: object_store.read_json(state, _CheckpointScores))) and read["validated"]:
        entry.part = "val"
        entry.metric = "accuracy" if recipe.get("data", {}).get("labels") == "single" else "mAP"
        entry.scores = {name: score for name, (_, score) in read["validated"].items()}


def _read_search(entry: Entry, files: Listing) -> Entry:
    definition: Definition | None = _readable(
        entry, lambda: object_store.read_json(_path(entry, DEFINITION), Definition)
    )
    table: Any = definition["recipe"]["search"] if definition else {}
    if definition:
        entry.recipe = str(definition["recipe"].get("name", ""))
        entry.total, entry.metric = table["trials"], objective_name(table["metric"])
    outcome: _SearchOutcome | None = _outcome(entry, files, _SearchOutcome)
    _set_times(entry, files, DEFINITION)
    if outcome is not None:  # a search that is resumed sets it aside
        entry.status, entry.total = outcome["status"], outcome["trials"]
        entry.done = outcome["completed"] + outcome["stopped"] + outcome["failed"]
        entry.part, entry.scores = ("val", {"best": outcome["best"]["objective"]}) if outcome["best"] else ("", {})
        return entry
    if CLUSTER in files.written:
        cluster = _readable(entry, lambda: object_store.read_json(_path(entry, CLUSTER), SearchCluster))
        entry.total = cluster["trials"] if cluster else entry.total
    trials = list_folder(_path(entry, TRIALS), all_depths=True).written
    entry.done = sum(path.count("/") == 1 and path.endswith(f"/{RESULT}") for path in trials)
    entry.updated = max([entry.updated, *trials.values()])
    _set_status(entry, files)
    entry.updated_s = max(files.now - entry.updated, 0.0)
    if entry.status == INTERRUPTED and EVENT_LOG in files.written:  # a preempted search has no outcome, but an end
        log = _path(entry, EVENT_LOG)
        end = end_of(_readable(entry, lambda: parse_event_log(object_store.get_bytes(log), log)) or [])
        if end:
            entry.status, entry.quiet_s = str(end["status"]), None
    return entry


def _set_times(entry: Entry, files: Listing, first: str) -> None:
    entry.started = files.written[first]
    entry.log_written = files.written.get(EVENT_LOG, 0.0)
    entry.updated = max(files.written.get(name, 0.0) for name in (first, OUTCOME, EVENT_LOG))
    entry.updated_s = max(files.now - entry.updated, 0.0)


def _set_status(entry: Entry, files: Listing) -> bool:
    """Set the status of one that is not done; returns whether its outcome is that of the newest driver.

    An outcome that was written before the newest claim is that of an earlier driver.
    """
    last = _readable(entry, lambda: last_driver(entry.uri))
    if last is None:
        entry.status = entry.status if OUTCOME in files.written else NOT_STARTED
        return False
    entry.driver_here = last.here
    entry.updated = max(entry.updated, files.now - last.quiet_s)
    if last.state != DriverState.RUNNING and files.written.get(OUTCOME, -1.0) >= last.claimed:
        return True
    entry.quiet_s, entry.error = last.quiet_s, ""
    entry.status = INTERRUPTED if last.state == DriverState.ENDED else str(last.state)
    return False


def _outcome(entry: Entry, files: Listing, shape: Any) -> Any:
    """The outcome, if there is one that can be read."""
    if OUTCOME not in files.written:
        return None
    return _readable(entry, lambda: object_store.read_json(_path(entry, OUTCOME), shape))


def _readable(entry: Entry, read: Callable[[], Value]) -> Value | None:
    """What `read` returns; None where the file is damaged, which is noted, or was removed meanwhile."""
    try:
        return read()
    except ValueError as error:
        entry.problems.append(str(error))
    except FileNotFoundError:
        pass
    return None


def _path(entry: Entry, *parts: str) -> str:
    return object_store.join(entry.uri, *parts)
