"""What a step says of itself: means over all shards of all workers. Decides nothing.

Axes: B clips, C tags.
"""

from torch import Tensor

from workloads.config.recipe import Recipe
from workloads.distill.edges import EdgeTerm
from workloads.distill.pool import ModelPool
from workloads.evaluate import metrics
from workloads.runtime.session import Session, gather


def shard_metrics(
    recipe: Recipe, name: str, loss: Tensor, parts: dict[str, Tensor], logits_BC: Tensor, terms: list[EdgeTerm]
) -> dict[str, float]:
    """One model's losses on one shard, and how far it agrees with each of its teachers."""
    stats = {f"{name}/loss": loss.item()}
    for key, value in parts.items():
        stats[key if "/" in key else f"{name}/{key}"] = value.item()
    labels = recipe.data.labels
    for term in terms:
        key, teacher_BC = term.edge.key, term.teacher_BC
        stats[f"{key}/agreement"] = metrics.agreement(logits_BC.detach(), teacher_BC, labels)
        stats[f"{key}/teacher_entropy"] = metrics.teacher_entropy(teacher_BC, term.edge.temperature, labels)
    return stats


def mean_over_workers(stats: list[dict[str, float]], session: Session) -> dict[str, float]:
    """The mean of every key over all shards of all workers."""
    everyone = [entry for entries in gather(session, stats) for entry in entries]
    means = {}
    for key in dict.fromkeys(key for entry in everyone for key in entry):
        values = [entry[key] for entry in everyone if key in entry]
        means[key] = sum(values) / len(values)
    return means


def optimizer_metrics(pool: ModelPool, names: tuple[str, ...]) -> dict[str, float]:
    """Each learner's own step, rate and gradient norm, which are the same on every worker."""
    numbers: dict[str, float] = {}
    for name in names:
        state = pool.states[name]
        numbers |= {f"{name}/own_step": state.own_step, f"{name}/lr": state.last_lr}
        numbers[f"{name}/grad_norm"] = state.grad_norm.item()
    return numbers
