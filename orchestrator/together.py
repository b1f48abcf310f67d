"""A trial from rung to rung that needs several workers: Ray Train runs of its own, which take their own resources."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from orchestrator import storage
from orchestrator.attempts import Driver, beating, take_over
from orchestrator.climb import Clock, Rung, delivered, mean_values, said_of, second_objective, task_recipe
from orchestrator.results import Place
from orchestrator.run import fit
from orchestrator.runs import recovered
from orchestrator.search_files import PATIENCE_S, Task
from orchestrator.trial import judge, rungs, searched
from workloads.config import Recipe
from workloads.spool import Spool, read_spool


def climb_together(
    recipe: Recipe, task: Task, home: str, scratch: Path, clock: Clock, *, workers: int
) -> Iterator[Rung]:
    """Rung after rung: how it stands, what happened since, and at the end what else its result says.

    Each slice is a run, which goes on from its checkpoints when it is started again. No worker lives while a rung is
    told, so that a trial may be ended there; where nobody ends it, all rungs are told at its end, since workers take a
    while to start.
    """
    search, made = searched(recipe), task_recipe(recipe, task)
    steps = rungs(made, search)
    places = [
        Place(name, storage.join(home, task.folder, name), scratch / name, "none")
        for name in (f"slice-{number}" for number in range(search.slices if task.ranked else 1))
    ]
    told = 0
    may_end = search.scheduler != "none" and task.kind == "trial"
    for until in steps if may_end else steps[-1:]:
        for number, place in enumerate(places):
            part = task_recipe(recipe, task, slice_=number)
            part = replace(part, train=replace(part.train, score_test=task.final))
            _go_on(part, place, workers=workers, until=until if until < steps[-1] else None)
        clock.seconds = sum(_loop_seconds(place.spool) for place in places)
        said = [said_of(place.spool) for place in places]
        for step in [step for step in steps if step == until or (not may_end and step < until)]:
            values, end = mean_values(said, step), None
            if step == steps[-1]:
                tags = next(len(record["tags"]) for record in said[0] if record["kind"] == "data")
                end = {"second": second_objective(search, made, tags)} | (delivered(said[0]) if task.final else {})
            records, told = [record for record in said[0][told:] if record["kind"] != "data"], len(said[0])
            yield Rung(step, judge(search, made, values), values, records, past=False, end=end, kept="")


def _go_on(made: Recipe, place: Place, *, workers: int, until: int | None) -> None:
    """Learn up to so many steps, or to the end, from wherever the run at this place stands."""
    driver = Driver()
    try:
        attempt = take_over(place.uri, driver)
    except ValueError as busy:  # whose workers were lost with it, and whose heartbeat is about to stand still
        raise RuntimeError(str(busy)) from None
    with Spool(place.spool) as spool, beating(place.uri, driver):
        for record in recovered(place):  # what was learned before validates nothing again
            spool.append(record)
        if until is not None and any(
            record["kind"] == "metrics" and record["step"] >= until for record in read_spool(place.spool)
        ):
            return
        end = fit(made, place, attempt, workers=workers, patience_s=PATIENCE_S, until=until)
    if end["status"] != ("done" if until is None else "preempted"):
        raise (ValueError if end["mistake"] else RuntimeError)(end["error"] or end["status"])


def _loop_seconds(spool: Path) -> float:
    """Of every attempt from the workers' first step to the last thing they said: Ray's start and end are not in it."""
    total, first, last = 0, 0, 0
    for record in read_spool(spool):
        if record["kind"] == "start":
            total, first, last = total + last - first, record["t"], record["t"]
        elif record["kind"] in ("metrics", "result"):
            last = record["t"]
    return (total + last - first) / 1000
