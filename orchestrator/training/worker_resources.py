"""The CPUs and GPUs that a worker of a run takes, and how many workers a cluster holds. Imports no Ray."""

from collections.abc import Sequence

from workloads.config.recipe import Train


def worker_resources(train: Train) -> dict[str, float]:
    """What Ray reserves for one worker: a CPU for each thread of torch and for each loader process."""
    return resources_of(train.threads + train.loaders, train.device)


def resources_of(cpus: int, device: str) -> dict[str, float]:
    """So many CPUs, and a GPU where the device is one."""
    return {"CPU": float(cpus)} | ({"GPU": 1.0} if device == "cuda" else {})


def require_room(
    nodes: Sequence[dict[str, float]], worker: dict[str, float], workers: int, address: str, *, fix: str
) -> None:
    """ValueError where the nodes of the Ray at `address` (empty: a local one) do not hold all workers at once."""
    most = count_workers(nodes, worker)
    if most < workers:
        where = f"the cluster at {address}" if address else "this machine"
        raise ValueError(
            f"--workers {workers}: {where} holds {most} of {resources_text(worker)} each at once; ask for fewer, {fix}"
        )


def count_workers(nodes: Sequence[dict[str, float]], worker: dict[str, float]) -> int:
    """How many workers the nodes hold at once; a worker is on one node."""
    return sum(min(int(node.get(what, 0.0) // amount) for what, amount in worker.items()) for node in nodes)


def resources_text(resources: dict[str, float]) -> str:
    """For messages: `2 CPU, 1 GPU`."""
    return ", ".join(f"{amount:g} {what}" for what, amount in resources.items())
