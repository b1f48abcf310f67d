"""The final rows of the models of a run, uninterrupted and resumed."""

from collections.abc import Callable
from typing import Any

from workloads.config.recipe import Recipe
from workloads.run import Run
from workloads.runtime.event_log import read_event_log
from workloads.train import loop


def rows_uninterrupted_and_resumed(start: Callable[..., Run], recipe: Recipe) -> list[dict[str, Any]]:
    """Train the recipe at once, and again with a preemption after step 5; the models' rows at the end of each run."""
    uninterrupted = start(recipe)
    assert loop(uninterrupted) == "done"
    cut = start(recipe)
    assert loop(cut, until=5) == "preempted"
    resumed = start(recipe, checkpoints_of=cut)
    assert loop(resumed) == "done"
    return [
        read_event_log(run.session.work_dir.parent / "events.jsonl")[-1]["models"] for run in (uninterrupted, resumed)
    ]
