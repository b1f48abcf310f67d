"""How many trials of a search run at once on a cluster, and what Tune reserves for each. Imports no Ray."""

from collections.abc import Sequence

from orchestrator.training.worker_resources import Node, WorkerNeeds

WAITING_CPUS = 0.01  # of a trial that waits for its workers


def reserved_by_tune(needs: WorkerNeeds, workers: int) -> dict[str, float]:
    """Ray Train reserves several workers itself; Tune sees only the trial that waits for them."""
    return needs.resources if workers == 1 else {"CPU": WAITING_CPUS}


def count_slots(nodes: Sequence[Node], needs: WorkerNeeds, wanted: int, *, workers: int = 1) -> int:
    """How many trials fit on the nodes at once, all their workers; ValueError where none does, or fewer than wanted."""
    most = needs.count(nodes) // workers
    if workers > 1:
        cpus = sum(node.resources.get("CPU", 0.0) for node in nodes)
        most = min(most, int(cpus // (workers * needs.resources["CPU"] + WAITING_CPUS)))
    if most < max(1, wanted):
        each = str(needs) if workers == 1 else f"{workers} workers of {needs}"
        asked = f"--slots {wanted}: ask for fewer" if wanted else "search: ask for fewer --workers"
        raise ValueError(
            f"{asked}, or set train.threads or train.loaders: the cluster holds {most} trials of {each} each at once"
        )
    return wanted or most
