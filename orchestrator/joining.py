"""Which Ray a command runs on: a local one of its own, one at an address, or the stack that is up."""

import os
from dataclasses import dataclass
from typing import Any

from cluster import stack


@dataclass(frozen=True)
class Joined:
    """The Ray at hand: what it has in all, and its dashboard's address; empty: it has none."""

    resources: dict[str, float]
    dashboard: str


def connect(ray: Any, address: str, *, at_least: int) -> Joined:
    """Join the Ray at an address, or start a local one with `at_least` so many CPUs."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        joined = ray.init(address=address, **options)
    else:
        cpus = max(os.cpu_count() or 1, at_least)
        joined = ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
    return Joined(ray.cluster_resources(), f"http://{joined.dashboard_url}" if joined.dashboard_url else "")


def join_stack(address: str) -> str:
    """The address to join; `auto` prefers the stack of `antiphon cluster up`, whose token Ray then finds."""
    for service, state in stack.status() if address else ():
        if service.name == "ray" and state == "up" and address in ("auto", service.address):
            os.environ.update(service.client_env)
            return service.address
    return address
