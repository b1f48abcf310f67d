"""A run in Ray Train's workers, seen from the driver: one TorchTrainer with all models in every worker.

Ray restarts the group of workers after a failure, and as often as nodes are taken away: up to `RETRIES` times, and once
more so often while they advance in between. It is told of no checkpoint: our markers alone decide which one to resume
from.
"""

import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import asdict
from functools import partial
from typing import Any

from orchestrator.recipes.loader import resolve
from orchestrator.runs.lease import Attempt, request_stop
from orchestrator.runs.location import RunLocation
from orchestrator.runs.records import end_record
from orchestrator.runs.resume import RECIPE
from orchestrator.storage import object_store
from orchestrator.storage.retry import Unavailable, retry_while_unavailable
from orchestrator.training.claimed_run import ClaimedRun
from orchestrator.training.ray_cluster import connect, prepare_environment
from orchestrator.training.worker_count import WorkerCount
from orchestrator.training.worker_resources import ACCELERATOR, beside_workers, require_room, worker_needs
from workloads.config.recipe import Recipe
from workloads.runtime.event_log import read_event_log
from workloads.runtime.text import one_line

PEER_TIMEOUT_S = 1800  # workers wait so long for one another, and for what rank 0 may wait for the store
# By device of the workers. Objects (`workloads/runtime/session.py::gather`) go through the CPU's, where there is one:
# over NCCL they would wait for the GPU's work. Gradients and sums lie on the GPU.
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
RETRIES = 3  # worker failures after which Ray starts the group again
BEGUN_S = 5.0  # after a stop is requested: the records of workers that have begun are there by then
GIVE_UP_POLL_S = 0.2
LOOK_S = 10.0  # how often it is seen whether the cluster holds another number of workers
# How long an attempt to start workers may take: images are pulled, and nodes that take the place of lost ones start,
# before workers do. A number that follows the cluster is counted anew before each attempt, so these are shorter.
START_S, ELASTIC_START_S, START_ALTOGETHER_S = 300, 60, 1200


def run_on_ray(claimed: ClaimedRun) -> dict[str, Any]:
    """Train in Ray Train's workers and return the end record; where a stop is requested, the workers save and stop."""
    request, location, attempt = claimed.request, claimed.location, claimed.attempt
    address = prepare_environment(request.address)  # before Ray is imported: it reads where its token is then
    import ray

    _connect(ray, claimed, address, see=object_store.join(location.uri, RECIPE))
    claimed.at_end.callback(ray.shutdown)  # which takes seconds, while who preempts a run waits for its outcome

    def ask_workers() -> None:
        retry_while_unavailable(
            lambda: request_stop(location.uri, attempt.driver), what=location.uri, patience_s=request.patience_s
        )

    with claimed.stop.relayed(ask_workers):
        claimed.replayer.wait_started(stopped=claimed.stop.requested)
        if claimed.stop.requested():
            raise Unavailable("stopped before the workers were started")
        return fit(
            request.recipe,
            location,
            attempt,
            workers=request.workers,
            patience_s=request.patience_s,
            stopped_for=claimed.stop.requested_for,
        )


def fit(
    recipe: Recipe,
    location: RunLocation,
    attempt: Attempt,
    *,
    workers: WorkerCount,
    patience_s: float,
    until: int | None = None,
    label: str = "",
    stopped_for: Callable[[], float] = lambda: 0.0,
) -> dict[str, Any]:
    """Train on the connected Ray and return the end record that the workers reported.

    With `until` the workers save and end after that many steps, as "preempted"; another call continues. `label` is the
    label `run_id` of their metrics, where the run's id alone does not say which run it is. `stopped_for` says for how
    many seconds a stop has been requested: Unavailable where by then no workers train that could save.
    """
    num_records_before = len(read_event_log(location.event_log))
    config = {
        "recipe": resolve(recipe),
        "run_uri": location.uri,
        "driver": asdict(attempt.driver),
        "patience_s": patience_s,
        "until": until,
        "label": label or location.run_id,
    }

    def new_records() -> list[dict[str, Any]]:
        return read_event_log(location.event_log)[num_records_before:]

    def given_up() -> bool:
        return stopped_for() > BEGUN_S and not _training(new_records())

    def fit_once() -> Exception | None:
        trainer = _trainer(recipe, location, config, workers=workers, patience_s=patience_s)
        return _fit_once(trainer, given_up)

    while (lost := fit_once()) is not None:
        if not _advances(new_records()):
            raise lost
    closed = [record for record in new_records() if record["kind"] == "closed"]
    if not closed:
        raise RuntimeError("the workers ended without reporting a status")
    return end_record(closed[-1]["status"], closed[-1]["error"], mistake=closed[-1]["mistake"])


def _fit_once(trainer: Any, given_up: Callable[[], bool]) -> Exception | None:
    """Train; returns the error where workers were lost more often than Ray starts them again, or the cluster failed.

    Raises Unavailable where the store failed or the cluster did not start the workers, and where `given_up` says so.
    """
    from ray.exceptions import RayError, RayTaskError
    from ray.train import ControllerError, WorkerGroupError

    try:
        _in_a_thread(trainer.fit, given_up)
    except ControllerError as error:
        failure = error.controller_failure
        if type(failure).__name__.startswith("WorkerGroupStartup"):
            raise Unavailable(f"the cluster has not started the workers: {one_line(failure)}") from None
        if isinstance(failure, RayError) and not isinstance(failure, RayTaskError):  # Ray itself, no code that it ran
            return Unavailable(f"the Ray cluster failed: {one_line(failure)}")
        raise
    except WorkerGroupError as error:  # what a store does for longer than the workers wait for it
        reasons = [str(failure).strip() for failure in error.worker_failures.values()]
        if any(f"{Unavailable.__name__}: " in reason for reason in reasons):
            raise Unavailable(one_line(error)) from None
        return error
    return None


