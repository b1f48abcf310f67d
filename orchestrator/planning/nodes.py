"""The nodes of a cluster's spec as Ray has them, and the group of them that holds a recipe's workers."""

from cluster.spec import Spec
from cluster.spec_nodes import Workers
from orchestrator.training.worker_resources import ACCELERATOR, GB, Node, worker_needs
from workloads.config.recipe import Recipe


def ray_node(group: Workers) -> Node:
    """A node of the group with its resources and labels by Ray's names."""
    amounts = {"CPU": group.cpus, "GPU": float(group.gpus), "memory": group.memory_gb * GB}
    amounts |= {f"{ACCELERATOR}{group.accelerator}": 1.0} if group.accelerator else {}
    return Node(amounts, group.ray_labels)


def group_for(spec: Spec, recipe: Recipe, name: str) -> tuple[str, int]:
    """The group of this name, or the only one whose nodes suit the recipe; and how many workers a node of it holds.

    Nodes with GPUs suit `train.device = "cuda"`, those without suit "cpu". Raises ValueError where there is no such
    group, or several, or none whose nodes hold a worker.
    """
    needs, groups = worker_needs(recipe), spec.workers
    if name and name not in groups:
        raise ValueError(f"--group {name!r}: no such group in the spec; its groups are {', '.join(groups)}")
    fits = {group: needs.fit(ray_node(groups[group])) for group in ([name] if name else groups)}
    if needs.placement in ("STRICT_SPREAD", "SPREAD"):
        fits = {group: min(fit, 1) for group, fit in fits.items()}
    on_gpus = recipe.train.device == "cuda"
    suited = [group for group, fit in fits.items() if fit and (name or (groups[group].gpus > 0) == on_gpus)]
    if not suited:
        which = (
            f"--group {name}: its nodes hold"
            if name
            else f"--cluster: no group for train.device = {recipe.train.device!r} holds"
        )
        raise ValueError(f"{which} no worker, which takes {needs}; raise cpus, gpus or memory_gb of a group's nodes")
    if len(suited) > 1:
        raise ValueError(
            f"--cluster: workers may run in the groups {', '.join(suited)}; choose one: --group {suited[0]}"
        )
    return suited[0], fits[suited[0]]
