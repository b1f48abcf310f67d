"""A search: trials of one recipe until the budget is spent, then the best are held against a control.

What a trial is and does are `trial.py` and `learn.py`, who proposes is `proposals.py`, how Ray Tune runs them is
`tuning.py`, what is kept is `search_files.py`; here is what happens one after the other.
"""

import math
import os
import secrets
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from orchestrator.recipes.loader import resolve
from orchestrator.runs.lease import Driver, beating, take_over
from orchestrator.runs.location import RunLocation, location_of
from orchestrator.runs.outcome import publish_event_log
from orchestrator.runs.records import end_record
from orchestrator.runs.resume import differences
from orchestrator.search.finals import at_full_length, finals
from orchestrator.search.request import Budget, SearchRequest
from orchestrator.search.samplers import num_trials
from orchestrator.search.store import begin, facts_of, known_trials, reopen, share, write_cluster
from orchestrator.search.summary import outcome_of
from orchestrator.search.trial_spec import searched
from orchestrator.search.validation import check, require_data
from orchestrator.storage import object_store
from orchestrator.tracking.nested_runs import RUN_IDS_FILE
from orchestrator.tracking.replayer import start_replayer
from orchestrator.training.driver import wait_for_tracking
from orchestrator.training.ray_cluster import connect, resolve_address
from orchestrator.training.request import with_absolute_paths
from orchestrator.training.signals import on_sigterm
from workloads.config.recipe import Train
from workloads.runtime.event_log import EventLog, read_event_log

if TYPE_CHECKING:
    from orchestrator.search.tune_runner import TuneRunner


WAITING = 0.01  # CPUs of a trial that waits for its workers


@dataclass(frozen=True)
class SearchResult:
    """What came of a search: the object that --json prints, and where the search is."""

    outcome: dict[str, Any]
    location: RunLocation


def search(request: SearchRequest) -> SearchResult:
    """The whole search, from its checks to its outcome. ValueError for the user's mistakes."""
    budget = check(request)
    request = replace(request, recipe=with_absolute_paths(request.recipe))
    require_data(request.recipe)
    object_store.check_storage(request.storage)
    began, location, driver = time.time(), _open(request), Driver()
    with on_sigterm(_interrupt):
        try:
            take_over(location.uri, driver)  # two drivers of one search would train everything twice
            location.folder.mkdir(parents=True, exist_ok=True)
            with beating(location.uri, driver):
                return SearchResult(_drive(request, location, budget, began=began), location)
        except KeyboardInterrupt:  # before the first trial, or after the last
            said = read_event_log(location.event_log) if location.event_log.exists() else []
            if said and said[-1]["kind"] != "end":
                with EventLog(location.event_log) as event_log:
                    event_log.append(end_record("preempted"))
            return SearchResult(_preempted(location), location)


