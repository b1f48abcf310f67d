"""A run in one worker: its state, what is done before the first step, its records, its checkpoints.

Every worker has one and calls these functions equally often and in the same order; only rank 0 writes checkpoints and
reports records. A kill loses what was not reported; a checkpoint counts once the session has published it.
"""

import time
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workloads.config.recipe import Recipe
from workloads.data.batches import Batches
from workloads.data.prepare import PreparedData
from workloads.distill.pool import ModelPool
from workloads.distill.preflight import prepare_run
from workloads.distill.schedule import Phase, plan_phases
from workloads.distill.service import require_same_data
from workloads.distill.stores_of_run import StoresOfRun
from workloads.models.initial_weights import build_initial_tagger
from workloads.runtime.cost import CostMeter, cost_of_workers
from workloads.runtime.cpu import use_cpu
from workloads.runtime.event_log import EVENT_LOG, EventLog, read_event_log, timestamped
from workloads.runtime.opener import Opener
from workloads.runtime.placement import Placement, place
from workloads.runtime.precision import precision_warnings, set_tf32
from workloads.runtime.resume import newest_intact_checkpoint
from workloads.runtime.session import Session, StepTimes, gather
from workloads.runtime.version import VERSION

LIBRARIES = ("torch", "torchaudio", "torchvision", "timm", "safetensors")  # whose versions checkpoints record


@dataclass
class Run:
    """The state of one run in one worker.

    A checkpoint holds `step`, `smoothed_scores`, `validated`, `history` and the models of the pool; the rest follows
    from the recipe.
    """

    recipe: Recipe
    session: Session
    placement: Placement
    phases: tuple[Phase, ...]
    prepared: PreparedData
    stores: StoresOfRun
    batches: Batches
    pool: ModelPool
    shards: range  # which shards of each global batch this worker trains on
    step: int = 0  # steps done
    smoothed_scores: dict[str, float] = field(default_factory=dict)  # by model; edge weights may follow them
    validated: dict[str, tuple[int, float]] = field(default_factory=dict)  # model -> its own step, its primary score
    unreported_records: list[dict[str, Any]] = field(default_factory=list)
    teachers_s: float = 0.0  # in total, spent in asking teachers
    cost: CostMeter = field(default_factory=CostMeter)  # of this worker, since the last record of it
    times: list[StepTimes] = field(default_factory=list)  # of this worker's steps since they were last recorded
    history: EventLog = field(init=False)  # all records of the run so far; copied into each checkpoint

    def __post_init__(self) -> None:
        self.history = EventLog(self.session.work_dir / EVENT_LOG)

    def record(self, kind: str, **fields: Any) -> None:
        """Add a record to the history; the next report passes it to the session."""
        self.unreported_records.append(timestamped(kind, **fields))
        self.history.append(self.unreported_records[-1])


def set_up(recipe: Recipe, session: Session, *, files: Opener) -> Run:
    """Do everything that comes before the first step: prepare data, plan phases, restore the newest checkpoint.

    All mistakes of the user (unusable data, shards that do not divide) are raised here, as ValueErrors.
    """
    use_cpu(recipe.train.threads)
    if session.device.type == "cuda":
        set_tf32(recipe.train.tf32)
    placement = place(recipe, session)
    phases = plan_phases(recipe)
    prepared, stores, newly_initialised = prepare_run(recipe, phases, placement.everyone, session.device, files)
    if recipe.placement == "service":
        require_same_data(session.teachers, placement.everyone, prepared.dataset.fingerprint())
    make_tagger = partial(build_initial_tagger, recipe, tags=prepared.dataset.tags, files=files)
    run = Run(
        recipe=recipe,
        session=session,
        placement=placement,
        phases=phases,
        prepared=prepared,
        stores=stores,
        batches=Batches(prepared.splits.train, prepared.dataset, prepared.cache, recipe, stores.views, stores.mixtures),
        pool=ModelPool(recipe, session, placement, phases, make_tagger, stores.teachers),
        shards=placement.shards(recipe.train.shards),
    )
    restore_run(run, prepared.dataset.fingerprint())
    summary = prepared.summary()
    summary["warnings"] += precision_warnings(recipe.train)  # of this worker's machine: the driver may have another
    summary["warnings"] += stores.warnings()
    run.record("data", **summary, started_afresh=newly_initialised, stores=stores.summary())
    return run


