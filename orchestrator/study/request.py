"""One `antiphon study` as the user typed it, and what is refused, or left out, before anything starts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from orchestrator.runs.resume import finished_outcome
from orchestrator.storage import object_store
from orchestrator.storage.object_store import is_local
from orchestrator.study.plan import Member, PlannedMethod, StudyPlan, run_id, without
from orchestrator.study.store import DEFINITION, StudyStore
from orchestrator.tracking.uri import NONE
from orchestrator.training.driver import check_recipe_data
from orchestrator.training.request import RunRequest, check_request, refuse_ray_client, refuse_wait, with_absolute_paths
from orchestrator.training.worker_resources import worker_needs
from workloads.config.recipe import Recipe
from workloads.config.study import CONTROL
from workloads.runtime.precision import precision_warnings
from workloads.runtime.redaction import redacted


@dataclass(frozen=True)
class StudyRequest:
    """One `antiphon study`, as the user typed it; in `command` secrets are replaced."""

    plan: StudyPlan
    command: str
    storage: str = "runs"
    tracking: str = field(default="", repr=False)  # may hold a password
    study_id: str = ""  # empty: the study's name
    local: bool = False  # one run after another in this process, without Ray
    address: str = ""  # of a Ray cluster; empty: a local one
    slots: int = 0  # runs at once; 0: as many as the cluster holds
    wait_s: float = 0.0  # how long to wait for a cluster that holds one
    patience_s: float = 300.0  # how long to wait for an unavailable store

    @property
    def id(self) -> str:
        return self.study_id or self.plan.study.name

    def run_request(self, recipe: Recipe, run_id: str) -> RunRequest:
        """One of the study's runs, in the process that asks for it: created, or continued where it has begun."""
        return RunRequest(
            recipe,
            self.command,
            storage=self.storage,
            tracking=self.tracking,
            local=True,
            run_id=run_id,
            resume="auto",
            patience_s=self.patience_s,
        )


def check(request: StudyRequest, *, warn: Callable[[str], None]) -> StudyRequest:
    """Refuse the user's mistakes before anything is started or written; returns the request that can be run.

    Without the methods that its models or data cannot do. A study that was started before keeps its methods, also where
    a store or the data are gone meanwhile: what is done is shown, and runs that are left fail with the reason. `warn`
    gets such reasons, and warnings about precision and data. Raises ValueError for options that contradict each other,
    and where the control itself cannot be run and has runs left.
    """
    _check_options(request)
    plan = request.plan
    _require_same_worker(plan)
    plan = replace(plan, methods={name: _absolute(method) for name, method in plan.methods.items()})
    started = _methods_of_started(request)
    try:
        for warning in _check_control(replace(request, plan=plan)):
            warn(warning)
    except ValueError as error:
        if CONTROL not in started or any(_left(request, plan, CONTROL)):
            raise
        warn(f"{CONTROL}: {error}")
    reasons = dict[str, str]()
    for name, method in plan.methods.items():
        try:
            _check(request, method.recipe, fold=plan.study.folds[0])
        except ValueError as error:
            if name not in started:
                reasons[name] = str(error)
            elif left := len(list(_left(request, plan, name))):
                warn(f"{name}: {left} runs are left, which cannot begin: {error}")
    plan = without(plan, reasons)
    if len(plan.methods) == 1:
        reason = next(iter(plan.left_out.values()), "name some in standard or methods")
        raise ValueError(f"study {plan.study.name}: no method is left to compare with the control: {reason}")
    return replace(request, plan=plan)


def _methods_of_started(request: StudyRequest) -> tuple[str, ...]:
    """The methods of the study of this id that was started before; none where there is no such study."""
    store = StudyStore(object_store.join(request.storage, request.id))
    if not object_store.exists(object_store.join(store.uri, DEFINITION)):
        return ()
    return tuple(store.read_plan().methods)


def _left(request: StudyRequest, plan: StudyPlan, method: str) -> Iterator[Member]:
    """The runs of a method that are not done."""
    for member in plan.members:
        uri = object_store.join(request.storage, run_id(request.id, member))
        if member.method == method and finished_outcome(uri) is None:
            yield member


def _check_options(request: StudyRequest) -> None:
    refuse_ray_client(request.address)
    refuse_wait(request.wait_s, request.address)
    if request.slots < 0:
        raise ValueError(f"--slots {request.slots}: must be 1 or more")
    if request.local and (request.slots or request.address):
        option = "--slots" if request.slots else "--address"
        raise ValueError(f"{option}: --local trains one run after another without Ray; leave one of the two out")
    tracking, on_disk = request.tracking, request.tracking.startswith("sqlite:") or is_local(request.tracking)
    if request.address and tracking != NONE and (not tracking or on_disk):
        raise ValueError(
            f"--tracking {redacted(tracking) or 'sqlite (the default)'}: on a cluster every run of a study "
            "would write to a database on its own node; give the address of an MLflow server (or MLFLOW_TRACKING_URI), "
            f"or {NONE}"
        )


def _require_same_worker(plan: StudyPlan) -> None:
    """ValueError where a method needs another place on a cluster than the control, by which places are counted."""
    of_control = worker_needs(plan.methods[CONTROL].recipe)
    for name, method in plan.methods.items():
        if (own := worker_needs(method.recipe)) != of_control:
            raise ValueError(
                f"methods.{name}: a run of it takes {own}, and one of {CONTROL} {of_control}; leave train.device, "
                "train.threads, train.loaders and resources to the study's settings"
            )


def _absolute(method: PlannedMethod) -> PlannedMethod:
    return replace(method, recipe=with_absolute_paths(method.recipe))


def _check_control(request: StudyRequest) -> list[str]:
    """Warnings about the control, which must run on every fold."""
    recipe, warnings = request.plan.methods[CONTROL].recipe, dict[str, None]()
    for fold in request.plan.study.folds:
        warnings |= dict.fromkeys(_check(request, recipe, fold=fold))
    return [*precision_warnings(recipe.train), *warnings]


def _check(request: StudyRequest, recipe: Recipe, *, fold: int) -> list[str]:
    """Warnings about a method's recipe on a test fold; ValueError where its models or the data cannot do it."""
    recipe = replace(recipe, data=replace(recipe.data, test_fold=fold))
    check_request(request.run_request(recipe, run_id=""))
    return check_recipe_data(recipe)
