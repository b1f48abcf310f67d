"""The driver of a search: trials until the budget is spent, then the best against a control without teachers.

Owns the order of the steps. What a trial is: `trial_spec.py`; which comes next: `samplers.py`; how Ray Tune runs them:
`tune_runner.py`; what is stored: `store.py`.
"""

import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from orchestrator.recipes.loader import resolve
from orchestrator.runs.lease import Driver, beating, take_over
from orchestrator.runs.location import RunLocation, location_of
from orchestrator.runs.outcome import publish_event_log
from orchestrator.runs.records import continue_event_log, end_record
from orchestrator.runs.resume import AUTO, differences
from orchestrator.search.finals import run_at_full_length, run_finals
from orchestrator.search.request import Budget, SearchRequest
from orchestrator.search.samplers import num_trials
from orchestrator.search.store import DEFINITION, SearchStore
from orchestrator.search.summary import write_summary
from orchestrator.search.trial_slots import WAITING_CPUS, count_slots, reserved_by_tune
from orchestrator.search.trial_spec import SearchPlan, search_plan
from orchestrator.search.validation import check, check_search_data
from orchestrator.storage import object_store
from orchestrator.storage.retry import print_status
from orchestrator.tracking.replayer import start_replayer
from orchestrator.tracking.uri import absolute_uri, with_secret
from orchestrator.training.driver import TRACKING_GRACE_S, wait_for_tracking
from orchestrator.training.ray_cluster import connect, prepare_environment
from orchestrator.training.request import with_absolute_paths
from orchestrator.training.signals import Interrupts
from orchestrator.training.worker_resources import worker_needs
from workloads.runtime.event_log import EventLog, end_of, read_event_log
from workloads.runtime.precision import precision_warnings
from workloads.runtime.redaction import redacted

if TYPE_CHECKING:
    from orchestrator.search.tune_runner import TuneRunner


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search, the object that --json prints, and where the search is stored."""

    outcome: dict[str, Any]
    location: RunLocation


@dataclass(frozen=True)
class _Job:
    """A search that this driver runs."""

    request: SearchRequest
    plan: SearchPlan
    budget: Budget
    location: RunLocation
    store: SearchStore
    began: float  # seconds since the epoch


def search(request: SearchRequest, *, warn: Callable[[str], None]) -> SearchResult:
    """Run a whole search, from its checks to its outcome; ValueError for the user's mistakes.

    `warn` gets each warning about precision and data before anything starts.

    At most one driver works on a search: another one is refused while the first one's heartbeat lives. Interrupted
    (Ctrl-C or SIGTERM) it returns a preempted outcome. That, or a kill, leaves the files of `store.py`, from which
    `--resume` continues: results that are there stay, and only tasks without one are run.
    """
    budget, largest = check(request)
    request = replace(request, recipe=with_absolute_paths(request.recipe))
    plan = search_plan(request.recipe)
    for warning in [*precision_warnings(largest), *check_search_data(request.recipe, largest)]:
        warn(warning)
    object_store.check_storage(request.storage)
    began, location, driver = time.time(), _open(request), Driver()
    print_status(f"search {location.run_id}: {location.uri}")
    job = _Job(request, plan, budget, location, SearchStore(location.uri), began)
    with Interrupts() as interrupts:
        try:
            take_over(location.uri, driver)  # two drivers of one search would run every trial twice
            location.folder.mkdir(parents=True, exist_ok=True)
            with beating(location.uri, driver):
                return SearchResult(_run_on_ray(job, interrupts), location)
        except KeyboardInterrupt:  # before the first trial, or after the last
            _close_event_log(location)
            return SearchResult(_preempted(location), location)


def _preempted(location: RunLocation) -> dict[str, Any]:
    return {"search_id": location.run_id, "status": "preempted"}


def _close_event_log(location: RunLocation) -> None:
    """Record that the search was preempted, unless its end is recorded already."""
    records = read_event_log(location.event_log) if location.event_log.exists() else []
    if records and end_of(records) is None:
        with EventLog(location.event_log) as event_log:
            event_log.append(end_record("preempted"))


def _run_on_ray(job: _Job, interrupts: Interrupts) -> dict[str, Any]:
    """Connect to Ray, run and record the search, disconnect; returns the outcome."""
    address = prepare_environment(job.request.address)  # before Ray is imported: its token's location is read then
    import ray

    needs, workers = worker_needs(job.plan.recipe), job.request.workers
    connection = connect(ray, address, at_least=math.ceil(workers * needs.resources["CPU"] + WAITING_CPUS))
    try:
        interrupts.install()  # once more: Ray has set its own handler
        interrupts.check()
        wanted = max(1, job.request.slots)
        connection = connection.wait_for_room(
            ray, needs, workers, groups=wanted, wait_s=job.request.wait_s, check=interrupts.check
        )
        slots = count_slots(connection.nodes, needs, job.request.slots, workers=workers)
        connection.require_visible(ray, object_store.join(job.store.uri, DEFINITION))
        trials = num_trials(job.plan.search, job.budget.trials)
        job.store.write_cluster(slots=slots, dashboard=connection.dashboard, trials=trials)
        outcome, replayer = _run_recorded(job, reserved_by_tune(needs, workers), interrupts, slots=slots)
    finally:
        ray.shutdown()
    # the replayer writes which MLflow runs the report can link to
    wait_for_tracking(replayer, timeout_s=TRACKING_GRACE_S[outcome["status"]])
    return outcome


def _run_recorded(
    job: _Job, reserved: dict[str, float], interrupts: Interrupts, *, slots: int
) -> tuple[dict[str, Any], Any]:
    """Run the search with its event log open and its replayer started; returns the outcome and the replayer."""
    from orchestrator.search.tune_runner import TuneRunner

    location = job.location
    with EventLog(location.event_log) as event_log:
        continue_event_log(event_log, location, _run_record(job))
        publish_event_log(location)
        replayer = start_replayer(location.event_log, location.tracking, log=location.folder / "tracking.log")
        replayer.wait_started()
        job.store.reopen()
        runner = TuneRunner(
            job.plan, job.store, event_log, resources=reserved, slots=slots, workers=job.request.workers
        )
        outcome = _run_tasks(job, runner, interrupts)
        event_log.append(end_record(outcome["status"]))
        publish_event_log(location)
    return outcome, replayer


def _run_tasks(job: _Job, runner: "TuneRunner", interrupts: Interrupts) -> dict[str, Any]:
    """Trials, then finals, then the outcome of both; a preempted one where the user interrupts."""
    request, store = job.request, job.store
    try:
        known = store.known_trials()
        interrupts.check()
        spent = runner.run_trials(known, job.budget)
        interrupts.check()
        finals = run_finals(job.plan, store, runner) if request.finals else []
        finals += run_at_full_length(store, runner, request.full) if request.full else []
    except KeyboardInterrupt:
        return _preempted(job.location)
    return write_summary(
        job.location,
        job.plan,
        store,
        finals,
        slots=runner.slots,
        spent=spent,
        began=job.began,
        complete=not known,
    )


def _run_record(job: _Job) -> dict[str, Any]:
    """The first record of the search's event log: the parent of its trials in MLflow."""
    search = job.plan.search
    return {
        "kind": "run",
        "run_id": job.location.run_id,
        "experiment": "antiphon",
        "name": f"{job.plan.recipe.name} search",
        "about": job.plan.recipe.about,
        "params": {key: str(value) for key, value in vars(search).items() if key != "space"},
        "resolved": resolve(job.plan.recipe),
        "tags": {
            "command": job.request.command,
            "storage": job.location.uri,
            **{f"space.{key}": str(vars(value)) for key, value in search.space.items()},
        },
    }


