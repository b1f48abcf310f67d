"""Which Ray a command runs on: a local one of its own, one at an address, or the stack that is up."""

import os
from dataclasses import dataclass
from typing import Any

from cluster import stack
from orchestrator.storage import object_store


@dataclass(frozen=True)
class RayConnection:
    """The Ray at hand: what its nodes have, each and in all, and its dashboard's address; empty: it has none."""

    resources: dict[str, float]
    nodes: list[dict[str, float]]
    dashboard: str

    def require_seen(self, ray: Any, uri: str) -> None:
        """ValueError where a local file is not seen by every node: what is kept there would be lost to the others."""
        if not object_store.is_local(uri) or len(self.nodes) == 1:
            return
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look = ray.remote(num_cpus=0)(os.path.exists)
        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in alive]
        seen = ray.get(
            [look.options(scheduling_strategy=where).remote(str(object_store.local_path(uri))) for where in there]
        )
        if not all(seen):
            raise ValueError(
                f"--storage: {seen.count(False)} of {len(seen)} nodes do not see {uri}; give a folder that all nodes "
                "share, or s3://bucket/prefix"
            )


def connect(ray: Any, address: str, *, at_least: int) -> RayConnection:
    """Join the Ray at an address, or start a local one with `at_least` so many CPUs."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        connection = ray.init(address=address, **options)
    else:
        cpus = max(os.cpu_count() or 1, at_least)
        connection = ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return RayConnection(
        ray.cluster_resources(), nodes, f"http://{connection.dashboard_url}" if connection.dashboard_url else ""
    )


def join_stack(address: str) -> str:
    """The address to join; `auto` prefers the stack of `antiphon cluster up`, whose token Ray then finds."""
    for service, state in stack.status() if address else ():
        if service.name == "ray" and state == "up" and address in ("auto", service.address):
            os.environ.update(service.client_env)
            return service.address
    return address
