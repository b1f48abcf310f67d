"""The file that `ray up` and Ray's autoscaler read: a cluster of machines of a provider, without Kubernetes.

Its schema is Ray's own (`ray-schema.json`); its values are those of the spec. Starts nothing.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from cluster.merge import merged
from cluster.spec import Autoscaler, Spec
from cluster.spec_nodes import Node

HEAD = "head"  # the head's node type
PORT = 6379
TOKEN = "~/.ray/auth_token"  # where Ray looks for its token, here and on the nodes
IN_CONTAINER = "/tmp/ray-auth-token"
CLIPS = "/var/lib/antiphon/clips"  # of every machine
OPTIONS = "--object-manager-port=8076 --disable-usage-stats"
HEAD_OPTIONS = "--num-cpus=0 --autoscaling-config=~/ray_bootstrap_config.yaml --dashboard-host=127.0.0.1"
# What makes a machine one that may be taken away, where Ray's examples say so (`defaults.yaml` of each provider).
SPOT: dict[str, dict[str, Any]] = {
    "aws": {"InstanceMarketOptions": {"MarketType": "spot"}},
    "gcp": {"scheduling": [{"preemptible": True}]},
    "azure": {"azure_arm_parameters": {"priority": "Spot"}},
}


def autoscaler_config(spec: Spec) -> dict[str, Any]:
    """The values of the file. Raises ValueError where the spec lacks what machines of a provider need."""
    options = _required(spec)
    groups = {name: _node_type(spec, options, name) for name in spec.workers}
    return {
        "cluster_name": spec.name,
        "max_workers": sum(group.max for group in spec.workers.values()),
        "idle_timeout_minutes": spec.limits.idle_s / 60,
        "provider": dict(options.provider),
        "auth": {"ssh_user": options.ssh_user},
        "docker": {
            "image": spec.image,
            "container_name": spec.name,
            "run_options": _docker_options(spec, options),
            "head_run_options": [_shared_memory(spec.head)],
        },
        "head_node_type": HEAD,
        "available_node_types": {HEAD: _head_type(spec, options), **groups},
        # Docker would create the folder as root's
        "initialization_commands": [f"sudo install -d -m 1777 {CLIPS}"] if spec.cache else [],
        "file_mounts": {IN_CONTAINER: TOKEN} if spec.token_auth else {},
        "head_start_ray_commands": ["ray stop", f"ray start --head --port={PORT} {HEAD_OPTIONS} {OPTIONS}"],
        "worker_start_ray_commands": ["ray stop", f"ray start --address=$RAY_HEAD_IP:{PORT} {OPTIONS}"],
    }


def _required(spec: Spec) -> Autoscaler:
    options = spec.autoscaler
    if options is None:
        raise ValueError("autoscaler: is missing; --to autoscaler needs a provider, head_node and nodes; add the table")
    if {*options.nodes} != {*spec.workers}:
        groups = ", ".join(spec.workers)
        raise ValueError(f"autoscaler.nodes: must describe the machines of each group of workers, which are {groups}")
    if HEAD in spec.workers:
        raise ValueError(f"workers.{HEAD}: is the head's name among the node types; call the group otherwise")
    if spec.secrets and not options.env_file:
        raise ValueError(
            "autoscaler.env_file: is missing; secrets are Kubernetes' own, and machines need a file with NAME=VALUE "
            f"lines of {', '.join(spec.secrets)}; give its path on the machines"
        )
    provider = options.provider["type"]
    spot = next((name for name, group in spec.workers.items() if group.spot), None)
    if spot and provider not in SPOT:
        raise ValueError(
            f"workers.{spot}.spot = True: what a spot machine is with provider {provider} is not known; known are "
            f"{', '.join(SPOT)}"
        )
    if not all(float(node.cpus).is_integer() for node in (spec.head, *spec.workers.values())):
        raise ValueError("cpus: must be whole numbers, since a node of Ray's autoscaler has whole CPUs")
    return options


def _head_type(spec: Spec, options: Autoscaler) -> dict[str, Any]:
    labels = {"labels": dict(spec.head.labels)} if spec.head.labels else {}
    return {"resources": {"CPU": 0}, **labels, "node_config": dict(options.head_node), "max_workers": 0}


def _node_type(spec: Spec, options: Autoscaler, name: str) -> dict[str, Any]:
    group = spec.workers[name]
    node: Mapping[str, Any] = options.nodes[name]
    labels = {"labels": group.ray_labels} if group.ray_labels else {}
    return {
        "min_workers": group.min,
        "max_workers": group.max,
        "resources": {"CPU": int(group.cpus), **({"GPU": group.gpus} if group.gpus else {})},
        **labels,
        "node_config": merged(node, SPOT[options.provider["type"]]) if group.spot else dict(node),
        "docker": {"worker_run_options": [_shared_memory(group)]},
    }


def _docker_options(spec: Spec, options: Autoscaler) -> list[str]:
    """Of every container: variables, secrets by file, the folder of clips, and no rights that nothing needs."""
    words = ["--cap-drop=ALL", "--security-opt=no-new-privileges", "--ulimit=nofile=65536:65536"]
    words += [f"--env={name}={value}" for name, value in {**_auth(spec), **spec.env}.items()]
    words += [f"--env-file={options.env_file}"] if options.env_file else []
    words += [f"--volume={CLIPS}:{spec.cache.path}"] if spec.cache else []
    return [shlex.quote(word) for word in words]  # Ray joins them to one shell command


def _shared_memory(node: Node) -> str:
    return f"--shm-size={round(node.shm_gb * 1024)}m"


def _auth(spec: Spec) -> dict[str, str]:
    if not spec.token_auth:
        return {"RAY_AUTH_MODE": "disabled"}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": IN_CONTAINER}
