"""A trial run from rung to rung by several workers: nested Ray Train runs, which reserve their own resources."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.runs.lease import Attempt, Driver, beating, take_over
from orchestrator.runs.location import RunLocation
from orchestrator.runs.records import recovered_records
from orchestrator.search.rungs import (
    LoopTimer,
    RungReport,
    RungScore,
    delivery_fields,
    forwarded_records,
    mean_validation_scores,
    objective,
    rung_steps,
    second_objective,
)
from orchestrator.search.store import PATIENCE_S, SearchStore
from orchestrator.search.trial_spec import SearchPlan, Task, build_task_recipe
from orchestrator.storage import object_store
from orchestrator.storage.retry import retry_while_unavailable
from orchestrator.training.ray_trainer import fit
from orchestrator.training.worker_count import WorkerCount
from workloads.config.recipe import Recipe
from workloads.config.search import Search
from workloads.runtime.event_log import EventLog, read_event_log


@dataclass(frozen=True)
class _SliceRun:
    """The Ray Train run of a task on one validation slice."""

    recipe: Recipe
    location: RunLocation
    attempt: Attempt
    label: str  # of its metrics


def run_rungs_distributed(
    plan: SearchPlan, task: Task, store: SearchStore, scratch: Path, timer: LoopTimer, *, workers: int
) -> Iterator[RungReport]:
    """Train a task from rung to rung; a report at each.

    Runs in a process of Tune's, which holds the lease of each slice's run and waits for its workers. No worker is alive
    while a rung is reported, so the caller may stop iterating there, which ends the trial. Since starting workers takes
    a while, rungs at which no scheduler can stop the trial are reported together with the next one at which it can, or
    with the last. A kill leaves each slice's run as one that can be resumed: the next call continues it from its newest
    checkpoint, and does not train again what it has recorded.
    """
    search, trial_recipe = plan.search, build_task_recipe(plan, task)
    steps = rung_steps(trial_recipe, search)
    with ExitStack() as stack:
        runs = [
            stack.enter_context(_leased_run(plan, task, store, scratch, slice_=number))
            for number in range(search.slices if task.uses_all_slices else 1)
        ]
        reached = num_forwarded = 0
        for stop in _stop_steps(search, task, steps):
            for run in runs:
                _train_until(run, stop if stop < steps[-1] else None, workers=workers)
            timer.seconds = sum(_loop_seconds(run.location.event_log) for run in runs)
            by_slice = [forwarded_records(run.location.event_log) for run in runs]
            for step in [step for step in steps if reached < step <= stop]:
                values = mean_validation_scores(by_slice, step)
                final_fields = _final_fields(search, task, trial_recipe, by_slice[0]) if step == steps[-1] else None
                records = [record for record in by_slice[0][num_forwarded:] if record["kind"] != "data"]
                num_forwarded = len(by_slice[0])
                yield RungReport(
                    RungScore(step, objective(search, trial_recipe, values), values),
                    records,
                    already_reported=False,
                    final_fields=final_fields,
                    checkpoint_uri="",
                )
            reached = stop


def _stop_steps(search: Search, task: Task, steps: list[int]) -> list[int]:
    """The rungs at which the scheduler may stop a trial, those whose number is a power of `halving` (ASHA), and the
    last one."""
    can_stop = search.scheduler != "none" and task.kind == "trial"
    powers = {search.halving**power for power in range(len(steps))} if can_stop else set()
    return [step for number, step in enumerate(steps, start=1) if number in powers or step == steps[-1]]


@contextmanager
def _leased_run(plan: SearchPlan, task: Task, store: SearchStore, scratch: Path, *, slice_: int) -> Iterator[_SliceRun]:
    """The task's run on one slice; within this context this process is its driver and has its earlier records."""
    name = f"slice-{slice_}"
    location = RunLocation(name, object_store.join(store.uri, task.folder, name), scratch / name, "none")
    recipe = build_task_recipe(plan, task, slice_=slice_)
    recipe = replace(recipe, train=replace(recipe.train, score_test=task.scores_test_fold))
    driver = Driver()
    attempt = take_over(location.uri, driver)  # AlreadyDriven, which Tune retries, while a lost process seems to live
    with beating(location.uri, driver):
        records = retry_while_unavailable(lambda: recovered_records(location), what=location.uri, patience_s=PATIENCE_S)
        with EventLog(location.event_log) as event_log:
            for record in records:  # so that what is already trained is not validated again
                event_log.append(record)
        search_id = store.uri.rstrip("/").rsplit("/", 1)[-1]
        yield _SliceRun(recipe, location, attempt, f"{search_id}/{task.name}/{name}")


def _train_until(run: _SliceRun, until: int | None, *, workers: int) -> None:
    """Train to step `until`, or to the end with None, from wherever the run is."""
    records = read_event_log(run.location.event_log)
    if until is not None and any(record["kind"] == "metrics" and record["step"] >= until for record in records):
        return
    options: dict[str, Any] = {
        "workers": WorkerCount(workers, workers),
        "patience_s": PATIENCE_S,
        "until": until,
        "label": run.label,
    }
    end = fit(run.recipe, run.location, run.attempt, **options)
    if end["status"] != ("done" if until is None else "preempted"):
        raise (ValueError if end["mistake"] else RuntimeError)(end["error"] or end["status"])


def _final_fields(search: Search, task: Task, trial_recipe: Recipe, records: list[dict[str, Any]]) -> dict[str, Any]:
    """What a result holds beside scores, once all steps are done."""
    num_tags = next(len(record["tags"]) for record in records if record["kind"] == "data")
    delivery = delivery_fields(records) if task.scores_test_fold else {}
    return {"second": second_objective(search, trial_recipe, num_tags)} | delivery


def _loop_seconds(event_log: Path) -> float:
    """Over all attempts, from the workers' first record to their last: the start and the end of Ray are not in it."""
    total, first, last = 0, 0, 0
    for record in read_event_log(event_log):
        if record["kind"] == "start":
            total, first, last = total + last - first, record["t"], record["t"]
        elif record["kind"] in ("metrics", "result"):
            last = record["t"]
    return (total + last - first) / 1000
