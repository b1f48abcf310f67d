"""The driver of a study: its runs one after another, or as many at once as a cluster holds, then the results.

Each run is an ordinary one, with checkpoints and a lease of its own, so a kill at any instant leaves runs that are done
and one, or some, that the same command continues. At most one driver works on a study while its heartbeat lives.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from orchestrator.runs.lease import Driver, beating, take_over
from orchestrator.runs.location import RunLocation, location_of
from orchestrator.runs.resume import finished_outcome
from orchestrator.storage import object_store
from orchestrator.storage.retry import print_status, retry_while_unavailable
from orchestrator.study.member import Tally, run_member
from orchestrator.study.plan import Member, StudyPlan, run_id
from orchestrator.study.request import StudyRequest
from orchestrator.study.results import study_results
from orchestrator.study.store import StudyStore
from orchestrator.training.driver import Progress
from orchestrator.training.signals import StopSignals


@dataclass(frozen=True)
class StudyResult:
    """The outcome of a study, the object that --json prints, and where the study is stored."""

    outcome: dict[str, Any]
    location: RunLocation


def run_study(request: StudyRequest, *, show_progress: Progress) -> StudyResult:
    """Run what is left of a study that was checked (`request.check`), and report what there is; ValueError for an id
    that is taken.

    Where the user stops it, and where a run failed, the outcome reports the runs that are done.
    """
    object_store.check_storage(request.storage)
    location, driver = location_of(request.storage, request.id, "none"), Driver()
    store = StudyStore(location.uri)

    def begin() -> StudyPlan:
        plan = store.open(request.plan, command=request.command, created=time.time())
        take_over(location.uri, driver)
        return plan

    plan = retry_while_unavailable(begin, what=location.uri, patience_s=request.patience_s)
    print_status(f"study {request.id}: {location.uri}: {plan.stopping_rule()}")
    for name, reason in plan.left_out.items():
        print_status(f"left out: {name}: {reason}")
    with beating(location.uri, driver):
        left = list(unfinished(plan, request))
        tally = Tally(len(plan.members), len(plan.members) - len(left))
        if request.local:
            status = _run_here(plan, request, left, tally, show_progress)
        else:
            from orchestrator.study.ray_runner import run_on_ray

            status = run_on_ray(plan, request, left, tally)
        ended = {"study_id": request.id, "status": "failed" if tally.failed and status == "done" else status}
        outcome = _conclude(plan, request, store, ended, tally.failed)
    return StudyResult(outcome, location)


def _conclude(
    plan: StudyPlan, request: StudyRequest, store: StudyStore, ended: dict[str, Any], failed: dict[str, str]
) -> dict[str, Any]:
    """Write and return the outcome; why runs failed, which only this process knows, is written before results are
    computed, which may take minutes or be impossible."""
    retried = partial(retry_while_unavailable, what=store.uri, patience_s=request.patience_s)
    retried(lambda: store.write_outcome(ended | {"failed": failed}))
    outcome = ended | retried(lambda: study_results(plan, request.storage, request.id)) | {"failed": failed}
    retried(lambda: store.write_outcome(outcome))
    return outcome


def unfinished(plan: StudyPlan, request: StudyRequest) -> Iterator[tuple[Member, str]]:
    """The runs that are not done, with their ids, in order."""
    for member in plan.members:
        name = run_id(request.id, member)
        uri = object_store.join(request.storage, name)
        outcome = retry_while_unavailable(partial(finished_outcome, uri), what=uri, patience_s=request.patience_s)
        if outcome is None:
            yield member, name


def _run_here(
    plan: StudyPlan,
    request: StudyRequest,
    left: list[tuple[Member, str]],
    tally: Tally,
    show_progress: Progress,
) -> str:
    """Train one run after another; returns "preempted" where the user stops it, else "done".

    A run that is preempted by itself, since a store is unavailable, counts as failed with its error, as on Ray.
    """
    with StopSignals() as stop:  # a run has its own within, which pass a request on to these
        for member, name in left:
            if stop.requested():
                return "preempted"
            ended = run_member(request, plan, member, show_progress)
            if ended["status"] == "preempted" and stop.requested():
                print_status(f"study: stopped; {name} is preempted{': ' if ended['error'] else ''}{ended['error']}")
                return "preempted"
            tally.count(name, ended["status"], ended["error"])
    return "done"
