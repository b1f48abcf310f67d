"""Questions to every node of a Ray cluster: one task without CPUs on each, so that busy nodes answer too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.storage.retry import describe_error
from workloads.runtime.text import one_line


@dataclass(frozen=True)
class NodeAnswer:
    """What a node's task has returned, or in one line why it has not; `later`: asked again, it may."""

    node: str  # its name among those that were asked
    value: Any = None
    error: str = ""
    later: bool = False


def alive_nodes(ray: Any) -> list[tuple[str, str]]:
    """Ray's id and a name for each node: its address, and of several on one machine a part of the id behind it."""
    alive = [(node["NodeID"], node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]]
    addresses = [address for _, address in alive]
    return [(node, address if addresses.count(address) == 1 else f"{address}/{node[:8]}") for node, address in alive]


def on_node(ray: Any, function: Callable[..., Any], node_id: str) -> Any:
    """The function as a remote one of this node; call its `remote` with the arguments."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(function).options(scheduling_strategy=strategy)


def ask_nodes(
    ray: Any, function: Callable[..., Any], *arguments: Any, nodes: Sequence[tuple[str, str]], timeout_s: float
) -> list[NodeAnswer]:
    """Call a function on nodes, (id, name) each, at once; the answers in that order, within `timeout_s` seconds."""
    asked = [on_node(ray, function, node_id).remote(*arguments) for node_id, _ in nodes]
    ray.wait(asked, num_returns=len(asked), timeout=timeout_s)
    answers = []
    for (_, name), answer in zip(nodes, asked, strict=True):
        try:
            answers.append(NodeAnswer(name, ray.get(answer, timeout=0)))
        except ray.exceptions.GetTimeoutError:
            answers.append(NodeAnswer(name, error=f"no answer within {timeout_s:.0f} s", later=True))
        except ray.exceptions.RayTaskError as failed:  # the node has no antiphon, or another one
            answers.append(NodeAnswer(name, error=describe_error(failed.cause)))
        except ray.exceptions.RayError as lost:
            answers.append(NodeAnswer(name, error=one_line(lost), later=True))
    return answers