def _advances(records: list[dict[str, Any]]) -> bool:
    """Whether the workers that were started last began at a later step than those before: a checkpoint had been stored.

    Nodes of a long run are lost many times; a fault that comes back at one step ends it.
    """
    steps = [record["step"] for record in records if record["kind"] == "start"]
    return len(steps) > 1 and steps[-1] > steps[-2]


def _trainer(
    recipe: Recipe, location: RunLocation, config: dict[str, Any], *, workers: WorkerCount, patience_s: float
) -> Any:
    """Ray Train's trainer of a run, whose workers get `config`; the environment of its controller is set first."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how often the controller fetches reports
    start_s = ELASTIC_START_S if workers.elastic else START_S
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(start_s))
    # a worker that does not answer: its process hangs, or its machine; Ray's ten minutes are long for the other workers
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "180")
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")  # how often it looks whether a node is to leave
    from ray.train import FailureConfig, RunConfig

    from orchestrator.training.ray_network import TorchOverNodeNetwork
    from orchestrator.training.ray_worker import EventLogCallback, train_worker

    # The type checker sees the first generation of these classes, the interpreter the second.
    return _trainer_class(recipe, workers)(
        train_worker,
        train_loop_config=config,
        torch_config=TorchOverNodeNetwork(
            backend=BACKENDS[recipe.train.device], timeout_s=PEER_TIMEOUT_S + int(patience_s)
        ),
        scaling_config=_scaling(recipe, workers),
        run_config=RunConfig(
            name=location.run_id,
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=RETRIES, controller_failure_limit=START_ALTOGETHER_S // start_s - 1
            ),
            callbacks=[EventLogCallback(str(location.event_log))],  # type: ignore[list-item]
            **ray_storage(location.uri.removesuffix(f"/{location.run_id}"), patience_s=patience_s),
        ),
    )


def _trainer_class(recipe: Recipe, workers: WorkerCount) -> Any:
    """Ray Train's own, or the one whose number of workers follows the cluster."""
    if not workers.elastic:
        from ray.train.torch import TorchTrainer

        return TorchTrainer
    from orchestrator.training.ray_elastic import ElasticTorchTrainer

    return partial(ElasticTorchTrainer, needs=worker_needs(recipe), sizes=workers.sizes(recipe.train.shards))


def _scaling(recipe: Recipe, workers: WorkerCount) -> Any:
    """How many workers there are, and what Ray reserves for each."""
    from ray.train import ScalingConfig

    needs, bounds = worker_needs(recipe), workers.bounds(recipe.train.shards)
    return ScalingConfig(
        num_workers=bounds if workers.elastic else workers.least,  # type: ignore[arg-type]
        elastic_resize_monitor_interval_s=LOOK_S,
        use_gpu="GPU" in needs.resources,
        resources_per_worker={what: amount for what, amount in needs.resources.items() if ACCELERATOR not in what},
        accelerator_type=recipe.resources.accelerator or None,
        label_selector=dict(needs.labels) or None,  # type: ignore[call-arg]
        placement_strategy=needs.placement,
    )


def _training(records: list[dict[str, Any]]) -> bool:
    """Whether workers are training, by what they and Ray's controller have recorded so far."""
    steps = [
        record["kind"] for record in records if record["kind"] in ("start", "worker-failed", "leaving", "resizing")
    ]
    return steps[-1:] == ["start"]


def _in_a_thread(call: Callable[[], Any], given_up: Callable[[], bool]) -> None:
    """Call it in another thread and wait: in the main thread Ray Train would take Ctrl-C and abort the workers.

    Raises Unavailable once `given_up` says so; the other thread is left behind.
    """
    done: Future[Any] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, daemon=True, name="ray-train").start()
    while not wait([done], timeout=GIVE_UP_POLL_S).done:
        if given_up():
            raise Unavailable("stopped before the workers had begun, or begun again")
    done.result()


def ray_storage(storage: str, *, patience_s: float) -> dict[str, Any]:
    """Ray's storage arguments for a folder or URI: Ray insists on owning the run's folder, so both write there."""
    if object_store.is_local(storage):
        return {"storage_path": str(object_store.local_path(storage))}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = object_store.filesystem(storage, patience_s=patience_s)
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


def _connect(ray: Any, claimed: ClaimedRun, address: str, *, see: str) -> None:
    """Connect to Ray; ValueError if it cannot hold all workers at once, or a node cannot read the file `see`.

    Raises Unavailable where a stop is requested while nodes are waited for: nothing has begun.
    """
    request = claimed.request
    needs, workers = worker_needs(request.recipe), request.workers
    least, most = workers.bounds(request.recipe.train.shards)
    beside = beside_workers(request.recipe)
    cpus = most * needs.resources["CPU"] + (beside[1] * beside[0].resources["CPU"] if beside else 0)
    connection = connect(ray, address, at_least=math.ceil(cpus) + 1)
    claimed.stop.install()  # once more: Ray has set its own handler for SIGTERM

    def require_not_stopped() -> None:
        if claimed.stop.requested():
            raise Unavailable("stopped before the workers were started")

    try:
        connection = connection.wait_for_room(
            ray, needs, least, wait_s=request.wait_s, check=require_not_stopped, beside=beside
        )
        fix = "set train.threads, train.loaders or resources, or another train.device"
        require_room(connection.nodes, needs, workers, address, fix=fix, beside=beside)
        connection.require_visible(ray, see)
    except (ValueError, Unavailable):
        ray.shutdown()
        raise
