"""One training step: per shard one forward of every student and teacher and one backward, then one optimizer step per
student.

Every worker takes the same steps in the same order, with the models that it holds, on its own shards of each batch.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from workloads.config.controls import random_key
from workloads.config.edge import Edge
from workloads.data.shard import Shard
from workloads.distill.batch_norm import ShardMeanStats
from workloads.distill.edges import Term, edge_term, embedding_term, frame_term, student_loss, temporal_term
from workloads.distill.exchange import ask_teachers
from workloads.distill.frames import FrameLabels, counted_steps, frame_labels, frame_target
from workloads.distill.schedule import Phase, edge_weights
from workloads.distill.sources import Outputs, TeacherSource
from workloads.distill.temporal import heard_steps, on_grid
from workloads.evaluate.predict import BadNumbers
from workloads.evaluate.step_metrics import optimizer_metrics, shard_metrics, step_metrics
from workloads.models.profiles import TimeGrid, time_grid
from workloads.run import Run, report
from workloads.runtime.rng import keyed_seed


def train_step(
    run: Run, phase: Phase, sources: dict[str, TeacherSource], *, log_metrics: bool = False
) -> dict[str, float]:
    """One optimizer step of every student on this worker, that is every model that trains in this phase.

    The losses of the students are summed: one backward per shard gives every student the gradient of its own loss,
    because teacher outputs are constants. A student whose loss or gradient is not finite skips the step, or ends the
    run (`train.bad_numbers`). Returns metrics, means over all shards of all workers, with `log_metrics`, else {}.
    """
    names = [name for name in phase.trains if run.placement.holds(name)]
    students = {name: run.pool.states[name] for name in names}
    weights = edge_weights(run.recipe, phase, run.step, run.smoothed_scores)
    batch_norm = ShardMeanStats(
        [student.tagger for student in students.values()],
        shards=run.recipe.train.shards,
        workers=run.placement.workers,
        can_undo=run.recipe.train.bad_numbers == "skip",
    )
    loss_sums = torch.zeros(len(students), device=run.session.device)
    metrics_of_shards: list[dict[str, float]] = []
    for index in run.shards if run.placement.holds_any(phase.needs) else ():
        with run.pool.gradient_sync(names, enabled=index == run.shards[-1]):
            losses, shard_stats = _shard_losses(run, phase, names, sources, weights, index, log_metrics=log_metrics)
            if names:
                (losses.sum() / len(run.shards)).backward()
        loss_sums += losses.detach()
        metrics_of_shards += shard_stats
        batch_norm.after_shard()
    run.pool.exchange.finish()
    for student in students.values():
        student.average_projections()
    bad = _not_finite(run, phase, loss_sums)
    if bad:
        _handle_bad_numbers(run, bad)
    batch_norm.finish(undo=[students[name].tagger for name in bad if name in students])
    for name, student in students.items():
        student.step(skip=name in bad)
    for teacher in {edge.teacher for edge in phase.edges if not edge.store and weights[edge.key] > 0}:
        run.pool.steps_taught[teacher] += 1
    if not log_metrics:
        return {}
    return step_metrics(metrics_of_shards, optimizer_metrics(run.pool, names), run.placement.everyone)


def _shard_losses(
    run: Run,
    phase: Phase,
    names: Sequence[str],
    sources: dict[str, TeacherSource],
    weights: dict[str, float],
    index: int,
    *,
    log_metrics: bool,
) -> tuple[Tensor, list[dict[str, float]]]:
    """Forward one shard through the students `names` and the teachers here; returns each student's loss (in order) and
    its metrics."""
    train, labels = run.recipe.train, run.recipe.data.labels
    shard = run.batches.shard(run.step, index, with_clean_view=phase.needs_clean_view, device=run.session.device)
    student_outputs = _forward(run, names, shard, index)
    began = time.perf_counter()
    teacher_outputs = ask_teachers(sources, phase, run.pool.exchange, shard, student_outputs)
    run.teachers_s += time.perf_counter() - began
    losses: list[Tensor] = []
    stats: list[dict[str, float]] = []
    for name in names:
        edges = [edge for edge in phase.edges if edge.student == name]
        terms = [
            _term(run, edge, weights[edge.key], teacher_outputs[sources[edge.key]], student_outputs[name], shard)
            for edge in edges
        ]
        loss, parts = student_loss(
            student_outputs[name]["logits"],
            shard.y_BC,
            terms,
            labels=labels,
            smoothing=train.label_smoothing,
            known_BC=shard.known_BC,
            frame_labels=_labels_in_time(run, name, student_outputs[name], shard),
        )
        losses.append(loss)
        if log_metrics:
            stats.append(shard_metrics(name, loss, parts, student_outputs[name]["logits"], terms, labels=labels))
    return torch.stack(losses) if losses else torch.zeros(0, device=run.session.device), stats


def _term(run: Run, edge: Edge, weight: float, teacher: Outputs, student: Outputs, shard: Shard) -> Term:
    """One edge in this step: what it carries from the teacher, and what the student has to say of it."""
    carried = teacher[edge.carries]
    if edge.carries == "logits":
        return edge_term(edge, weight, carried)
    if edge.carries == "frames":
        return _frame_term(run, edge, weight, carried, student["frames"], shard)
    head = run.pool.states[edge.student].projection(edge.key)
    if edge.carries == "embedding":
        return embedding_term(edge, weight, head(student["embedding"]), carried)
    scores_BQ = head(student["sequence"])
    tagger = run.pool.states[edge.student].tagger
    grid = time_grid(tagger, scores_BQ.shape[1])
    a_BQ = on_grid(carried, run.pool.teacher_grid(edge, carried.shape[1]), grid, edge.align)
    return temporal_term(edge, weight, scores_BQ, a_BQ, _steps_of_profile(edge, shard, grid, rate=tagger.clip_rate))


def _steps_of_profile(edge: Edge, shard: Shard, grid: TimeGrid, *, rate: int) -> Tensor:
    """Which steps of the student a profile is about: those that have sound.

    A teacher that heard the clip without augmentation may listen to what the student's time mask covers: these steps
    do not count, unless they are all.
    """
    heard_BQ = heard_steps(shard, grid, rate=rate)
    if edge.view != "clean":
        return heard_BQ
    counted_BQ = counted_steps(shard, grid, rate=rate)
    return torch.where(counted_BQ.any(1, keepdim=True), counted_BQ, heard_BQ)


def _frame_term(run: Run, edge: Edge, weight: float, teacher_BPC: Tensor, frames_BQC: Tensor, shard: Shard) -> Term:
    """An edge that carries frames in this step: the teacher's on the steps of the student, and which of these count."""
    tagger = run.pool.states[edge.student].tagger
    grid = time_grid(tagger, frames_BQC.shape[1])
    of = run.pool.teacher_grid(edge, teacher_BPC.shape[1])
    target_BQC = frame_target(edge, teacher_BPC, of, grid, shard, rate=tagger.clip_rate)
    return frame_term(edge, weight, frames_BQC, target_BQC, counted_steps(shard, grid, rate=tagger.clip_rate))


