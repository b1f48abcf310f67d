"""A RayService: the cluster of a spec with `antiphon serve`'s application on it, and who may ask it.

KubeRay puts a Kubernetes service, NAME-serve-svc, before the pods whose HTTP proxy is ready. Plain values.
"""

from typing import Any

import yaml

from cluster.spec import Spec
from cluster.spec_serve import Serve

PORT, PORT_NAME = 8000, "serve"  # KubeRay finds the port by this name
PROXY_HEALTH = f"http://localhost:{PORT}/-/healthz"
APPLICATION, IMPORT_PATH = "antiphon", "orchestrator.serving.deployment:build"
REQUEST_S = 300.0  # as `antiphon serve` has it
FAILED_FOR_S = 900  # how long an application may fail before KubeRay starts a new cluster: taggers load meanwhile


def service_spec(spec: Spec, cluster: dict[str, Any]) -> dict[str, Any]:
    """The spec of a RayService on this cluster's spec."""
    assert spec.serve is not None, "checked by the spec"
    return {
        "serveConfigV2": yaml.safe_dump(serve_config(spec.serve), sort_keys=False, width=1000),
        "serviceUnhealthySecondThreshold": FAILED_FOR_S,
        "excludeHeadPodFromServeSvc": True,  # no replica is there: the head takes no tasks
        "upgradeStrategy": {"type": "NewCluster"},  # the old one answers until the new one does
        "rayClusterConfig": cluster,
    }


def serve_config(serve: Serve) -> dict[str, Any]:
    """What Ray Serve is to run, as its own configuration files have it."""
    values = {
        "models": dict(serve.models),
        "replicas": serve.min,
        "max_replicas": serve.max,
        "threads": serve.cpus,
        "max_seconds": serve.max_seconds,
        "max_mb": serve.max_mb,
        "batch_seconds": serve.batch_seconds,
        "ongoing": serve.ongoing,
        "queued": serve.queued,
    }
    return {
        "http_options": {"host": "0.0.0.0", "port": PORT, "request_timeout_s": REQUEST_S},
        "applications": [
            {"name": APPLICATION, "route_prefix": "/", "import_path": IMPORT_PATH, "args": values},
        ],
    }


def clients_rule(serve: Serve) -> dict[str, Any]:
    """The rule of a network policy that lets clients in."""
    labels = {"kubernetes.io/metadata.name": serve.clients_namespace}
    source = {"namespaceSelector": {"matchLabels": labels}} if serve.clients_namespace else {"podSelector": {}}
    return {"from": [source], "ports": [{"protocol": "TCP", "port": PORT}]}
