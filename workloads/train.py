"""The training loop. There is one, whatever the method.

It runs the phases of the recipe's schedule. Methods differ in their schedule (`distill/schedule.py`), their edges
(`distill/edges.py`) and where teacher outputs come from (`distill/sources.py`): a new method adds to one of these,
never a second loop.

`set_up` prepares a run, `loop` trains, scores and delivers, `advance` goes through phases and steps, `train_step` is
one step: per shard one forward of every student and teacher and one backward, then one optimizer step per student.
Every worker runs the same steps in the same order, on its own shards of each batch; only rank 0 writes checkpoints and
reports records.
"""

import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from workloads.config.controls import random_key
from workloads.config.recipe import Recipe
from workloads.data.batches import Batches
from workloads.data.prepare import PreparedData
from workloads.data.shard import Shard
from workloads.distill.batch_norm import ShardMeanStats
from workloads.distill.edges import EdgeTerm, EmbeddingTerm, edge_term, embedding_term, student_loss
from workloads.distill.pool import ModelPool
from workloads.distill.preflight import prepare_run
from workloads.distill.schedule import Phase, edge_weights, plan_phases, smooth_scores
from workloads.distill.sources import Outputs, TeacherSource
from workloads.distill.stores_of_run import StoresOfRun
from workloads.evaluate import metrics
from workloads.evaluate.deliver import deliver_models
from workloads.evaluate.predict import BadNumbers, score_clips
from workloads.evaluate.step_metrics import mean_over_workers, mean_times, optimizer_metrics, shard_metrics
from workloads.models.initial_weights import build_initial_tagger
from workloads.runtime import checkpoint
from workloads.runtime.event_log import EVENT_LOG, EventLog, read_event_log, timestamped
from workloads.runtime.opener import Opener
from workloads.runtime.precision import precision_warnings, set_tf32
from workloads.runtime.resume import newest_intact_checkpoint
from workloads.runtime.rng import keyed_seed
from workloads.runtime.session import Session, StepTimes, gather

VERSIONS = ("torch", "torchaudio", "torchvision", "timm", "safetensors")  # recorded in every checkpoint


@dataclass
class Run:
    """The state of one run in one worker.

    A checkpoint holds `step`, `smoothed_scores`, `validated`, `history` and the models of the pool; the rest follows
    from the recipe.
    """

    recipe: Recipe
    session: Session
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
    torch.set_num_threads(recipe.train.threads)
    if session.device.type == "cuda":
        set_tf32(recipe.train.tf32)
    shards_per_worker, remainder = divmod(recipe.train.shards, session.world_size)
    if remainder:
        raise ValueError(
            f"train.shards = {recipe.train.shards}: must be a multiple of the {session.world_size} workers; "
            "set train.shards or --workers"
        )
    phases = plan_phases(recipe)
    prepared, stores, newly_initialised = prepare_run(recipe, phases, session, files)
    make_tagger = partial(build_initial_tagger, recipe, tags=prepared.dataset.tags, files=files)
    run = Run(
        recipe=recipe,
        session=session,
        phases=phases,
        prepared=prepared,
        stores=stores,
        batches=Batches(prepared.splits.train, prepared.dataset, prepared.cache, recipe, stores.views, stores.mixtures),
        pool=ModelPool(recipe, session, phases, make_tagger, stores.teachers),
        shards=range(session.rank * shards_per_worker, (session.rank + 1) * shards_per_worker),
    )
    restore_run(run, prepared.dataset.fingerprint())
    summary = prepared.summary()
    summary["warnings"] += precision_warnings(recipe.train)  # of this worker's machine: the driver may have another
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


def loop(run: Run, *, until: int | None = None) -> str:
    """Train all phases, then score and deliver the models; returns "done".

    Returns "preempted" where the session asked the run to stop, or `until` steps are done: a checkpoint is saved.
    """
    resumed_from = run.step
    for _ in advance(run, until=until):
        pass
    if run.step < run.phases[-1].end:
        return "preempted"
    models = deliver_models(run.recipe, run.pool, run.prepared, run.session)
    run.record("result", steps=run.step, resumed_from_step=resumed_from, models=models)
    _report(run)
    return "done"


