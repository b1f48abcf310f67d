"""THE training loop. It reads phases and knows nothing else about methods.

A new method is a new schedule, edge field or teacher source, never a second loop.

One step: every model of the phase that learns runs its shards, hears its teachers, then takes one optimizer step.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from workloads.config.recipe import Recipe
from workloads.data.batches import Batches, Shard
from workloads.data.prepare import PreparedData
from workloads.distill.batch_norm import ShardMeanStats
from workloads.distill.edges import EdgeTerm, student_loss
from workloads.distill.pool import ModelPool
from workloads.distill.preflight import prepare_run
from workloads.distill.schedule import Phase, edge_weights, own_steps, plan_phases, smooth_scores
from workloads.distill.sources import TeacherSource
from workloads.evaluate import metrics
from workloads.evaluate.deliver import deliver_models
from workloads.evaluate.predict import BadNumbers, score_clips
from workloads.evaluate.step_metrics import mean_over_workers, optimizer_metrics, shard_metrics
from workloads.models.initial_weights import build_initial_tagger
from workloads.runtime import checkpoint
from workloads.runtime.event_log import EventLog, read_event_log, timestamped
from workloads.runtime.opener import HISTORY, LocalFiles, Opener
from workloads.runtime.resume import newest_intact_checkpoint
from workloads.runtime.rng import keyed_seed
from workloads.runtime.session import Session, gather

VERSIONS = ("torch", "torchaudio", "torchvision", "timm", "safetensors")  # what a checkpoint's numbers came from


@dataclass
class Run:
    """What the loop holds. `step`, the scores, the history and the team make up a checkpoint; the rest follows from the
    recipe."""

    recipe: Recipe
    session: Session
    phases: tuple[Phase, ...]
    prepared: PreparedData
    batches: Batches
    pool: ModelPool
    shards: range  # of the global batch, this worker's own
    step: int = 0
    scores: dict[str, float] = field(default_factory=dict)  # smoothed validation scores: they may steer weights
    validated: dict[str, tuple[int, float]] = field(default_factory=dict)  # model -> own step, primary score
    pending: list[dict[str, Any]] = field(default_factory=list)  # spool records since the last report
    history: EventLog = field(init=False)  # all of them, which travel with the checkpoints

    def __post_init__(self) -> None:
        self.history = EventLog(self.session.work_dir / HISTORY)

    def note(self, kind: str, **fields: Any) -> None:
        """Something to say with the next report."""
        self.pending.append(timestamped(kind, **fields))
        self.history.append(self.pending[-1])


def train(recipe: Recipe, session: Session, *, files: Opener | None = None) -> str:
    """Run a recipe to its end in this worker; returns "done", or "preempted" (saved, to be run again).

    The user's mistakes (unusable data, shards that do not divide) are ValueErrors of `set_up`: none comes later.
    """
    return loop(set_up(recipe, session, files=files or LocalFiles()))


def loop(run: Run, *, until: int | None = None) -> str:
    """Every phase, every step, then the models are scored and delivered; or "preempted" after `until` steps."""
    resumed_from = run.step
    for _ in advance(run, until=until):
        pass
    if run.step < run.phases[-1].end:
        return "preempted"
    models = deliver_models(run.recipe, run.pool, run.prepared, run.session)
    run.note("result", steps=run.step, resumed_from_step=resumed_from, models=models)
    _report(run)
    return "done"


def advance(run: Run, *, until: int | None = None) -> Iterator[int]:
    """Every phase, every step; evaluates, saves and reports on the way.

    Hands over the number of steps done after each evaluation; a run that is asked to stop ends with fewer than planned,
    as one does that is to go no further than `until`.
    """
    recipe, session = run.recipe, run.session
    _report(run)  # how it starts is worth knowing even if the first step fails
    for index, phase in enumerate(run.phases):
        if phase.end <= run.step:
            continue
        if until is not None and run.step >= until:
            return
        sources = run.pool.enter_phase(phase, resumed=phase.start < run.step)
        run.note("phase", **_phase_fields(run, index))
        while run.step < phase.end:
            wants_log = run.step == 0 or (run.step + 1) % recipe.train.log_every == 0
            stats = train_step(run, phase, sources, wants_log=wants_log)
            run.step += 1
            if stats:
                _log(run, stats)
            judged = run.step == phase.end or run.step % recipe.train.eval_every == 0
            if judged:
                _validate(run, phase)
            stopping = session.should_stop() or run.step == until
            if stopping or run.step == phase.end or run.step % recipe.train.checkpoint_every == 0:
                _save(run)
            elif wants_log:
                _report(run)
            if stopping:
                return
            if judged:
                yield run.step


def train_step(
    run: Run, phase: Phase, sources: dict[str, TeacherSource], *, wants_log: bool = False
) -> dict[str, float]:
    """One step of every model that learns in this phase; returns metrics, means over all shards, if they are wanted.

    The losses of several students are summed: one backward, then one optimizer step each. Teachers are constants.
    """
    train = run.recipe.train
    weights = edge_weights(run.recipe, phase, run.step, run.scores)
    students = [run.pool.states[name] for name in phase.trains]
    buffers = ShardMeanStats([student.tagger for student in students], shards=train.shards, session=run.session)
    totals, stats = torch.zeros(len(students), device=run.session.device), []
    for index in run.shards:
        shard = run.batches.shard(run.step, index).to(run.session.device)
        with run.pool.synchronised(phase.trains, last=index == run.shards[-1]):
            student_outputs = _forward(run, phase, shard, seed=keyed_seed(train.seed, "dropout", run.step, index))
            teacher_outputs = {
                source: source.logits(shard, student_outputs) for source in dict.fromkeys(sources.values())
            }
            losses = []
            for name in phase.trains:
                edges = [edge for edge in phase.edges if edge.student == name]
                terms = [EdgeTerm(edge, weights[edge.key], teacher_outputs[sources[edge.key]]) for edge in edges]
                loss, parts = student_loss(
                    student_outputs[name],
                    shard.y_BC,
                    terms,
                    labels=run.recipe.data.labels,
                    smoothing=train.label_smoothing,
                )
                losses.append(loss)
                if wants_log:
                    stats.append(shard_metrics(run.recipe, name, loss, parts, student_outputs[name], terms))
            (torch.stack(losses).sum() / len(run.shards)).backward()
        totals += torch.stack(losses).detach()
        buffers.after_shard()
    bad = _bad_numbers(run, phase, totals)
    buffers.finish(undo=[run.pool.states[name].tagger for name in bad])
    for name in phase.trains:
        run.pool.states[name].step(skip=name in bad)
    for name in {edge.teacher for edge in phase.edges if weights[edge.key] > 0}:
        run.pool.taught[name] += 1
    return mean_over_workers(stats, run.session) | optimizer_metrics(run.pool, phase.trains) if wants_log else {}


def _bad_numbers(run: Run, phase: Phase, totals: Tensor) -> list[str]:
    """The students whose loss (`totals`, in their order) or gradient is not finite; the same on every worker.

    They skip this step, said with the batch's clips, or BadNumbers ends the run: `train.bad_numbers` decides.
    """
    if run.session.world_size > 1:
        dist.all_reduce(totals)  # gradients are everybody's already; a loss is one worker's
    norms = torch.stack([run.pool.states[name].clip_gradients() for name in phase.trains])
    sound = (totals.isfinite() & norms.isfinite()).tolist()
    bad = [name for name, fine in zip(phase.trains, sound, strict=True) if not fine]
    if bad:
        policy, clip_ids = run.recipe.train.bad_numbers, run.batches.clip_ids(run.step)
        run.note("bad", step=run.step, models=bad, policy=policy, clip_ids=clip_ids)
        if policy == "stop":
            _report(run)
            raise BadNumbers(
                f"step {run.step}: loss or gradient of {', '.join(bad)} is not finite; bad-numbers.json in the run's "
                "folder names the batch's clips; look at them, lower the learning rate, or set "
                "train.bad_numbers = 'skip'"
            )
    return bad


def set_up(recipe: Recipe, session: Session, *, files: Opener) -> Run:
    """Everything before the first step: data decoded, models planned, the session's newest checkpoint taken up."""
    torch.set_num_threads(recipe.train.threads)
    each, left = divmod(recipe.train.shards, session.world_size)
    if left:
        raise ValueError(
            f"train.shards = {recipe.train.shards}: must be a multiple of the {session.world_size} workers; "
            "set train.shards or --workers"
        )
    phases = plan_phases(recipe)
    prepared, afresh = prepare_run(recipe, own_steps(phases), session, files)
    make_tagger = partial(build_initial_tagger, recipe, tags=prepared.dataset.tags, files=files)
    run = Run(
        recipe=recipe,
        session=session,
        phases=phases,
        prepared=prepared,
        batches=Batches(prepared.splits.train, prepared.dataset, prepared.cache, recipe),
        pool=ModelPool(recipe, session, phases, make_tagger),
        shards=range(session.rank * each, (session.rank + 1) * each),
    )
    restore_run(run, prepared.dataset.fingerprint())
    run.note("data", **prepared.summary(), started_afresh=afresh)
    return run