def _open(request: SearchRequest) -> RunLocation:
    """The location of the search that is resumed, or of a new one, which is created.

    ValueError where there is none to resume or it is another one, or where the new one exists. Of two commands with
    `--resume auto` that start at once, one creates the search; both go on to claim it.
    """
    if request.resume not in ("", AUTO):
        return _resumed(request, request.resume)
    name = f"{request.recipe.name}-search-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    search_id = request.search_id or name
    location = location_of(request.storage, search_id, request.tracking)
    definition = {
        "search_id": search_id,
        "created": time.time(),
        "command": request.command,
        "options": request.repeat_options(location.uri),
        "recipe": resolve(request.recipe),
        "tracking": redacted(location.tracking),
    }
    location.require_new(DEFINITION)
    if not SearchStore(location.uri).create(definition):
        if request.resume == AUTO:
            return _resumed(request, search_id)
        raise ValueError(
            f"--search-id {search_id!r}: this search exists already; `--resume {search_id}` continues it, or choose "
            "another id"
        )
    return location


def _resumed(request: SearchRequest, search_id: str) -> RunLocation:
    location = location_of(request.storage, search_id, request.tracking)
    definition = SearchStore(location.uri).read_definition()
    if definition is None:
        raise ValueError(f"search {location.uri!r}: no {DEFINITION} there; give the id of a search under --storage")
    tracking = _same_tracking(request, search_id, definition["tracking"])
    if changes := differences(request.recipe, definition["recipe"]):
        key, was, now = changes[0]
        raise ValueError(
            f"--resume {search_id!r}: the search was started with {key} = {was}, and this command sets {now}; "
            "repeat the command it was started with, or start a new search"
        )
    return replace(location, tracking=tracking)


def _same_tracking(request: SearchRequest, search_id: str, original: str) -> str:
    """Where a resumed search is tracked; ValueError for another place: the page's links lead to one only.

    The `original` is without its secret, so a URI with one must be given again: ValueError where it is not.
    """
    given = absolute_uri(request.tracking)
    if given in ("", "none") or redacted(given) == original:
        return given or with_secret(original)
    raise ValueError(
        f"--tracking {redacted(given)!r}: search {search_id} was started with {original!r}; leave it out, or give that"
    )
