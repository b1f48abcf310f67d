"""A trial from rung to rung that needs several workers: Ray Train runs of its own, which take their own resources."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from orchestrator.runs.lease import Attempt, Driver, beating, take_over
from orchestrator.runs.location import RunLocation
from orchestrator.runs.records import recovered_records
from orchestrator.search.rungs import Clock, Rung, delivered, judge, mean_values, rung_steps, said_of, second_objective
from orchestrator.search.store import PATIENCE_S
from orchestrator.search.trial_spec import Task, searched, task_recipe
from orchestrator.storage import object_store
from orchestrator.storage.retry import retry_while_unavailable
from orchestrator.training.ray_trainer import fit
from workloads.config.recipe import Recipe
from workloads.config.search import Search
from workloads.runtime.event_log import EventLog, read_event_log


def climb_together(
    recipe: Recipe, task: Task, search_uri: str, scratch: Path, clock: Clock, *, workers: int
) -> Iterator[Rung]:
    """Rung after rung: how it stands, what happened since, and at the end what else its result says.

    Each slice is a run, which goes on from its checkpoints when it is started again. No worker lives while a rung is
    told, so that a trial may be ended there; where nobody ends it, all rungs are told at its end, since workers take a
    while to start.
    """
    search, made = searched(recipe), task_recipe(recipe, task)
    steps, reached, told = rung_steps(made, search), 0, 0
    locations = [
        RunLocation(name, object_store.join(search_uri, task.folder, name), scratch / name, "none")
        for name in (f"slice-{number}" for number in range(search.slices if task.ranked else 1))
    ]
    with ExitStack() as stack:
        attempts = [stack.enter_context(_held(location)) for location in locations]
        for until in _stops(search, task, steps):
            for number, (location, attempt) in enumerate(zip(locations, attempts, strict=True)):
                part = task_recipe(recipe, task, slice_=number)
                part = replace(part, train=replace(part.train, score_test=task.final))
                _go_on(part, location, attempt, workers=workers, until=until if until < steps[-1] else None)
            clock.seconds = sum(_loop_seconds(location.event_log) for location in locations)
            said = [said_of(location.event_log) for location in locations]
            for step in [step for step in steps if reached < step <= until]:
                values, end = mean_values(said, step), None
                if step == steps[-1]:
                    tags = next(len(record["tags"]) for record in said[0] if record["kind"] == "data")
                    end = {"second": second_objective(search, made, tags)} | (delivered(said[0]) if task.final else {})
                records, told = [record for record in said[0][told:] if record["kind"] != "data"], len(said[0])
                yield Rung(step, judge(search, made, values), values, records, past=False, end=end, kept="")
            reached = until


def _stops(search: Search, task: Task, steps: list[int]) -> list[int]:
    """The rungs at which a trial may be ended, those whose number is a power of `halving` (ASHA), and its end."""
    may_end = search.scheduler != "none" and task.kind == "trial"
    powers = {search.halving**power for power in range(len(steps))} if may_end else set()
    return [step for height, step in enumerate(steps, start=1) if height in powers or step == steps[-1]]


@contextmanager
def _held(location: RunLocation) -> Iterator[Attempt]:
    """Within this context the run at this place is ours, and what it said before is at hand."""
    driver = Driver()
    try:
        attempt = take_over(location.uri, driver)
    except ValueError as busy:  # whose workers were lost with it, and whose heartbeat is about to stand still
        raise RuntimeError(str(busy)) from None
    with beating(location.uri, driver):
        before = retry_while_unavailable(lambda: recovered_records(location), what=location.uri, patience_s=PATIENCE_S)
        with EventLog(location.event_log) as event_log:
            for record in before:  # what was learned before validates nothing again
                event_log.append(record)
        yield attempt


def _go_on(made: Recipe, location: RunLocation, attempt: Attempt, *, workers: int, until: int | None) -> None:
    """Learn up to so many steps, or to the end, from wherever the run at this place stands."""
    said = read_event_log(location.event_log)
    if until is not None and any(record["kind"] == "metrics" and record["step"] >= until for record in said):
        return
    end = fit(made, location, attempt, workers=workers, patience_s=PATIENCE_S, until=until)
    if end["status"] != ("done" if until is None else "preempted"):
        raise (ValueError if end["mistake"] else RuntimeError)(end["error"] or end["status"])


def _loop_seconds(event_log: Path) -> float:
    """Of every attempt from the workers' first step to the last thing they said: Ray's start and end are not in it."""
    total, first, last = 0, 0, 0
    for record in read_event_log(event_log):
        if record["kind"] == "start":
            total, first, last = total + last - first, record["t"], record["t"]
        elif record["kind"] in ("metrics", "result"):
            last = record["t"]
    return (total + last - first) / 1000
