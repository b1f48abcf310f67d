"""The Ray that a command uses: a local one of its own, one at an address, or the stack of `antiphon cluster up`."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster import stack
from orchestrator.storage import object_store
from orchestrator.storage.retry import Unavailable, describe_error, is_transient, print_status
from orchestrator.training.ray_nodes import alive_nodes, ask_nodes
from orchestrator.training.worker_resources import Node, WorkerNeeds, room_beside
from workloads.runtime.cpu import memory_variables
from workloads.runtime.exit_signals import blocked_signals
from workloads.runtime.scratch import private_folder, user_folder
from workloads.runtime.text import one_line

LISTENS_S = 10.0  # how long connecting to a cluster's port may take
WAIT_POLL_S = 1.0
NODE_ANSWERS_S = 120.0  # how long a node may take to start a worker process and look at a file


@dataclass(frozen=True)
class RayConnection:
    """A connected Ray: its nodes, and the dashboard's address ("": it has none)."""

    nodes: list[Node]
    dashboard: str
    own: bool  # started by this command, whose disk and environment its processes have

    def require_visible(self, ray: Any, uri: str, *, option: str = "--storage") -> None:
        """Raise ValueError where some node cannot read a file: what it is to write beside it would be lost.

        Runs one task without CPUs on every node. Raises Unavailable where a node or the store does not answer.
        """
        if self.own:
            return
        answers = ask_nodes(ray, _look_for, uri, nodes=alive_nodes(ray), timeout_s=NODE_ANSWERS_S)
        seen = [(answer.node, *(answer.value or (answer.error, answer.later))) for answer in answers]
        missing = [(node, reason, later) for node, reason, later in seen if reason]
        if missing:
            kind = Unavailable if all(later for _, _, later in missing) else ValueError
            raise kind(
                f"{option}: {len(missing)} of {len(seen)} nodes do not see {uri} (node {missing[0][0]}: "
                f"{missing[0][1]}); give a folder that all nodes share, or s3://bucket/prefix with its credentials in "
                "the environment of every node"
            )

    def wait_for_room(
        self,
        ray: Any,
        needs: WorkerNeeds,
        workers: int,
        *,
        wait_s: float,
        check: Callable[[], None],
        groups: int = 1,
        beside: tuple[WorkerNeeds, int] | None = None,
    ) -> "RayConnection":
        """This connection once its nodes hold so many groups of so many workers, and so many others `beside`; at once
        without `wait_s`.

        Meanwhile placement groups that cannot be placed yet tell the autoscaler what is missing. `check` is called
        every second, and may raise. Raises Unavailable where the nodes do not come in time.
        """
        if self.own or not wait_s:
            return self
        from ray.util import placement_group, remove_placement_group

        all_needs = [needs] * workers + ([beside[0]] * beside[1] if beside else [])
        selectors = [dict(each.labels) for each in all_needs] if any(each.labels for each in all_needs) else None
        bundles = [dict(each.resources) for each in all_needs]
        demands = [
            placement_group(bundles, strategy=needs.placement, bundle_label_selector=selectors) for _ in range(groups)
        ]
        deadline, said = time.monotonic() + wait_s, ""
        try:
            while (held := needs.count_groups(room := _room(nodes := _alive(ray), beside), workers)) < groups:
                waiting = f"{len(nodes)} nodes hold {needs.count(room)} of {workers} workers of {needs} each"
                if groups > 1:
                    waiting = f"{len(nodes)} nodes hold {held} of {groups} trials of {workers} workers of {needs} each"
                if time.monotonic() > deadline:
                    raise Unavailable(f"--wait {wait_s:g}: {waiting}; repeat the command, or ask for fewer")
                check()
                if waiting != said:
                    print_status(f"waiting for the cluster: {waiting}")
                    said = waiting
                time.sleep(WAIT_POLL_S)
        finally:
            for demand in demands:
                remove_placement_group(demand)  # the workers take its place
        return replace(self, nodes=nodes)


def _room(nodes: list[Node], beside: tuple[WorkerNeeds, int] | None) -> list[Node]:
    return room_beside(nodes, *beside) if beside else nodes


def _alive(ray: Any) -> list[Node]:
    return [Node(node["Resources"], node.get("Labels") or {}) for node in ray.nodes() if node["Alive"]]


def _look_for(uri: str) -> tuple[str, bool]:
    """Runs on each node: why it cannot read a file ("": it can), and whether that may be over in a minute."""
    try:
        return "" if object_store.exists(uri) else "no such file there", False
    except Exception as error:  # each kind of store raises other exception types
        return describe_error(error), is_transient(error)


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
        if "ray" in sys.modules:  # it has read the variables, and would refuse the Ray that it starts
            raise RuntimeError("Ray is imported before its environment is prepared")
        token = stack.ray_token(private_folder(PRIVATE.expanduser()))
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    return address


def connect(ray: Any, address: str, *, at_least: int) -> RayConnection:
    """Connect to the Ray at an address, or start a local one with `at_least` that many CPUs.

    Raises Unavailable where no cluster answers at the address, and where this machine is too busy to start one.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    options["runtime_env"] = {"env_vars": memory_variables()}
    if address:
        context = _connect_to(ray, address, options)
    else:
        cpus = max(os.cpu_count() or 1, at_least)
        if "RAY_TMPDIR" not in os.environ:
            # Ray's own scratch folder may be entered by all users; not in PRIVATE, since socket paths must be short
            options["_temp_dir"] = str(user_folder() / "ray")
        context = _start(ray, num_cpus=cpus, **options)
    dashboard = f"http://{context.dashboard_url}" if context.dashboard_url else ""
    return RayConnection(_alive(ray), dashboard, own=not address)


def _start(ray: Any, **options: Any) -> Any:
    """Start a local Ray; Unavailable where it does not report itself within the half minute that Ray gives it.

    Its processes do not hear that the terminal is closed, which a shell tells all of a command: this one saves first.
    """
    try:
        with blocked_signals({signal.SIGHUP}):
            return ray.init(address="local", include_dashboard=False, **options)
    except Exception as error:  # Ray raises no class of its own
        if "timed out during startup" not in str(error):
            raise
        raise Unavailable(
            f"Ray did not start on this machine: {one_line(error)} Is it busy? Try again when it is less so"
        ) from None


def _connect_to(ray: Any, address: str, options: dict[str, Any]) -> Any:
    """Connect to a cluster; Unavailable where none can be used at the address.

    Looks first whether anything listens there: Ray tries for five minutes, and then ends this process.
    """
    host, _, port = address.rpartition(":")
    advice = "check the address, whether the cluster runs, and RAY_AUTH_TOKEN_PATH where it wants a token"
    try:
        if port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), timeout=LISTENS_S).close()
        return ray.init(address=address, **options)
    except (OSError, SystemExit) as error:
        reason = "Ray gave up" if isinstance(error, SystemExit) else describe_error(error)
        raise Unavailable(f"--address {address!r}: no Ray cluster can be used there ({reason}); {advice}") from None
    except RuntimeError as error:  # other versions of Ray or Python, a token that is wrong
        raise ValueError(f"--address {address!r}: {one_line(error)}; {advice}") from None


def _resolve_address(address: str) -> str:
    """The address to connect to, "" for a local Ray.

    "auto" prefers the stack of `antiphon cluster up`, whose token Ray then finds.
    """
    for service, state in stack.status() if address else ():
        if service.name == "ray" and state == "up" and address in ("auto", service.address):
            os.environ.update(service.client_env)
            return service.address
    return address
