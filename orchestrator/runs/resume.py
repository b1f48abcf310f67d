"""Which run a command is about: a new one, or an earlier one to resume. Creates the run's folder and claims it."""

import hashlib
import json
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NotRequired, TypeVar

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from orchestrator.recipes.loader import flatten, resolve
from orchestrator.runs.lease import Attempt, Driver, take_over
from orchestrator.runs.location import RunLocation, location_of
from orchestrator.storage import object_store
from orchestrator.storage.retry import retry_while_unavailable
from workloads.config.recipe import Recipe
from workloads.runtime.json_files import json_text

Value = TypeVar("Value")
RUNS_BY_RECIPE = ".recipes"  # in a storage: a folder per recipe, in it an empty file per run; "auto" lists no others
AUTO = "auto"  # in place of the id of a run to resume
RECIPE = "recipe.json"
MACHINE_KEYS = (  # may differ between two machines: they do not change what is learned
    # the fingerprint says whether the clips are the same, also where one machine has them packed
    *("data.format", "data.root", "data.manifest", "data.cache", "data.cache_gb"),
    *("train.loaders", "train.prefetch"),
    *("placement", "split_groups"),
)
MACHINE_TABLES = ("resources.", "service.")


class _Outcome(TypedDict):
    """outcome.json of a run."""

    status: str
    tracking: NotRequired[str]
    resumed_from_step: NotRequired[int]
    steps_run: NotRequired[int]


@dataclass(frozen=True)
class OpenedRun:
    """A run that this process may drive now, as `attempt`; or one that is done already, with its `outcome`."""

    location: RunLocation
    attempt: Attempt | None = None
    outcome: dict[str, Any] | None = None


def open_run(
    recipe: Recipe, *, storage: str, run_id: str, resume: str, tracking: str, driver: Driver, patience_s: float
) -> OpenedRun:
    """Create a run (called `run_id`, or by a generated name), or resume one: `resume` is its id, or "auto".

    "auto" is the run called `run_id`, else the newest unfinished run of this recipe, and a new run if there is none:
    started twice at once, both find or create the same one. Waits up to `patience_s` seconds for an unavailable
    storage. Raises ValueError for a new id that exists, an old one that does not, and another recipe; AlreadyDriven for
    a run that another process drives.
    """

    def retry(call: Callable[[], Value]) -> Value:
        return retry_while_unavailable(call, what=f"storage {storage!r}", patience_s=patience_s)

    by_auto = resume == AUTO
    if by_auto:
        resume, run_id = retry(lambda: find_automatically(recipe, storage, run_id, tracking))
    if not resume:
        location = location_of(storage, run_id or generated_id(recipe), tracking)
        retry(lambda: _create(location, recipe, storage, by_auto=by_auto))
        return OpenedRun(location, retry(lambda: take_over(location.uri, driver)))
    location = location_of(storage, resume, tracking)
    retry(lambda: require_same_recipe(recipe, location))
    if (outcome := retry(lambda: finished_outcome(location.uri))) is not None:
        total = outcome.get("resumed_from_step", 0) + outcome.get("steps_run", 0)
        return OpenedRun(location, outcome=outcome | {"resumed_from_step": total, "steps_run": 0})
    return OpenedRun(location, retry(lambda: take_over(location.uri, driver)))


