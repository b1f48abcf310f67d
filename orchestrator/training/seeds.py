"""A comparison over several seeds (`run --seeds N`): the same recipe with other seeds first, then the run itself.

The run that has the id comes last and compares the models of all of them, so it is done exactly when everything is.
The others are runs of their own, `ID-seed-SEED`. Called by the command line; a kill leaves finished runs as they are,
and `--resume ID` with the same options continues with the one that was cut off.
"""

from collections.abc import Callable
from dataclasses import replace

from orchestrator.runs.location import location_of
from orchestrator.runs.resume import (
    AUTO,
    RECIPE,
    find_automatically,
    finished_outcome,
    generated_id,
    require_same_recipe,
)
from orchestrator.storage import object_store
from orchestrator.storage.retry import retry_while_unavailable
from orchestrator.training import driver
from orchestrator.training.driver import Progress, RunResult
from orchestrator.training.request import RunRequest, check_request

MAX_SEEDS = 100


def run_seeds(
    request: RunRequest,
    *,
    seeds: int,
    show_progress: Progress,
    warn: Callable[[str], None],
    finished: Callable[[RunResult], None],
) -> RunResult:
    """Run the recipe with `seeds` seeds, from its own on; returns the last run's result, or the first that is not done.

    `finished` is called for each run before the last. Other arguments and errors are those of `driver.run`; ValueError
    too where the run was compared over another number of seeds before.
    """
    require_seeds(request, seeds)
    if seeds == 1:
        _require_no_seeds(request)
        return driver.run(request, show_progress=show_progress, warn=warn)
    check_request(request)
    object_store.check_storage(request.storage)
    run_id = retry_while_unavailable(
        lambda: _run_id(request), what=f"storage {request.storage!r}", patience_s=request.patience_s
    )
    location_of(request.storage, run_id, request.tracking)  # the id itself is refused, not that of a seed
    _require_not_done_otherwise(request, run_id, seeds)
    _require_usable(request, run_id)
    done = []
    for number in range(1, seeds):
        train = replace(request.recipe.train, seed=request.recipe.train.seed + number)
        recipe = replace(request.recipe, train=train)
        member = _as_run(replace(request, recipe=recipe), f"{run_id}-seed-{train.seed}")
        result = driver.run(member, show_progress=show_progress, warn=warn if number == 1 else _ignore)
        if result.outcome["status"] != "done":
            return replace(result, resume_id=run_id)
        finished(result)
        done.append(result.location.uri)
    own = _as_run(replace(request, seed_runs=tuple(done)), run_id)
    return driver.run(own, show_progress=show_progress, warn=_ignore)


def _ignore(warning: str) -> None:
    """Warnings about the data: the first seed has printed them."""


def require_seeds(request: RunRequest, seeds: int) -> None:
    """Raise ValueError for a number of seeds that is none, and for several where there is nothing to compare."""
    if not 1 <= seeds <= MAX_SEEDS:
        raise ValueError(f"--seeds {seeds}: must be 1 to {MAX_SEEDS}")
    if seeds > 1 and not request.recipe.compare:
        raise ValueError(f"--seeds {seeds}: repeats a comparison with untaught controls; add --compare")


def _run_id(request: RunRequest) -> str:
    """The id of the run that comes last: the one to resume, a given one, or a new one."""
    if request.resume == AUTO:
        begun, new = find_automatically(request.recipe, request.storage, request.run_id, request.tracking)
        return begun or new
    run_id = request.resume or request.run_id or generated_id(request.recipe)
    members = [run_id, f"{run_id}-seed-{request.recipe.train.seed + 1}"]
    if request.resume and not any(_exists(request.storage, member) for member in members):
        raise ValueError(f"--resume {run_id!r}: no such run at {request.storage}; check --storage, or leave it out")
    return run_id


def _exists(storage: str, run_id: str) -> bool:
    return object_store.exists(object_store.join(storage, run_id, RECIPE))


def _require_no_seeds(request: RunRequest) -> None:
    """ValueError for a run to resume whose other seeds were begun: alone it would compare none of them."""
    seed, run_id = request.recipe.train.seed, request.run_id if request.resume == AUTO else request.resume
    if not run_id or not _exists(request.storage, f"{run_id}-seed-{seed + 1}"):
        return
    if finished_outcome(object_store.join(request.storage, run_id)) is not None:
        return
    raise ValueError(
        f"--resume {run_id!r}: there are runs of its other seeds ({run_id}-seed-{seed + 1}, ...); repeat the command "
        "with the --seeds that it was started with"
    )


def _require_usable(request: RunRequest, run_id: str) -> None:
    """ValueError, before the other seeds train, where the last run could not begin: its id is taken, or it differs."""
    if not _exists(request.storage, run_id):
        return
    if not request.resume:
        raise ValueError(
            f"--run-id {run_id!r}: there is such a run at {request.storage}; --resume {run_id} continues it, or choose "
            "another id"
        )
    require_same_recipe(request.recipe, location_of(request.storage, run_id, request.tracking))


def _as_run(request: RunRequest, run_id: str) -> RunRequest:
    """The request of the run with this id: a new one, or with --resume the same continued where it has begun."""
    return replace(request, run_id=run_id, resume=AUTO if request.resume else "")


def _require_not_done_otherwise(request: RunRequest, run_id: str, seeds: int) -> None:
    outcome = finished_outcome(object_store.join(request.storage, run_id))
    compared = next(iter((outcome or {}).get("compare", {}).values()), None)
    if compared is not None and compared["seeds"] != seeds:
        raise ValueError(
            f"--seeds {seeds}: run {run_id} is done and compares {compared['seeds']}; start a new run, or resume it "
            f"with --seeds {compared['seeds']}"
        )
