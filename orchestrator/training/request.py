"""One `antiphon run` as the user typed it, and what is refused before anything starts."""

from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from orchestrator.storage import object_store
from workloads.config.recipe import Recipe
from workloads.distill.schedule import Phase, plan_phases


@dataclass(frozen=True)
class Request:
    """One `antiphon run`, as the user typed it."""

    recipe: Recipe
    command: str
    storage: str = "runs"
    tracking: str = ""  # MLflow URI; empty: SQLite beside the runs, "none": nowhere
    workers: int = 1
    address: str = ""  # of a Ray cluster; empty: a local one, for this run
    local: bool = False  # in this process, without Ray
    run_id: str = ""  # of a new run; empty: one is made up
    resume: str = ""  # the id of a run to go on with, or "auto"
    patience_s: float = 300.0  # how long a store that went away is waited for


def check(request: Request) -> tuple[Phase, ...]:
    """Refuse the user's mistakes before anything is started or written; returns the run's phases."""
    recipe = request.recipe
    if request.address.startswith("ray://"):
        raise ValueError(
            f"--address {request.address!r}: Ray Client connections break long runs; submit the command as a job "
            "(`ray job submit --address http://HEAD:8265 -- antiphon run ...`) or give HOST:PORT on a cluster node"
        )
    refuse_passwords(storage=request.storage, tracking=request.tracking)
    if request.workers < 1:
        raise ValueError(f"--workers {request.workers}: must be 1 or more")
    if request.run_id and request.resume:
        raise ValueError(f"--run-id {request.run_id!r}: names a new run, --resume an old one; leave one of the two out")
    if request.patience_s < 0:
        raise ValueError(f"--patience {request.patience_s:g}: must be 0 seconds or more")
    if request.local and request.workers > 1:
        raise ValueError(f"--workers {request.workers}: --local runs in this process alone; leave one of the two out")
    if request.local and request.address:
        raise ValueError(f"--address {request.address!r}: --local runs without Ray; leave one of the two out")
    if recipe.train.shards % request.workers:
        raise ValueError(
            f"--workers {request.workers}: train.shards = {recipe.train.shards} must divide among them; "
            f"--set train.shards={request.workers} (the global batch is shards x shard_size clips)"
        )
    return plan_phases(recipe)


def refuse_passwords(**uris: str) -> None:
    """ValueError where the URI of an option holds a password."""
    for option, uri in uris.items():
        if urlsplit(uri).password is not None:
            raise ValueError(
                f"--{option}: its URI holds a password, which would stand in the run's records; give it by environment "
                "variables instead (AWS_*, MLFLOW_TRACKING_USERNAME and _PASSWORD, PGPASSWORD)"
            )


def absolute(recipe: Recipe) -> Recipe:
    """Local paths made absolute: Ray gives every worker a working folder of its own."""

    def here(uri: str) -> str:
        return str(object_store.local_path(uri)) if uri and object_store.is_local(uri) else uri

    data = recipe.data
    data = replace(data, root=here(data.root), manifest=here(data.manifest), cache=here(data.cache))
    models = {name: replace(model, init=here(model.init)) for name, model in recipe.models.items()}
    return replace(recipe, data=data, models=models)