def advance(run: Run, *, until: int | None = None) -> Iterator[int]:
    """Train the phases that are left; yields the number of steps done after each validation.

    Ends before the last planned step where the session asks the run to stop, or `until` steps are done.
    """
    _report(run)  # the first records: useful even if the first step fails
    last = run.phases[-1].end if until is None else min(until, run.phases[-1].end)
    with run.batches.loaded_ahead(range(run.step, last), run.shards, run.session.device):
        for index, phase in enumerate(run.phases):
            if phase.end <= run.step:
                continue
            if until is not None and run.step >= until:
                return
            sources = run.pool.enter_phase(phase, resumed=phase.start < run.step)
            run.record("phase", **_phase_fields(run, index))
            stopped = yield from _train_phase(run, phase, sources, until=until)
            if stopped:
                return


def _train_phase(
    run: Run, phase: Phase, sources: dict[str, TeacherSource], *, until: int | None
) -> Generator[int, None, bool]:
    """Train the steps of one phase that are left; validates, saves and reports when due.

    Yields the number of steps done after each validation; returns whether the run is to stop.
    """
    train = run.recipe.train
    while run.step < phase.end:
        log_metrics = run.step == 0 or (run.step + 1) % train.log_every == 0
        step_metrics = _timed_step(run, phase, sources, log_metrics=log_metrics)
        run.step += 1
        if step_metrics:
            _record_metrics(run, step_metrics)
            run.record("timings", step=run.step, values=mean_times(run.times, train.batch_size))
            run.times = []
        phase_ends = run.step == phase.end
        validate = phase_ends or run.step % train.eval_every == 0
        if validate:
            _validate(run, phase)
        stop = run.session.should_stop() or run.step == until
        if stop or phase_ends or run.step % train.checkpoint_every == 0:
            _save(run)
        elif log_metrics:
            _report(run)
        if stop:
            return True
        if validate:
            yield run.step
    return False


def _timed_step(run: Run, phase: Phase, sources: dict[str, TeacherSource], *, log_metrics: bool) -> dict[str, float]:
    """`train_step`; what it took goes to the session, and with those of other steps into a record."""
    began, waited_s, teachers_s = time.perf_counter(), run.batches.waited_s, run.teachers_s
    step_metrics = train_step(run, phase, sources, log_metrics=log_metrics)
    exchange = {name: run.pool.states[name].exchange_seconds() for name in phase.trains} if log_metrics else {}
    times = StepTimes(
        step=time.perf_counter() - began,
        data_wait=run.batches.waited_s - waited_s,
        teacher=run.teachers_s - teachers_s,
        clips=len(run.shards) * run.recipe.train.shard_size,
        exchange={name: seconds for name, seconds in exchange.items() if seconds is not None},
    )
    run.session.on_step(run.step + 1, times)
    run.times.append(times)
    return step_metrics


