"""One `antiphon run` as the user typed it, and the rules that refuse it before anything starts."""

import shlex
from dataclasses import dataclass, field, replace

from orchestrator.runs.resume import AUTO
from orchestrator.storage import object_store
from orchestrator.tracking.uri import absolute_uri
from orchestrator.training.inside_job import require_lasting_storage, require_lasting_tracking
from orchestrator.training.worker_count import ONE_WORKER, WorkerCount, require_workers_divide
from workloads.config.edge import STORE
from workloads.config.recipe import PRETRAINED, Recipe
from workloads.distill.schedule import Phase, plan_phases
from workloads.runtime.redaction import redacted, require_no_secret


@dataclass(frozen=True)
class RunRequest:
    """One `antiphon run`, as the user typed it; in `command` secrets are replaced."""

    recipe: Recipe
    command: str
    storage: str = "runs"
    # MLflow URI, the one that may hold a password; empty: SQLite beside the runs, "none": no tracking
    tracking: str = field(default="", repr=False)
    workers: WorkerCount = ONE_WORKER
    address: str = ""  # of a Ray cluster; empty: a local one for this run
    local: bool = False  # in this process, without Ray
    run_id: str = ""  # of a new run; empty: a generated one
    resume: str = ""  # id of a run to resume, or "auto": the run called `run_id`, else the newest unfinished one
    patience_s: float = 300.0  # how long to wait for an unavailable store
    wait_s: float = 0.0  # how long to wait for a cluster that holds the workers
    seed_runs: tuple[str, ...] = ()  # URIs of finished runs with other seeds, which this one's comparison includes

    def repeat_options(self, uri: str) -> str:
        """The options of a command that repeats this run, stored at `uri`, beside it; for a shell."""
        options = placement_options(uri, tracking=self.tracking, address=self.address, workers=str(self.workers))
        return shlex.join([*options, *(["--local"] if self.local else [])])


def placement_options(uri: str, *, tracking: str, address: str, workers: str) -> list[str]:
    """The options that place the same run or search again, beside the one at `uri`, without those at their defaults.

    A tracking URI with a secret is left out, because it must not be stored: MLFLOW_TRACKING_URI gives it.
    """
    options = ["--storage", uri.rpartition("/")[0]]
    options += ["--workers", workers] if workers != "1" else []
    options += ["--tracking", absolute_uri(tracking)] if tracking and redacted(tracking) == tracking else []
    return options + (["--address", address] if address else [])


def check_request(request: RunRequest) -> tuple[Phase, ...]:
    """Raise ValueError for the user's mistakes before anything is started or written; returns the run's phases."""
    refuse_ray_client(request.address)
    require_no_secret(request.storage, "--storage")
    require_lasting_storage(request.storage, "--storage")
    require_lasting_tracking(request.tracking)
    if request.run_id and request.resume not in ("", AUTO):
        raise ValueError(
            f"--run-id {request.run_id!r}: names a new run, --resume an old one; leave one of the two out, or give "
            f"--resume {AUTO}: the run of that id is created, or continued where there is one"
        )
    if request.patience_s < 0:
        raise ValueError(f"--patience {request.patience_s:g}: must be 0 seconds or more")
    refuse_wait(request.wait_s, request.address)
    require_gpu_of_its_own(request.recipe, request.workers.most)
    if request.local and request.workers.most > 1:
        raise ValueError(f"--workers {request.workers}: --local runs in this process alone; leave one of the two out")
    if request.local and request.address:
        raise ValueError(f"--address {request.address!r}: --local runs without Ray; leave one of the two out")
    require_workers_of_its_own(request.recipe, local=request.local)
    require_workers_divide(request.recipe, request.workers)
    phases = plan_phases(request.recipe)
    _require_buildable(request.recipe)
    return phases


def _require_buildable(recipe: Recipe) -> None:
    from workloads.models.buildable import require_buildable  # torch and the model libraries take seconds to import

    require_buildable(recipe)


def refuse_ray_client(address: str) -> None:
    """Raise ValueError for a ray:// address: Ray Client connections do not survive long runs; and for a dashboard's."""
    if address.startswith(("http://", "https://")):
        raise ValueError(
            f"--address {address!r} (or RAY_ADDRESS): is a dashboard's; give HOST:PORT of the cluster's head, or "
            "`antiphon submit` the command there"
        )
    if address.startswith("ray://"):
        raise ValueError(
            f"--address {address!r}: Ray Client connections break long runs; submit the command as a job "
            "(`ray job submit --address http://HEAD:8265 -- antiphon run ...`) or give HOST:PORT on a cluster node"
        )


def refuse_wait(wait_s: float, address: str) -> None:
    """Raise ValueError for a time to wait that is none, or where there is no cluster to wait for."""
    if wait_s < 0:
        raise ValueError(f"--wait {wait_s:g}: must be 0 seconds or more")
    if wait_s and not address:
        raise ValueError(f"--wait {wait_s:g}: waits for a cluster to scale up; give its --address, or leave it out")


def require_gpu_of_its_own(recipe: Recipe, workers: int) -> None:
    """Raise ValueError for several workers on one GPU: NCCL, over which they exchange gradients, refuses that."""
    if workers > 1 and 0 < recipe.resources.gpus < 1:
        raise ValueError(
            f"resources.gpus = {recipe.resources.gpus:g}: --workers {workers} need a GPU each; set it to 1, or give "
            "--workers 1"
        )


def require_workers_of_its_own(recipe: Recipe, *, local: bool) -> None:
    """Raise ValueError for models that are to be in several processes where there is only this one."""
    if local and recipe.placement != "colocated":
        raise ValueError(
            f"placement = {recipe.placement!r}: --local trains all models in this process; leave --local out, or --set "
            "placement=colocated"
        )


def require_gpu(recipe: Recipe) -> None:
    """Raise ValueError where the recipe wants a GPU and this machine has none that torch can use; imports torch."""
    if recipe.train.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("train.device = 'cuda': this machine has no GPU that torch can use; set it to 'cpu'")


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with local paths made absolute: Ray gives every worker a working folder of its own."""

    def absolute(uri: str) -> str:
        is_path = uri and object_store.is_local(uri) and not uri.startswith(PRETRAINED)
        return str(object_store.local_path(uri)) if is_path else uri

    data = recipe.data
    data = replace(data, root=absolute(data.root), manifest=absolute(data.manifest), cache=absolute(data.cache))
    models = {name: replace(model, init=absolute(model.init)) for name, model in recipe.models.items()}
    edges = tuple(
        replace(edge, teacher=f"{STORE}{absolute(edge.store)}") if edge.store else edge for edge in recipe.edges
    )
    return replace(recipe, data=data, models=models, edges=edges)
