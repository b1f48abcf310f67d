"""How many trials of a search run at once on a cluster, and what Tune reserves for each. Imports no Ray."""

from collections.abc import Sequence

from orchestrator.training.worker_resources import Node, WorkerNeeds, count_groups

WAITING_CPUS = 0.01  # of a trial that waits for its workers


def reserved_by_tune(needs: WorkerNeeds, workers: int) -> dict[str, float]:
    """Ray Train reserves several workers itself; Tune sees only the trial that waits for them."""
    return needs.resources if workers == 1 else {"CPU": WAITING_CPUS}


def count_slots(nodes: Sequence[Node], needs: WorkerNeeds, wanted: int, *, workers: int = 1) -> int:
    """How many trials fit on the nodes at once, all their workers; ValueError where none does, or fewer than wanted.

    A trial's workers are placed as the recipe's `resources.placement` says; those of different trials may share a node.
    """
    fits = [needs.fit(node) for node in nodes]
    most = needs.count_groups(nodes, workers)
    if workers > 1:
        while most and not _trials_fit(nodes, fits, needs, workers, most):
            most -= 1
    if most < max(1, wanted):
        each = str(needs) if workers == 1 else f"{workers} workers of {needs}"
        placed = "" if needs.placement in ("PACK", "SPREAD") else f", placed by {needs.placement},"
        asked = f"--slots {wanted}: ask for fewer" if wanted else "search: ask for fewer --workers"
        raise ValueError(
            f"{asked}, or set train.threads or train.loaders: the cluster holds {most} trials of {each} each{placed} at"
            " once"
        )
    return wanted or most


def _trials_fit(nodes: Sequence[Node], fits: Sequence[int], needs: WorkerNeeds, workers: int, trials: int) -> bool:
    """Whether so many trials fit with the process that waits for each, on what workers leave or in a worker's place."""
    cpus, left = needs.resources["CPU"], list(fits)
    while (waiting := sum(_places_left(node, cpus * fit) for node, fit in zip(nodes, left, strict=True))) < trials:
        # the place of a worker whose loss costs least: one that is too many for the trials of its node
        fullest = max(range(len(left)), key=lambda number: (left[number] % workers, left[number]))
        if not left[fullest]:
            return False
        left[fullest] -= 1
    return waiting >= trials and count_groups(left, workers, needs.placement) >= trials


def _places_left(node: Node, taken: float) -> int:
    return int((node.resources.get("CPU", 0.0) - taken) / WAITING_CPUS + 1e-6)
