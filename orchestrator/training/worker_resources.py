"""What a worker takes on a cluster, and how many workers its nodes hold. Imports no Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.training.worker_count import WorkerCount
from workloads.config.recipe import Recipe
from workloads.config.resources import Resources, selects

GB = 1e9
ACCELERATOR = "accelerator_type:"  # what Ray calls a kind of GPU among a node's resources, of which each has 1
SHARE = 0.001  # of it that Ray takes for a worker


@dataclass(frozen=True)
class Node:
    """A node of a cluster: its resources by Ray's names, in all, and its labels."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerNeeds:
    """What Ray reserves for each of several workers, and on which nodes."""

    resources: dict[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)  # label -> selector
    placement: str = "PACK"

    def fit(self, node: Node) -> int:
        """How many of them a node holds."""
        if not all(selects(selector, node.labels.get(label)) for label, selector in self.labels.items()):
            return 0
        return min(int(node.resources.get(what, 0.0) / amount + 1e-9) for what, amount in self.resources.items())

    def count(self, nodes: Sequence[Node]) -> int:
        """How many of them the nodes hold at once, as one group; each is on one node."""
        fits = [self.fit(node) for node in nodes]
        if self.placement == "STRICT_PACK":
            return max(fits, default=0)
        return sum(min(fit, 1) for fit in fits) if self.placement == "STRICT_SPREAD" else sum(fits)

    def count_groups(self, nodes: Sequence[Node], workers: int) -> int:
        """How many groups of so many of them the nodes hold at once; groups may share a node."""
        return count_groups([self.fit(node) for node in nodes], workers, self.placement)

    def __str__(self) -> str:
        """For messages: `2 CPU, 1 GPU, market-type !spot`."""
        amounts = [
            f"{amount / GB:g} GB memory" if what == "memory" else f"{amount:g} {what}"
            for what, amount in self.resources.items()
            if not what.startswith(ACCELERATOR)
        ]
        kinds = [what.removeprefix(ACCELERATOR) for what in self.resources if what.startswith(ACCELERATOR)]
        return ", ".join([*amounts, *kinds, *(f"{label} {selector}" for label, selector in self.labels.items())])


def count_groups(fits: Sequence[int], workers: int, placement: str) -> int:
    """How many groups of so many workers each are placed at once on nodes that hold `fits` workers; groups may share a
    node.

    With STRICT_SPREAD g groups of w workers need the sum of min(fit, g) over the nodes to be g w at least, which is
    enough, too (Gale and Ryser).
    """
    if placement == "STRICT_PACK":
        return sum(fit // workers for fit in fits)
    groups = sum(fits) // workers
    if placement == "STRICT_SPREAD":
        while sum(min(fit, groups) for fit in fits) < groups * workers:
            groups -= 1
    return groups


def worker_needs(recipe: Recipe) -> WorkerNeeds:
    """What Ray reserves for one worker of a recipe: by default a CPU for each thread of torch and loader process."""
    return _needs(recipe.resources, cpus=recipe.train.threads + recipe.train.loaders, device=recipe.train.device)


def teacher_needs(recipe: Recipe) -> WorkerNeeds:
    """What Ray reserves for one actor that serves teachers: by default a CPU for each thread of torch."""
    return _needs(recipe.service.resources, cpus=recipe.train.threads, device=recipe.train.device)


def beside_workers(recipe: Recipe) -> tuple[WorkerNeeds, int] | None:
    """What else a run takes on a cluster, and how often: actors that serve teachers, where it has them."""
    return (teacher_needs(recipe), recipe.service.actors) if recipe.placement == "service" else None


def _needs(wanted: Resources, *, cpus: int, device: str) -> WorkerNeeds:
    """What a recipe's table asks for; its zeros mean so many CPUs, and a GPU where the device is one."""
    gpus = wanted.gpus or (1.0 if device == "cuda" else 0.0)
    resources = {"CPU": wanted.cpus or float(cpus)}
    resources |= {"GPU": gpus} if gpus else {}
    resources |= {"memory": wanted.memory_gb * GB} if wanted.memory_gb else {}
    resources |= {f"{ACCELERATOR}{wanted.accelerator}": SHARE} if wanted.accelerator else {}
    return WorkerNeeds(resources, wanted.labels, wanted.placement)


def room_beside(nodes: Sequence[Node], needs: WorkerNeeds, count: int) -> list[Node]:
    """The nodes with what is left of them beside so many others, placed on the first that hold them; [] if not all do.

    Ray may place them otherwise, so that workers find less room; then they are waited for as for any busy cluster.
    """
    left = [dict(node.resources) for node in nodes]
    for resources, node in zip(left, nodes, strict=True):
        here = min(count, needs.fit(node)) if count else 0
        for what, amount in needs.resources.items():
            resources[what] = resources.get(what, 0.0) - here * amount
        count -= here
    return [] if count else [Node(resources, node.labels) for resources, node in zip(left, nodes, strict=True)]


def needs_of(cpus: int, device: str) -> WorkerNeeds:
    """So many CPUs, and a GPU where the device is one."""
    return WorkerNeeds({"CPU": float(cpus)} | ({"GPU": 1.0} if device == "cuda" else {}))


def require_room(
    nodes: Sequence[Node],
    needs: WorkerNeeds,
    workers: int | WorkerCount,
    address: str,
    *,
    fix: str,
    beside: tuple[WorkerNeeds, int] | None = None,
) -> None:
    """ValueError where the nodes of the Ray at `address` (empty: a local one) do not hold all workers at once, or of a
    range not the least number.

    `beside` is what else must fit, and how often: actors that serve teachers.
    """
    most = needs.count(room_beside(nodes, *beside) if beside else nodes)
    if most < (workers.least if isinstance(workers, WorkerCount) else workers):
        where = f"the cluster at {address}" if address else "this machine"
        wait = ", or, where the cluster scales up, give --wait SECONDS" if address else ""
        others = f" beside service.actors = {beside[1]} of {beside[0]} each" if beside else ""
        raise ValueError(
            f"--workers {workers}: {where} holds {most} of {needs} each at once{others}; ask for fewer, {fix}{wait}"
        )
