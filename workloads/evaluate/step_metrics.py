"""The metrics of a training step: means over all shards of all workers. Does not influence training.

Axes: B clips of a shard, C tags.
"""

from collections.abc import Sequence

from torch import Tensor

from workloads.distill.edges import EdgeTerm, Term
from workloads.distill.pool import ModelPool
from workloads.evaluate import metrics
from workloads.runtime.placement import WorkerGroup
from workloads.runtime.session import StepTimes


def shard_metrics(
    name: str,
    loss: Tensor,
    parts: dict[str, Tensor],
    logits_BC: Tensor,
    terms: Sequence[Term],
    *,
    labels: str,
) -> dict[str, float]:
    """One student's losses on one shard, its agreement with each of its teachers, and each teacher's entropy."""
    values = {f"{name}/loss": loss.item()}
    for key, value in parts.items():
        values[key if "/" in key else f"{name}/{key}"] = value.item()
    for term in terms:
        if not isinstance(term, EdgeTerm):
            continue
        key, teacher_BC = term.edge.key, term.teacher_BC
        values[f"{key}/agreement"] = metrics.agreement(logits_BC.detach(), teacher_BC, labels)
        values[f"{key}/teacher_entropy"] = metrics.teacher_entropy(teacher_BC, term.edge.temperature, labels)
    return values


def step_metrics(
    metrics_of_shards: list[dict[str, float]], of_optimizers: dict[str, float], everyone: WorkerGroup
) -> dict[str, float]:
    """The mean of each metric over all shards of all workers, and `of_optimizers` of all models; a collective call."""
    workers = everyone.gather((metrics_of_shards, of_optimizers))
    all_shards = [values for shards, _ in workers for values in shards]
    means = {}
    for key in dict.fromkeys(key for values in all_shards for key in values):
        present = [values[key] for values in all_shards if key in values]
        means[key] = sum(present) / len(present)
    for _, values in workers:
        means |= values
    return means


def optimizer_metrics(pool: ModelPool, names: Sequence[str]) -> dict[str, float]:
    """Each model's own step, learning rate and gradient norm before clipping; the same on every worker that has it."""
    values: dict[str, float] = {}
    for name in names:
        state = pool.states[name]
        values |= {f"{name}/own_step": state.own_step, f"{name}/lr": state.last_lr}
        values[f"{name}/grad_norm"] = state.grad_norm.item()
    return values


def mean_times(times: Sequence[StepTimes], batch_size: int) -> dict[str, float]:
    """The means of one worker's step times, in seconds, and the clips that all workers trained on in a second."""
    seconds = {
        name: sum(getattr(each, name) for each in times) / len(times) for name in ("step", "data_wait", "teacher")
    }
    values = {f"timing/{name}_seconds": mean for name, mean in seconds.items()}
    for each in times:
        values |= {f"timing/exchange_seconds/{model}": value for model, value in each.exchange.items()}
    return values | {"timing/clips_per_second": batch_size / seconds["step"]}