def restore_run(run: Run, fingerprint: str) -> None:
    """Go on from the newest checkpoint that is whole, if there is any, and say from where."""
    folder, state, damaged = newest_intact_checkpoint(run.session)
    if folder is not None:
        if state["data"] != fingerprint:
            raise ValueError(
                "data.root: its clips are not those with which this run began; bring them back, or start a new run"
            )
        run.pool.load(folder, state)
        run.step, run.scores = state["step"], state["scores"]
        run.validated = {name: (own_step, score) for name, (own_step, score) in state["validated"].items()}
        for record in read_event_log(folder / HISTORY):
            run.history.append(record)
    run.note("start", step=run.step, attempt=run.session.attempt, damaged=damaged)


def _forward(run: Run, phase: Phase, shard: Shard, *, seed: int) -> dict[str, Tensor]:
    """The training forward of every model that learns: logits_BC by name. Dropout depends on step and shard only."""
    student_outputs = {}
    for name in phase.trains:
        state = run.pool.states[name]
        torch.manual_seed(seed)
        mel_BMF = shard.mel(state.tagger.front_end)
        with run.pool.autocast():
            student_outputs[name] = state.forward(mel_BMF).float()
    return student_outputs


def _validate(run: Run, phase: Phase) -> None:
    """Score those that learn on the validation slice; rank 0's numbers count, since weights may follow them."""
    values: dict[str, float] = {}
    primary: dict[str, float] = {}
    for name in phase.trains:
        state = run.pool.states[name]
        own = score_clips(state.candidate, run.prepared.splits.val, run.prepared, run.session)
        scores = gather(run.session, own)[0]
        primary[name] = scores[metrics.primary(run.recipe.data.labels)]
        state.average.validated(primary[name], state.tagger)
        run.validated[name] = (state.own_step, primary[name])
        values |= {f"{name}/val/{key}": value for key, value in scores.items()}
    run.scores = smooth_scores(run.recipe, run.scores, primary)
    _log(run, values)


