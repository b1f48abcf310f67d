"""Teachers that are models of a run: it is trained before its store is filled, unless that is done already.

Contract: the run is named after its recipe, so whoever fills a store from it uses the same one; a kill leaves its
checkpoints, and the same command goes on with it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from orchestrator.recipes.loader import load_recipe
from orchestrator.runs.resume import AUTO, finished_outcome
from orchestrator.storage import object_store
from orchestrator.teaching.job import TeachRequest
from orchestrator.training import driver
from orchestrator.training.driver import Progress
from orchestrator.training.request import RunRequest
from workloads.config.recipe import Recipe
from workloads.config.teach import TeachRecipe


def train_teachers(
    request: TeachRequest, *, show_progress: Progress, warn: Callable[[str], None]
) -> tuple[TeachRequest, str]:
    """Train the runs of which a request's teachers are models; returns it with their folders, and "done".

    "preempted" instead where a run was stopped by a signal. Raises ValueError for the user's mistakes, before any run
    is trained as far as they are known, and OSError where a run fails.
    """
    for name, recipe in _runs(request.recipe).items():
        run_id = recipe.name
        outcome = driver.run(
            RunRequest(
                recipe,
                request.command,
                storage=request.storage,
                tracking="none",
                address=request.address,
                wait_s=request.wait_s,
                local=request.local,
                run_id=run_id,
                resume=AUTO,
                patience_s=request.patience_s,
            ),
            show_progress=show_progress,
            warn=warn,
        ).outcome
        if outcome["mistake"]:
            raise ValueError(f"recipe {name!r} of the teachers: {outcome['error']}")
        if outcome["status"] == "preempted":
            return request, "preempted"
        if outcome["status"] != "done":
            raise OSError(f"run {run_id} of the teachers failed: {outcome['error']}; the same command goes on with it")
    return replace(request, recipe=with_finished_runs(request.recipe, request.storage)), "done"


def run_uris(recipe: TeachRecipe, storage: str) -> list[str]:
    """Where the runs of which a recipe's teachers are models are, or will be; ValueError for a model that one lacks."""
    return [object_store.join(storage, run.name) for run in _runs(recipe).values()]


def with_finished_runs(recipe: TeachRecipe, storage: str) -> TeachRecipe:
    """The recipe with the folders of its teachers that are models of runs; ValueError for a run that is not done."""
    runs = _runs(recipe)
    for name, run_recipe in runs.items():
        uri = object_store.join(storage, run_recipe.name)
        if finished_outcome(uri) is None:
            raise ValueError(
                f"teachers of 'run:{name}': there is no finished run at {uri}; `antiphon teach` trains it, or give "
                "--set teachers.NAME.uri=RUN/models/NAME"
            )

    def folder(of_run: tuple[str, str]) -> str:
        return object_store.join(storage, runs[of_run[0]].name, "models", of_run[1])

    teachers: dict[str, Any] = {
        name: replace(teacher, uri=folder(teacher.of_run)) if teacher.of_run else teacher
        for name, teacher in recipe.teachers.items()
    }
    return replace(recipe, teachers=teachers)


def _runs(recipe: TeachRecipe) -> dict[str, Recipe]:
    """The recipes of runs that the teachers name, by what they call them; ValueError for a model that one lacks."""
    runs: dict[str, Recipe] = {}
    for teacher_name, teacher in recipe.teachers.items():
        if not teacher.of_run:
            continue
        name, model = teacher.of_run
        try:
            runs[name] = runs.get(name) or load_recipe(name)
            runs[name].require_known_models("its run", (model,))
        except ValueError as error:
            raise ValueError(f"teachers.{teacher_name}.uri = {teacher.uri!r}: {error}") from None
    return runs
