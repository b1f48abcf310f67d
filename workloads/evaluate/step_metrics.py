"""What a step says of itself: means over all shards of all workers. Decides nothing.

Axes: B clips, C tags.
"""

from torch import Tensor

from workloads.config.recipe import Recipe
from workloads.distill.edges import Lesson
from workloads.distill.pool import Team
from workloads.evaluate import metrics
from workloads.runtime.session import Session, gather


def stats_of(
    recipe: Recipe, name: str, loss: Tensor, parts: dict[str, Tensor], logits_BC: Tensor, lessons: list[Lesson]
) -> dict[str, float]:
    """One model's losses on one shard, and how far it agrees with each of its teachers."""
    stats = {f"{name}/loss": loss.item()}
    for key, value in parts.items():
        stats[key if "/" in key else f"{name}/{key}"] = value.item()
    labels = recipe.data.labels
    for lesson in lessons:
        key, teacher_BC = lesson.edge.key, lesson.teacher_BC
        stats[f"{key}/agreement"] = metrics.agreement(logits_BC.detach(), teacher_BC, labels)
        stats[f"{key}/teacher_entropy"] = metrics.teacher_entropy(teacher_BC, lesson.edge.temperature, labels)
    return stats


def averaged(stats: list[dict[str, float]], session: Session) -> dict[str, float]:
    """The mean of every key over all shards of all workers."""
    everyone = [entry for entries in gather(session, stats) for entry in entries]
    means = {}
    for key in dict.fromkeys(key for entry in everyone for key in entry):
        values = [entry[key] for entry in everyone if key in entry]
        means[key] = sum(values) / len(values)
    return means


def own_numbers(team: Team, names: tuple[str, ...]) -> dict[str, float]:
    """Each learner's own step, rate and gradient norm, which are the same on every worker."""
    numbers: dict[str, float] = {}
    for name in names:
        member = team.members[name]
        numbers |= {f"{name}/own_step": member.own_step, f"{name}/lr": member.last_lr}
        numbers[f"{name}/grad_norm"] = member.grad_norm.item()
    return numbers