def differences(recipe: Recipe, resolved: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(key, value in `resolved`, value in `recipe`) of all that makes it another run; where the data lies does not."""
    old, new = flatten(resolved), flatten(resolve(recipe))
    keys = sorted(filter(_makes_it_another, old.keys() | new.keys()))
    return [(key, old.get(key, "-"), new.get(key, "-")) for key in keys if old.get(key) != new.get(key)]


def _makes_it_another(key: str) -> bool:
    """Whether a run with another value at this key is another run."""
    return key not in MACHINE_KEYS and not key.startswith(MACHINE_TABLES)


def generated_id(recipe: Recipe) -> str:
    return f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _recipe_folder(recipe: Recipe, storage: str) -> str:
    """Where the runs of a recipe are listed: named by a digest of all that makes it this recipe."""
    values = {key: value for key, value in flatten(resolve(recipe)).items() if _makes_it_another(key)}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return object_store.join(storage, RUNS_BY_RECIPE, digest[:16])


def _create(location: RunLocation, recipe: Recipe, storage: str, *, by_auto: bool) -> None:
    """Create the run's folder by writing its recipe exclusively; ValueError if there is such a run.

    A lost answer makes the store's client repeat the request and learn that the file exists. If it is ours to the
    letter and no attempt has claimed the run, this driver continues; claiming the first attempt then decides. So it
    is between two commands with `--resume auto` (`by_auto`), which choose the same id.
    """
    uri, text = object_store.join(location.uri, RECIPE), json_text(resolve(recipe), indent=1)
    location.require_new(RECIPE)
    if not object_store.create_exclusively(uri, text.encode()):
        claimed = object_store.list_names(object_store.join(location.uri, "attempts"))
        if (claimed and not by_auto) or object_store.get_bytes(uri) != text.encode():
            raise ValueError(
                f"--run-id {location.run_id!r}: there is such a run at {location.uri}; `--resume {location.run_id}` "
                "continues it, or choose another id"
            )
    object_store.put_text(object_store.join(_recipe_folder(recipe, storage), location.run_id), "")


def find_automatically(recipe: Recipe, storage: str, run_id: str, tracking: str) -> tuple[str, str]:
    """What "auto" means: the id of the run to resume, empty where there is none; and the id of the new one then."""
    if run_id:
        begun = object_store.exists(object_store.join(location_of(storage, run_id, tracking).uri, RECIPE))
        return (run_id if begun else ""), run_id
    unfinished, new = newest_unfinished(recipe, storage)
    if not unfinished:
        print(f"--resume auto: no unfinished run of this recipe under {storage}; starting a new one", file=sys.stderr)
    return unfinished, new


def newest_unfinished(recipe: Recipe, storage: str) -> tuple[str, str]:
    """The id of the newest run of this recipe that is not done, empty if there is none; and the id for a new one.

    The new id follows from the recipe and the runs that there are, so that of two processes that start at once the
    second one finds the run of the first.
    """
    folder = _recipe_folder(recipe, storage)
    listed = [name for name in object_store.list_names(folder) if not name.startswith(".")]  # one being written
    unfinished = []
    for run_id in listed:
        uri = object_store.join(storage, run_id)
        recipe_uri = object_store.join(uri, RECIPE)
        try:
            if object_store.exists(recipe_uri) and finished_outcome(uri) is None:
                unfinished.append((object_store.modified_at(recipe_uri), run_id))
        except ValueError as error:  # a damaged file of one run must not block the others
            print(f"--resume auto: leaves out {uri}: {error}", file=sys.stderr)
    new = f"{recipe.name}-{folder.rsplit('/', 1)[-1][:8]}-{len(listed) + 1}"
    return max(unfinished, default=(None, ""))[1], new


def require_same_recipe(recipe: Recipe, location: RunLocation) -> None:
    uri = object_store.join(location.uri, RECIPE)
    if not object_store.exists(uri):
        raise ValueError(
            f"--resume {location.run_id!r}: no such run at {location.uri}; check --storage, or leave --resume out"
        )
    if changed := differences(recipe, object_store.read_json(uri)):
        key, old, new = changed[0]
        raise ValueError(
            f"--resume {location.run_id!r}: the run was started with {key} = {old}, and this command has {new}; a run "
            "keeps its recipe: repeat the command that started it, or start a new run"
        )


def finished_outcome(run_uri: str) -> dict[str, Any] | None:
    """The outcome of a run that is done, else None."""
    uri = object_store.join(run_uri, "outcome.json")
    if not object_store.exists(uri):
        return None
    outcome: dict[str, Any] = object_store.read_json(uri, _Outcome)
    return outcome if outcome["status"] == "done" else None
