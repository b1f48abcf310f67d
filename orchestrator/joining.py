"""Which Ray a command runs on: a local one of its own, one at an address, or the stack that is up."""

import os
from typing import Any

from cluster import stack


def connect(ray: Any, address: str, *, at_least: int) -> dict[str, float]:
    """Join the Ray at an address, or start a local one with `at_least` so many CPUs; returns its resources."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        ray.init(address=address, **options)
    else:
        ray.init(address="local", num_cpus=max(os.cpu_count() or 1, at_least), include_dashboard=False, **options)
    resources: dict[str, float] = ray.cluster_resources()
    return resources


def join_stack(address: str) -> str:
    """The address to join; `auto` prefers the stack of `antiphon cluster up`, whose token Ray then finds."""
    for service, state in stack.status() if address else ():
        if service.name == "ray" and state == "up" and address in ("auto", service.address):
            os.environ.update(service.client_env)
            return service.address
    return address
