"""Which run a command is about: a new one, or one to go on with. Owns the run folder's first files."""

import json
import secrets
import sys
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator.recipes.loader import flatten, resolve
from orchestrator.runs.lease import Attempt, Driver, take_over
from orchestrator.runs.location import RunLocation, location_of
from orchestrator.storage import object_store
from orchestrator.storage.retry import retry_while_unavailable
from workloads.config.recipe import Recipe

AUTO = "auto"
PLACES = ("data.root", "data.manifest", "data.cache", "data.cache_gb")  # may differ between two machines


@dataclass(frozen=True)
class Opened:
    """A run that this process may drive now, as `attempt`; or one that is done, with its `outcome`."""

    location: RunLocation
    attempt: Attempt | None = None
    outcome: dict[str, Any] | None = None


def open_run(
    recipe: Recipe, *, storage: str, run_id: str, resume: str, tracked: str, driver: Driver, patience_s: float
) -> Opened:
    """Begin a run (`run_id` or a name of its own), or take one up again: `resume` is its id, or "auto".

    Raises ValueError for an id that exists, one that does not, another recipe, and a run that is still being driven.
    """

    def patient(call: Any) -> Any:
        return retry_while_unavailable(call, what=f"storage {storage!r}", patience_s=patience_s)

    if resume == AUTO:
        resume = patient(lambda: _newest_unfinished(recipe, storage))
        if not resume:
            print(f"--resume auto: no unfinished run of this recipe under {storage}; starting afresh", file=sys.stderr)
    if resume:
        location = location_of(storage, resume, tracked)
        patient(lambda: _check_same(recipe, location))
        outcome = patient(lambda: _finished(location.uri))
        if outcome is not None:
            total = outcome["resumed_from_step"] + outcome["steps_run"]
            return Opened(location, outcome=outcome | {"resumed_from_step": total, "steps_run": 0})
        return Opened(location, patient(lambda: take_over(location.uri, driver)))
    run_id = run_id or f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    location = location_of(storage, run_id, tracked)
    if not patient(lambda: _created(location, json.dumps(resolve(recipe), indent=1))):
        raise ValueError(
            f"--run-id {run_id!r}: there is such a run under {storage!r}; `--resume {run_id}` goes on with it, or "
            "choose another id"
        )
    return Opened(location, patient(lambda: take_over(location.uri, driver)))


def _created(location: RunLocation, recipe: str) -> bool:
    """Whether the run's folder is this driver's to begin.

    An answer may get lost on its way: then the store's client asks again and is told that the recipe exists. Where it
    is ours to the letter and nobody has taken the run up, we go on; the first attempt names its driver, once.
    """
    uri = object_store.join(location.uri, "recipe.json")
    if object_store.create_exclusively(uri, recipe.encode()):
        return True
    return object_store.get_text(uri) == recipe and not object_store.list_names(
        object_store.join(location.uri, "attempts")
    )


def _newest_unfinished(recipe: Recipe, storage: str) -> str:
    """The id of the newest run of this very recipe that is not done; empty if there is none."""
    found = []
    for run_id in object_store.list_names(storage):
        uri = object_store.join(storage, run_id)
        recipe_uri = object_store.join(uri, "recipe.json")
        if (
            object_store.exists(recipe_uri)
            and not differences(recipe, json.loads(object_store.get_text(recipe_uri)))
            and _finished(uri) is None
        ):
            found.append((object_store.modified_at(recipe_uri), run_id))
    return max(found, default=(None, ""))[1]


def _check_same(recipe: Recipe, location: RunLocation) -> None:
    uri = object_store.join(location.uri, "recipe.json")
    if not object_store.exists(uri):
        raise ValueError(
            f"--resume {location.run_id!r}: no such run at {location.uri}; check --storage, or leave --resume out"
        )
    if found := differences(recipe, json.loads(object_store.get_text(uri))):
        key, was, now = found[0]
        raise ValueError(
            f"--resume {location.run_id!r}: it began with {key} = {was}, and this command says {now}; a run keeps its "
            "recipe: repeat the command it began with, or start a new run"
        )


def differences(recipe: Recipe, resolved: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(key, its value there, its value here) of everything that makes another run; where the data lies does not."""
    there, here = flatten(resolved), flatten(resolve(recipe))
    keys = sorted((there.keys() | here.keys()) - {*PLACES})
    return [(key, there.get(key, "-"), here.get(key, "-")) for key in keys if there.get(key) != here.get(key)]


def _finished(run_uri: str) -> dict[str, Any] | None:
    """The outcome of a run that is done, else None."""
    uri = object_store.join(run_uri, "outcome.json")
    outcome: dict[str, Any] = json.loads(object_store.get_text(uri)) if object_store.exists(uri) else {}
    return outcome if outcome.get("status") == "done" else None
