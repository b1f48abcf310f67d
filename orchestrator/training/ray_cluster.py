"""The Ray that a command uses: a local one of its own, one at an address, or the stack of `antiphon cluster up`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import stack
from orchestrator.storage import object_store
from workloads.runtime.scratch import private_folder, user_folder


@dataclass(frozen=True)
class RayConnection:
    """A connected Ray: the resources of each node, and the dashboard's address ("": it has none)."""

    nodes: list[dict[str, float]]
    dashboard: str

    def require_visible(self, ray: Any, uri: str, *, option: str = "--storage") -> None:
        """Raise ValueError where some node does not see a local file: what it writes there would be lost.

        Runs one task without CPUs on every node.
        """
        if not object_store.is_local(uri) or len(self.nodes) == 1:
            return
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        exists = ray.remote(num_cpus=0)(os.path.exists)
        path = str(object_store.local_path(uri))
        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        on_each = [NodeAffinitySchedulingStrategy(node, soft=False) for node in alive]
        visible = ray.get([exists.options(scheduling_strategy=node).remote(path) for node in on_each])
        if not all(visible):
            raise ValueError(
                f"{option}: {visible.count(False)} of {len(visible)} nodes do not see {uri}; give a folder that all "
                "nodes share, or s3://bucket/prefix"
            )


PRIVATE = Path("~/.antiphon/ray")  # holds the token of local Rays; only its owner may enter it
TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def prepare_environment(address: str) -> str:
    """Set what Ray's processes inherit, and return the address to connect to; called before Ray is imported.

    A local Ray gets a token of its own that only its owner may read: Ray would write one that all users of the machine
    can read to ~/.ray/auth_token.
    """
    # Ray starts workers at nice 15: on a shared machine one of two threads starves and the other waits for it.
    os.environ.setdefault("RAY_worker_niceness", "0")
    address = _resolve_address(address)
    if not address and not any(name in os.environ for name in TOKEN_VARIABLES):
        token = stack.ray_token(private_folder(PRIVATE.expanduser()))
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    return address


def connect(ray: Any, address: str, *, at_least: int) -> RayConnection:
    """Connect to the Ray at an address, or start a local one with `at_least` that many CPUs."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        context = ray.init(address=address, **options)
    else:
        cpus = max(os.cpu_count() or 1, at_least)
        if "RAY_TMPDIR" not in os.environ:
            # Ray's own scratch folder may be entered by all users; not in PRIVATE, since socket paths must be short
            options["_temp_dir"] = str(user_folder() / "ray")
        context = ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return RayConnection(nodes, f"http://{context.dashboard_url}" if context.dashboard_url else "")


def _resolve_address(address: str) -> str:
    """The address to connect to, "" for a local Ray.

    "auto" prefers the stack of `antiphon cluster up`, whose token Ray then finds.
    """
    for service, state in stack.status() if address else ():
        if service.name == "ray" and state == "up" and address in ("auto", service.address):
            os.environ.update(service.client_env)
            return service.address
    return address