def train_step(
    run: Run, phase: Phase, sources: dict[str, TeacherSource], *, log_metrics: bool = False
) -> dict[str, float]:
    """One optimizer step of every student, that is every model that trains in this phase.

    The losses of the students are summed: one backward per shard gives every student the gradient of its own loss,
    because teacher outputs are constants. A student whose loss or gradient is not finite skips the step, or ends the
    run (`train.bad_numbers`). Returns metrics, means over all shards of all workers, with `log_metrics`, else {}.
    """
    students = {name: run.pool.states[name] for name in phase.trains}
    weights = edge_weights(run.recipe, phase, run.step, run.smoothed_scores)
    batch_norm = ShardMeanStats(
        [student.tagger for student in students.values()],
        shards=run.recipe.train.shards,
        session=run.session,
        can_undo=run.recipe.train.bad_numbers == "skip",
    )
    loss_sums = torch.zeros(len(students), device=run.session.device)
    metrics_of_shards: list[dict[str, float]] = []
    for index in run.shards:
        with run.pool.gradient_sync(phase.trains, enabled=index == run.shards[-1]):
            losses, shard_stats = _shard_losses(run, phase, sources, weights, index, log_metrics=log_metrics)
            (losses.sum() / len(run.shards)).backward()
        loss_sums += losses.detach()
        metrics_of_shards += shard_stats
        batch_norm.after_shard()
    if run.session.world_size > 1:
        dist.all_reduce(loss_sums)  # DDP has averaged the gradients, but each worker has its own losses
    for student in students.values():
        student.average_projections()
    grad_norms = torch.stack([student.clip_gradients() for student in students.values()])
    bad = _not_finite(phase, loss_sums, grad_norms)
    if bad:
        _handle_bad_numbers(run, bad)
    batch_norm.finish(undo=[students[name].tagger for name in bad])
    for name, student in students.items():
        student.step(skip=name in bad)
    for teacher in {edge.teacher for edge in phase.edges if not edge.store and weights[edge.key] > 0}:
        run.pool.steps_taught[teacher] += 1
    if not log_metrics:
        return {}
    return mean_over_workers(metrics_of_shards, run.session) | optimizer_metrics(run.pool, phase.trains)


def _shard_losses(
    run: Run,
    phase: Phase,
    sources: dict[str, TeacherSource],
    weights: dict[str, float],
    index: int,
    *,
    log_metrics: bool,
) -> tuple[Tensor, list[dict[str, float]]]:
    """Forward one shard through students and teachers; returns each student's loss (in order) and its metrics."""
    train, labels = run.recipe.train, run.recipe.data.labels
    shard = run.batches.shard(run.step, index, with_clean_view=phase.needs_clean_view, device=run.session.device)
    student_outputs = _forward(run, phase, shard, index)
    began = time.perf_counter()
    teacher_outputs = {source: source.outputs(shard, student_outputs) for source in dict.fromkeys(sources.values())}
    run.teachers_s += time.perf_counter() - began
    losses: list[Tensor] = []
    stats: list[dict[str, float]] = []
    for name in phase.trains:
        edges = [edge for edge in phase.edges if edge.student == name]
        terms: list[EdgeTerm | EmbeddingTerm] = []
        for edge in edges:
            carried = teacher_outputs[sources[edge.key]][edge.carries]
            if edge.carries == "logits":
                terms.append(edge_term(edge, weights[edge.key], carried))
            else:
                projected_BD = run.pool.states[name].projection(edge.key)(student_outputs[name]["embedding"])
                terms.append(embedding_term(edge, weights[edge.key], projected_BD, carried))
        loss, parts = student_loss(
            student_outputs[name]["logits"],
            shard.y_BC,
            terms,
            labels=labels,
            smoothing=train.label_smoothing,
            known_BC=shard.known_BC,
        )
        losses.append(loss)
        if log_metrics:
            stats.append(shard_metrics(name, loss, parts, student_outputs[name]["logits"], terms, labels=labels))
    return torch.stack(losses), stats


def _forward(run: Run, phase: Phase, shard: Shard, index: int) -> dict[str, Outputs]:
    """The training forward of every student on shard `index`: its outputs by name.

    Dropout is drawn per model, step and shard: the same for any number of workers, independent between models, and the
    same for a student and its control.
    """
    student_outputs = {}
    for name in phase.trains:
        student = run.pool.states[name]
        key = random_key(run.recipe, name)
        torch.manual_seed(keyed_seed(run.recipe.train.seed, "dropout", key, run.step, index))
        mel_BMF = shard.mel(student.tagger.front_end)
        with run.pool.autocast():
            student_outputs[name] = student.forward(mel_BMF)
    return student_outputs


def _not_finite(phase: Phase, loss_sums: Tensor, grad_norms: Tensor) -> list[str]:
    """The students whose loss or gradient norm (in the order of `phase.trains`) is not finite."""
    finite = (loss_sums.isfinite() & grad_norms.isfinite()).tolist()
    return [name for name, is_finite in zip(phase.trains, finite, strict=True) if not is_finite]