def _log(run: Run, values: dict[str, float]) -> None:
    run.note("metrics", step=run.step, values=values)


def _save(run: Run) -> None:
    """Write a checkpoint on rank 0 and hand it to the session with the records up to here."""
    folder = None
    if run.session.rank == 0:
        began = time.perf_counter()
        name = f"step-{run.step:08d}-attempt-{run.session.attempt}"
        folder = run.pool.save(run.session.work_dir / name, _state(run), history=run.history.path)
        seconds = round(time.perf_counter() - began, 4)
        run.note("checkpoint", step=run.step, name=name, seconds=seconds)
    _report(run, folder)


def _state(run: Run) -> dict[str, Any]:
    """What a checkpoint says of itself and the loop; `best_for` are validation scores of exactly these weights."""
    taken = {name: state.own_step for name, state in run.pool.states.items()}
    return {
        "step": run.step,
        "scores": run.scores,
        "validated": run.validated,
        "best_for": {name: score for name, (at, score) in run.validated.items() if taken.get(name, at) == at},
        "data": run.prepared.dataset.fingerprint(),
        "recipe": asdict(run.recipe),
        "versions": {package: version(package) for package in VERSIONS},
    }


def _report(run: Run, folder: Path | None = None) -> None:
    run.session.report(run.pending if run.session.rank == 0 else [], folder)
    run.pending = []


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
