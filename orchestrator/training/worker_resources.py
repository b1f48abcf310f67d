"""The CPUs and GPUs that a worker of a run takes, and how many workers a cluster holds. Imports no Ray."""

from collections.abc import Sequence

from workloads.config.recipe import Train


def worker_resources(train: Train) -> dict[str, float]:
    """What Ray reserves for one worker: a CPU for each thread of torch and for each loader process."""
    gpu = {"GPU": 1.0} if train.device == "cuda" else {}
    return {"CPU": float(train.threads + train.loaders)} | gpu


def count_workers(nodes: Sequence[dict[str, float]], worker: dict[str, float]) -> int:
    """How many workers the nodes hold at once; a worker is on one node."""
    return sum(min(int(node.get(what, 0.0) // amount) for what, amount in worker.items()) for node in nodes)


def resources_text(resources: dict[str, float]) -> str:
    """For messages: `2 CPU, 1 GPU`."""
    return ", ".join(f"{amount:g} {what}" for what, amount in resources.items())