def _drive(request: SearchRequest, location: RunLocation, budget: Budget, *, began: float) -> dict[str, Any]:
    """Trials, then finals, then what came of them."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # as in run.py
    address = resolve_address(request.address)  # before Ray is imported: it reads its token's place then
    import ray

    from orchestrator.search.tune_runner import TuneRunner, count_slots

    workers, search = request.workers, searched(request.recipe)
    slot, whole = _needs(request.recipe.train, workers)
    connection = connect(ray, address, at_least=math.ceil(whole["CPU"]))
    with on_sigterm(_interrupt):  # once more: Ray has set its own
        try:
            # workers of one trial may lie on several nodes, a trial of one process does not
            slots = count_slots([connection.resources] if workers > 1 else connection.nodes, whole, request.slots)
            connection.require_visible(ray, object_store.join(location.uri, "search.json"))
            write_cluster(
                location.uri, slots=slots, dashboard=connection.dashboard, trials=num_trials(search, budget.trials)
            )
            with EventLog(location.event_log) as event_log:
                event_log.append(_search_record(request, location))
                replayer = start_replayer(location.event_log, location.tracking, log=location.folder / "tracking.log")
                replayer.wait_started()
                reopen(location.uri)
                runner = TuneRunner(
                    request.recipe, location.uri, event_log, resources=slot, slots=slots, workers=workers
                )
                outcome = _work(request, location, runner, budget, began=began)
                event_log.append(end_record(outcome["status"]))
                publish_event_log(location)
        finally:
            ray.shutdown()
        wait_for_tracking(replayer)  # it knows which MLflow runs the report can link to
        if outcome["status"] != "preempted":
            share(location.uri, location.folder / RUN_IDS_FILE)
    return outcome


def _needs(train: Train, workers: int) -> tuple[dict[str, float], dict[str, float]]:
    """What Tune sets aside for a trial, and what the trial takes in all.

    Ray Train places several workers itself; Tune sees only the trial that waits for them.
    """
    gpus = float(workers) if train.device == "cuda" else 0.0
    if workers > 1:
        return {"CPU": WAITING}, {"CPU": workers + WAITING} | ({"GPU": gpus} if gpus else {})
    slot = {"CPU": float(train.threads)} | ({"GPU": gpus} if gpus else {})
    return slot, slot


def _work(
    request: SearchRequest, location: RunLocation, runner: "TuneRunner", budget: Budget, *, began: float
) -> dict[str, Any]:
    """All that is to be learned, and what came of it; where it was interrupted, how to go on."""
    try:
        known = known_trials(location.uri)
        spent = runner.run_trials(known, budget)
        last = finals(request.recipe, location.uri, runner) if request.finals else []
        last += at_full_length(location.uri, runner, request.full) if request.full else []
    except KeyboardInterrupt:
        return _preempted(location)
    return outcome_of(location, request.recipe, last, slots=runner.slots, spent=spent, began=began, alone=not known)


def _preempted(location: RunLocation) -> dict[str, Any]:
    return {"search_id": location.run_id, "status": "preempted"}


def _interrupt() -> None:
    """SIGTERM as Ctrl-C: what is committed stays, and the rest is learned when the search goes on."""
    raise KeyboardInterrupt


def _open(request: SearchRequest) -> RunLocation:
    """The place of a new search, or of the one to go on with; ValueError where it is another search, or is none."""
    search_id = request.resume or request.search_id
    if not search_id:
        search_id = f"{request.recipe.name}-search-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    location = location_of(request.storage, search_id, request.tracking)
    if request.resume:
        location = replace(location, tracking=_same_tracking(request, facts_of(location.uri)["tracking"]))
    facts = {
        "search_id": search_id,
        "created": time.time(),
        "command": request.command,
        "recipe": resolve(request.recipe),
        "tracking": location.tracking,
    }
    if request.resume:
        found = differences(request.recipe, facts_of(location.uri)["recipe"])
        if found:
            key, was, now = found[0]
            raise ValueError(
                f"--resume {search_id!r}: it began with {key} = {was}, and this command says {now}; repeat the command "
                "it began with, or start a new search"
            )
    elif not begin(location.uri, facts):
        raise ValueError(f"--search-id {search_id!r}: there is such a search; `--resume {search_id}` goes on with it")
    return location


def _same_tracking(request: SearchRequest, began: str) -> str:
    """Where a search that goes on is tracked; ValueError for another place: the page's links lead to one only."""
    if request.tracking in ("", "none", began):
        return request.tracking or began
    raise ValueError(
        f"--tracking {request.tracking!r}: search {request.resume} began with {began!r}; leave it out, or give that"
    )


def _search_record(request: SearchRequest, location: RunLocation) -> dict[str, Any]:
    """What the search's spool begins with: the parent of its trials in MLflow."""
    search = searched(request.recipe)
    return {
        "kind": "run",
        "run_id": location.run_id,
        "experiment": "antiphon",
        "name": f"{request.recipe.name} search",
        "params": {key: str(value) for key, value in vars(search).items() if key != "space"},
        "tags": {
            "command": request.command,
            "storage": location.uri,
            **{f"space.{key}": str(vars(value)) for key, value in search.space.items()},
        },
    }