def restore_run(run: Run, fingerprint: str) -> None:
    """Restore the newest complete checkpoint, if there is one, and record the step from which the run continues.

    Raises ValueError where the checkpoint was made with other data than that of this `fingerprint`, or other stores.
    """
    folder, state, damaged = newest_intact_checkpoint(run.session)
    if folder is not None:
        if state["data"] != fingerprint:
            raise ValueError(
                "data.root: its clips differ from those this run was started with; restore them, or start a new run"
            )
        if state.get("events", "") != run.prepared.dataset.events_sha256:
            raise ValueError(
                "data.events: its events differ from those this run was started with; restore them, or start a new run"
            )
        for edge, digest in run.stores.digests().items():
            if state["stores"].get(edge) != digest:
                raise ValueError(
                    f"edges {edge}: its store differs from the one this run was started with; restore it, or start a "
                    "new run"
                )
        run.pool.load(folder, state)
        run.step, run.smoothed_scores = state["step"], state["scores"]
        run.validated = {name: (own_step, score) for name, (own_step, score) in state["validated"].items()}
        for record in read_event_log(folder / EVENT_LOG):
            run.history.append(record)
            if record["kind"] == "replaced":
                run.batches.replacements.mark_recorded([record["clip_id"]])
    run.record("start", step=run.step, attempt=run.session.attempt, damaged=damaged)


def save(run: Run) -> None:
    """Write a checkpoint on rank 0 and pass it to the session together with the records up to here."""
    folder = None
    _record_replaced(run)  # before the records are copied into the checkpoint
    record_cost(run, "training")
    run.pool.bring_to_rank_0()
    if run.session.rank == 0:
        began = time.perf_counter()
        name = f"step-{run.step:08d}-attempt-{run.session.attempt}"
        folder = run.pool.save(run.session.work_dir / name, _checkpoint_state(run), history=run.history.path)
        seconds = round(time.perf_counter() - began, 4)
        run.record("checkpoint", step=run.step, name=name, seconds=seconds)
    report(run, folder)


def _checkpoint_state(run: Run) -> dict[str, Any]:
    """The loop's part of a checkpoint; `best_for` holds the validation scores of exactly the weights that are saved."""
    current = {name: scalars["own_step"] for name, scalars in run.pool.members().items()}
    return {
        "step": run.step,
        "scores": run.smoothed_scores,
        "validated": run.validated,
        "best_for": {name: score for name, (at, score) in run.validated.items() if current.get(name, at) == at},
        "data": run.prepared.dataset.fingerprint(),
        "events": run.prepared.dataset.events_sha256,
        "stores": run.stores.digests(),
        "recipe": asdict(run.recipe),
        "versions": {"antiphon": VERSION} | {package: version(package) for package in LIBRARIES},
    }


def report(run: Run, folder: Path | None = None) -> None:
    """Pass rank 0's new records, and a checkpoint if there is one, to the session; called on every worker."""
    _record_replaced(run)
    run.session.report(run.unreported_records if run.session.rank == 0 else [], folder)
    run.unreported_records = []


def record_cost(run: Run, part: str) -> None:
    """Record what was spent since the last such record, or since this attempt began; called on every worker.

    Of training these records travel with the checkpoints: steps that a killed attempt took in vain are not among them.
    """
    spent = cost_of_workers(run.placement.everyone.gather(run.cost.take()), run.recipe.train.device)
    run.record("cost", step=run.step, part=part, **spent)


def _record_replaced(run: Run) -> None:
    """Record the clips of a packed data set that any worker has newly found damaged; called on every worker."""
    if run.prepared.dataset.packed:
        for clip in run.batches.replacements.unrecorded(partial(gather, run.session)):
            run.record("replaced", **clip._asdict())
