"""One training step: per shard one forward of every student and teacher and one backward, then one optimizer step per
student.

Every worker takes the same steps in the same order, on its own shards of each batch.
"""

import time

import torch
import torch.distributed as dist
from torch import Tensor

from workloads.config.controls import random_key
from workloads.config.edge import Edge
from workloads.data.shard import Shard
from workloads.distill.batch_norm import ShardMeanStats
from workloads.distill.edges import Term, edge_term, embedding_term, student_loss, temporal_term
from workloads.distill.schedule import Phase, edge_weights
from workloads.distill.sources import Outputs, TeacherSource
from workloads.distill.temporal import heard_steps, on_grid
from workloads.evaluate.predict import BadNumbers
from workloads.evaluate.step_metrics import mean_over_workers, optimizer_metrics, shard_metrics
from workloads.models.profiles import time_grid
from workloads.run import Run, report
from workloads.runtime.rng import keyed_seed


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
        )
        losses.append(loss)
        if log_metrics:
            stats.append(shard_metrics(name, loss, parts, student_outputs[name]["logits"], terms, labels=labels))
    return torch.stack(losses), stats


def _term(run: Run, edge: Edge, weight: float, teacher: Outputs, student: Outputs, shard: Shard) -> Term:
    """One edge in this step: what it carries from the teacher, and what the student has to say of it."""
    carried = teacher[edge.carries]
    if edge.carries == "logits":
        return edge_term(edge, weight, carried)
    head = run.pool.states[edge.student].projection(edge.key)
    if edge.carries == "embedding":
        return embedding_term(edge, weight, head(student["embedding"]), carried)
    scores_BQ = head(student["sequence"])
    taught_by, tagger = (run.pool.states[name].tagger for name in (edge.teacher, edge.student))
    grid = time_grid(tagger, scores_BQ.shape[1])
    a_BQ = on_grid(carried, time_grid(taught_by, carried.shape[1]), grid, edge.align)
    return temporal_term(edge, weight, scores_BQ, a_BQ, heard_steps(shard, grid, rate=tagger.clip_rate))


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
        report(run)
        raise BadNumbers(
            f"step {run.step}: loss or gradient of {', '.join(bad)} is not finite; bad-numbers.json in the run's "
            "folder lists the clips of the batch; check them, lower the learning rate, or set "
            "train.bad_numbers = 'skip'"
        )