def _handle_bad_numbers(run: Run, bad: list[str]) -> None:
    """Record these students and the clips of the batch; BadNumbers ends the run where `train.bad_numbers` is "stop"."""
    policy, clip_ids = run.recipe.train.bad_numbers, run.batches.clip_ids(run.step)
    run.record("bad", step=run.step, models=bad, policy=policy, clip_ids=clip_ids)
    if policy == "stop":
        _report(run)
        raise BadNumbers(
            f"step {run.step}: loss or gradient of {', '.join(bad)} is not finite; bad-numbers.json in the run's "
            "folder lists the clips of the batch; check them, lower the learning rate, or set "
            "train.bad_numbers = 'skip'"
        )


def _validate(run: Run, phase: Phase) -> None:
    """Score the students on the validation slice, if there is one. All workers use rank 0's scores: edge weights may
    follow them."""
    if not run.prepared.splits.val:
        return
    values: dict[str, float] = {}
    primary: dict[str, float] = {}
    for name in phase.trains:
        student = run.pool.states[name]
        own_scores = score_clips(
            student.evaluation_tagger, run.prepared.splits.val, run.prepared, run.session, autocast=run.pool.autocast
        )
        scores = gather(run.session, own_scores)[0]
        primary[name] = scores[metrics.primary(run.recipe.data.labels)]
        student.average.on_validation(primary[name], student.tagger)
        run.validated[name] = (student.own_step, primary[name])
        values |= {f"{name}/val/{key}": value for key, value in scores.items()}
    run.smoothed_scores = smooth_scores(run.recipe, run.smoothed_scores, primary)
    _record_metrics(run, values)


def _record_metrics(run: Run, values: dict[str, float]) -> None:
    run.record("metrics", step=run.step, values=values)


def _save(run: Run) -> None:
    """Write a checkpoint on rank 0 and pass it to the session together with the records up to here."""
    folder = None
    _record_replaced(run)  # before the records are copied into the checkpoint
    if run.session.rank == 0:
        began = time.perf_counter()
        name = f"step-{run.step:08d}-attempt-{run.session.attempt}"
        folder = run.pool.save(run.session.work_dir / name, _checkpoint_state(run), history=run.history.path)
        seconds = round(time.perf_counter() - began, 4)
        run.record("checkpoint", step=run.step, name=name, seconds=seconds)
    _report(run, folder)


def _checkpoint_state(run: Run) -> dict[str, Any]:
    """The loop's part of a checkpoint; `best_for` holds the validation scores of exactly the weights that are saved."""
    current = {name: state.own_step for name, state in run.pool.states.items()}
    return {
        "step": run.step,
        "scores": run.smoothed_scores,
        "validated": run.validated,
        "best_for": {name: score for name, (at, score) in run.validated.items() if current.get(name, at) == at},
        "data": run.prepared.dataset.fingerprint(),
        "stores": run.stores.digests(),
        "recipe": asdict(run.recipe),
        "versions": {package: version(package) for package in VERSIONS},
    }


def _report(run: Run, folder: Path | None = None) -> None:
    """Pass rank 0's new records, and a checkpoint if there is one, to the session; called on every worker."""
    _record_replaced(run)
    run.session.report(run.unreported_records if run.session.rank == 0 else [], folder)
    run.unreported_records = []


def _record_replaced(run: Run) -> None:
    """Record the clips of a packed data set that any worker has newly found damaged; called on every worker."""
    if run.prepared.dataset.packed:
        for clip in run.batches.replacements.unrecorded(partial(gather, run.session)):
            run.record("replaced", **clip._asdict())


def _phase_fields(run: Run, index: int) -> dict[str, Any]:
    phase = run.phases[index]
    snapshots = run.pool.snapshots.items()
    return {
        "step": phase.start,
        "index": index,
        "of": len(run.phases),
        "steps": phase.steps,
        "total": run.phases[-1].end,
        "trains": list(phase.trains),
        "edges": [{"key": edge.key, **vars(edge)} for edge in phase.edges],
        "snapshots": {name: checkpoint.weights_digest(tagger.state_dict()) for name, tagger in snapshots},
    }
