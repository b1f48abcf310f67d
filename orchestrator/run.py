"""The driver of one training run: check, record, launch, watch, sum up. The worker's side is `worker.py`."""

import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator import machine
from orchestrator.joining import connect, join_stack
from orchestrator.recipes.loader import resolve
from orchestrator.runs.checkpoint_store import InBackground, RunShelf
from orchestrator.runs.lease import Attempt, Driver, ask_to_stop, beating, is_driven_by
from orchestrator.runs.location import Place
from orchestrator.runs.outcome import conclude, share_spool
from orchestrator.runs.records import recovered, run_record
from orchestrator.runs.resume import open_run
from orchestrator.storage import object_store
from orchestrator.tracking.replayer import start_replayer
from workloads.config.recipe import Recipe
from workloads.data.clips import split
from workloads.data.manifest import read_corpus
from workloads.distill.schedule import Phase, plan_phases
from workloads.runtime.event_log import Spool, read_spool

Show = Callable[[Place], AbstractContextManager[None]]
TRACKING_GRACE_S = 30.0  # how long the end of a run waits for the tracker to catch up
RETRIES = 3  # worker failures that Ray answers by starting the group again
RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray's own idea of the newest checkpoint; ours is the shelf's


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


def run(request: Request, *, show: Show) -> dict[str, Any]:
    """The whole run; returns its outcome, the object that --json prints, also of a run that failed.

    `show` opens a context in which the spool's progress is shown. Raises ValueError for the user's mistakes that can
    be seen before anything starts.
    """
    check(request)
    request = replace(request, recipe=absolute(request.recipe))
    split(read_corpus(request.recipe.data, object_store.FsspecFiles()), request.recipe.data)
    object_store.probe(request.storage)
    driver = Driver()
    opened = open_run(
        request.recipe,
        home=request.storage,
        run_id=request.run_id,
        resume=request.resume,
        tracked=request.tracking,
        driver=driver,
        patience_s=request.patience_s,
    )
    place = opened.place
    if opened.outcome is not None:  # done already: then nothing is left to do
        return opened.outcome
    assert opened.attempt is not None
    with beating(place.uri, driver):
        replayer = _drive(request, place, opened.attempt, show)
        wait_for_tracking(replayer)

        def concluded() -> dict[str, Any]:
            mine = is_driven_by(place.uri, driver)  # else somebody else has resumed it by now
            return conclude(place, request.command, publish=mine)

        return object_store.patiently(concluded, what=place.uri, patience_s=request.patience_s)


def _drive(request: Request, place: Place, attempt: Attempt, show: Show) -> Any:
    """Record what happens until the run has ended, one way or another; returns the replayer."""
    place.folder.mkdir(parents=True, exist_ok=True)
    with Spool(place.spool) as spool:
        missing = recovered(place)
        spool.append(run_record(request.recipe, place, command=request.command, workers=request.workers))
        for record in missing:
            spool.append(record)
        share_spool(place)
        replayer = start_replayer(place.spool, place.tracking, log=place.folder / "tracking.log")
        launch = _run_locally if request.local else _run_on_ray
        try:
            with show(place), machine.sampling(spool):
                end = launch(request, place, attempt, spool, replayer)
            spool.append(end)
        except BaseException as error:
            try:
                (place.folder / "error.log").write_text(traceback.format_exc())
                spool.append(_end("failed", _reason(error), mistake=isinstance(error, ValueError)))
            except OSError as full:
                raise OSError(f"{_reason(error)}; `--resume {place.run_id}` goes on once that is mended") from full
            if not isinstance(error, Exception):
                raise
    return replayer