def _labels_in_time(run: Run, name: str, student: Outputs, shard: Shard) -> FrameLabels | None:
    """The labels of a student's steps; None for a student that does not learn from them."""
    if not run.recipe.models[name].frame_labels:
        return None
    tagger = run.pool.states[name].tagger
    grid = time_grid(tagger, student["frames"].shape[1])
    return frame_labels(student["frames"], shard, grid, rate=tagger.clip_rate)


def _forward(run: Run, names: Sequence[str], shard: Shard, index: int) -> dict[str, Outputs]:
    """The training forward of these students on shard `index`: its outputs by name.

    Dropout is drawn per model, step and shard: the same for any number of workers, independent between models, and the
    same for a student and its control.
    """
    student_outputs = {}
    for name in names:
        student = run.pool.states[name]
        key = random_key(run.recipe, name)
        torch.manual_seed(keyed_seed(run.recipe.train.seed, "dropout", key, run.step, index))
        mel_BMF = shard.mel(student.tagger.front_end)
        with run.pool.autocast():
            student_outputs[name] = student.forward(mel_BMF)
    return student_outputs


def _not_finite(run: Run, phase: Phase, loss_sums: Tensor) -> list[str]:
    """The students, wherever they are, whose loss on any worker or gradient norm is not finite; clips gradients.

    DDP has averaged the gradients, but each worker has its own losses. `loss_sums` are those of the students here.
    """
    here = filter(run.placement.holds, phase.trains)
    bad_here = {
        name: ~(loss_sum.isfinite() & run.pool.states[name].clip_gradients().isfinite())
        for name, loss_sum in zip(here, loss_sums, strict=True)
    }
    elsewhere = torch.zeros((), dtype=torch.bool, device=run.session.device)
    bad = torch.stack([bad_here.get(name, elsewhere) for name in phase.trains]).float()
    run.placement.everyone.add_up(bad)
    return [name for name, number in zip(phase.trains, bad.tolist(), strict=True) if number]


def _handle_bad_numbers(run: Run, bad: list[str]) -> None:
    """Record these students and the clips of the batch; BadNumbers ends the run where `train.bad_numbers` is "stop"."""
    policy, clip_ids = run.recipe.train.bad_numbers, run.batches.clip_ids(run.step)
    run.record("bad", step=run.step, models=bad, policy=policy, clip_ids=clip_ids)
    if policy == "stop":
        report(run)
        raise BadNumbers(
            f"step {run.step}: loss or gradient of {', '.join(bad)} is not finite; bad-numbers.json in the run's "
            "folder lists the clips of the batch; check them, lower the learning rate, or set "
            "train.bad_numbers = 'skip'"
        )