def _reason(error: BaseException) -> str:
    """An error in one line; of Ray's, which carry a worker's whole traceback, the last one."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines) if len(lines) <= 3 else lines[-1]


def _end(status: str, error: str = "", *, mistake: bool = False) -> dict[str, Any]:
    return {"kind": "end", "status": status, "error": error, "mistake": mistake}


def absolute(recipe: Recipe) -> Recipe:
    """Local paths made absolute: Ray gives every worker a working folder of its own."""

    def here(uri: str) -> str:
        return str(object_store.local_path(uri)) if uri and object_store.is_local(uri) else uri

    data = recipe.data
    data = replace(data, root=here(data.root), manifest=here(data.manifest), cache=here(data.cache))
    models = {name: replace(model, init=here(model.init)) for name, model in recipe.models.items()}
    return replace(recipe, data=data, models=models)


def _run_locally(request: Request, place: Place, attempt: Attempt, spool: Spool, replayer: Any) -> dict[str, Any]:
    """The loop in this process. Torch is imported only here."""
    from workloads.runtime.session import LocalSession
    from workloads.train import loop, set_up

    if request.recipe.train.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("train.device = 'cuda': this machine has no GPU that torch can use; set it to 'cpu'")
    replayer.wait_started()
    stop = threading.Event()
    shelf = RunShelf(attempt, keep_last=request.recipe.train.keep_last, patience_s=request.patience_s)
    shelf.collect_garbage()
    with tempfile.TemporaryDirectory(prefix="antiphon-") as scratch, InBackground(shelf) as background:
        session = LocalSession(
            work_dir=Path(scratch),
            spool=spool,
            shelf=background,
            device=request.recipe.train.device,
            should_stop=stop.is_set,
        )
        with on_sigterm(stop.set):
            run = set_up(request.recipe, session, files=object_store.FsspecFiles())
            try:
                status = loop(run)
            except ValueError as error:  # once the loop runs, it is not the user's mistake
                raise RuntimeError(f"step {run.step}: {error}") from error
    return _end(status)


def _run_on_ray(request: Request, place: Place, attempt: Attempt, spool: Spool, replayer: Any) -> dict[str, Any]:
    """The loop in Ray Train's workers."""
    # Ray starts workers at nice 15: on a shared machine one of two threads starves and the other waits for it.
    os.environ.setdefault("RAY_worker_niceness", "0")
    address = join_stack(request.address)  # before Ray is imported: it reads its token's place then
    import ray

    _connect(ray, request, address)
    try:
        with on_sigterm(lambda: ask_to_stop(place.uri, attempt.driver)):
            replayer.wait_started()
            return fit(request.recipe, place, attempt, workers=request.workers, patience_s=request.patience_s)
    finally:
        ray.shutdown()


def fit(
    recipe: Recipe, place: Place, attempt: Attempt, *, workers: int, patience_s: float, until: int | None = None
) -> dict[str, Any]:
    """One TorchTrainer with all models in every worker, on the Ray at hand; returns the record with which it ended.

    With `until` it saves and ends after so many steps, and another one goes on.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how often the controller fetches reports
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from orchestrator.worker import SpoolCallback, train_worker

    snapshot = object_store.join(place.uri, RAY_SNAPSHOT)
    object_store.patiently(lambda: object_store.delete(snapshot), what=snapshot, patience_s=patience_s)
    said_before = len(read_spool(place.spool))
    # The type checker sees the first generation of these classes, the interpreter the second.
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "recipe": resolve(recipe),
            "run_uri": place.uri,
            "driver": asdict(attempt.driver),
            "patience_s": patience_s,
            "until": until,
        },
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=recipe.train.device == "cuda"),
        run_config=RunConfig(
            name=place.run_id,
            failure_config=FailureConfig(max_failures=RETRIES, controller_failure_limit=RETRIES),  # type: ignore[call-arg]
            callbacks=[SpoolCallback(str(place.spool))],  # type: ignore[list-item]
            **ray_storage(place.uri.removesuffix(f"/{place.run_id}"), patience_s=patience_s),
        ),
    )
    trainer.fit()
    closed = [record for record in read_spool(place.spool)[said_before:] if record["kind"] == "closed"]
    if not closed:
        raise RuntimeError("the workers ended without saying how")
    return _end(closed[-1]["status"], closed[-1]["error"], mistake=closed[-1]["mistake"])


def _connect(ray: Any, request: Request, address: str) -> None:
    """Start a local Ray, or join the one at the address; either way it must be able to hold all workers."""
    need, unit = request.workers, "GPU" if request.recipe.train.device == "cuda" else "CPU"
    have = connect(ray, address, at_least=need + 1).resources.get(unit, 0)
    if have < need:
        where = f"the cluster at {address}" if address else "this machine"
        ray.shutdown()
        raise ValueError(f"--workers {need}: {where} has {have:g} {unit}s; ask for fewer, or another train.device")


def ray_storage(home: str, *, patience_s: float) -> dict[str, Any]:
    """Ray keeps its own notes in the same run folder as our checkpoints: it insists on owning the folder it reports."""
    if object_store.is_local(home):
        return {"storage_path": str(object_store.local_path(home))}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = object_store.filesystem(home, patience_s=patience_s)
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


@contextmanager
def on_sigterm(ask: Callable[[], Any]) -> Iterator[None]:
    """Within this context SIGTERM asks the run to save and stop; afterwards it means what it meant before."""
    before = signal.signal(signal.SIGTERM, lambda *_: ask())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def wait_for_tracking(replayer: Any) -> None:
    """Give the tracker time to catch up; what it has not delivered stays in the spool."""
    code = replayer.wait(timeout_s=TRACKING_GRACE_S)
    if code is None:
        print("tracking is still catching up in the background; nothing is lost", file=sys.stderr)
    elif code != 0:
        print(f"tracking: {replayer.explanation()}", file=sys.stderr)
