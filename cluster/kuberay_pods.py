"""The pods of a cluster on Kubernetes: containers, volumes, probes, where they may be scheduled. Plain values."""

from typing import Any

from cluster.kuberay_service import PORT, PORT_NAME, PROXY_HEALTH
from cluster.spec import Cache, Spec
from cluster.spec_nodes import Node, Workers, secret_reference
from cluster.work_command import PROGRAM

LABEL = "antiphon"  # of all pods of a spec; its value is the spec's name
USER = 1000  # of cluster/Dockerfile, and of Ray's own images
GPU = "nvidia.com/gpu"
# Labels by which providers and Karpenter mark nodes that may be taken away.
SPOT_NODES = {
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
# Before SIGTERM, which reaches Ray alone: drivers and workers save (`orchestrator/jobs/leave_node.py`). What is left
# GRACE_S after Kubernetes has begun that is killed.
LEAVE = [*PROGRAM, "cluster", "leave", "--seconds", "25"]
GRACE_S = 30
RAYLET_HEALTH = "http://localhost:52365/api/local_raylet_healthz"
GCS_HEALTH = "http://localhost:8265/api/gcs_healthz"
# what Ray Serve's proxy puts around its answers (`orchestrator/serving/proxy_answers.py`)
SERVE_ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "orchestrator.serving.proxy_answers:middlewares"}


def head_pod(spec: Spec) -> dict[str, Any]:
    """The head's pod template: never on a spot node, since the driver runs there."""
    ports = {"gcs-server": 6379, "dashboard": 8265, "metrics": 8080}
    container = _ray_container(spec, "ray-head", spec.head, ports, probed=(RAYLET_HEALTH, GCS_HEALTH))
    return _pod(spec, spec.head, container, affinity=_not_on_spot())


def worker_pod(spec: Spec, group: Workers) -> dict[str, Any]:
    """The pod template of a worker group; it needs no access to Kubernetes."""
    ports, serves = {"metrics": 8080}, spec.kind == "service"
    if serves:
        ports[PORT_NAME] = PORT
    container = _ray_container(spec, "ray-worker", group, ports, probed=(RAYLET_HEALTH,), gpus=group.gpus)
    if serves:  # KubeRay adds this to probes of its own only; a pod without a proxy gets no requests, at once
        ready = _probe((RAYLET_HEALTH, PROXY_HEALTH), initialDelaySeconds=10, failureThreshold=1)
        container["readinessProbe"] = ready
    return _pod(spec, group, container, automountServiceAccountToken=False)


def submitter_pod(spec: Spec) -> dict[str, Any]:
    """The pod that submits the job and shows its log; it has the label that the network policy lets through."""
    container = {
        "name": "ray-job-submitter",
        "image": spec.image,
        "resources": _resources({"cpu": "500m", "memory": "1Gi"}),
        "securityContext": container_security(),
    }
    return {
        "metadata": {"labels": {LABEL: spec.name}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": _pod_security(),
            "containers": [container],
        },
    }


def _pod(spec: Spec, node: Node, container: dict[str, Any], **further: Any) -> dict[str, Any]:
    return {
        "metadata": {"labels": {LABEL: spec.name}},
        "spec": {
            "terminationGracePeriodSeconds": GRACE_S,
            "restartPolicy": "Never",  # KubeRay replaces the pod; Ray's autoscaler v2 allows nothing else
            "securityContext": _pod_security(),
            **further,
            **({"nodeSelector": dict(node.node_selector)} if node.node_selector else {}),
            **({"tolerations": [_toleration(each) for each in node.tolerations]} if node.tolerations else {}),
            "containers": [container],
            "volumes": _volumes(node, spec.cache),
        },
    }


def _ray_container(
    spec: Spec, name: str, node: Node, ports: dict[str, int], *, probed: tuple[str, ...], gpus: int = 0
) -> dict[str, Any]:
    resources = {"cpu": _cpus(node.cpus), "memory": _memory(node.memory_gb)}
    return {
        "name": name,
        "image": spec.image,
        "imagePullPolicy": "IfNotPresent",
        "env": _environment(spec),
        "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
        "resources": _resources(resources | ({GPU: gpus} if gpus else {})),
        # a training process may keep all CPUs busy for long: a node counts as dead after ten minutes without an answer
        "readinessProbe": _probe(probed, initialDelaySeconds=10, failureThreshold=10),
        "livenessProbe": _probe(probed, initialDelaySeconds=60, failureThreshold=60),
        "lifecycle": {"preStop": {"exec": {"command": LEAVE}}},
        "securityContext": container_security(),
        "volumeMounts": _mounts(spec.cache),
    }


def _environment(spec: Spec) -> list[dict[str, Any]]:
    own = (SERVE_ENVIRONMENT if spec.kind == "service" else {}) | dict(spec.env)
    values: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in own.items()]
    return values + [{"name": name, "valueFrom": secret_reference(where)} for name, where in spec.secrets.items()]


def _resources(amounts: dict[str, Any]) -> dict[str, Any]:
    """Requests equal limits: Ray reckons with the limits, and a node that gives less would be killed."""
    return {"requests": amounts, "limits": dict(amounts)}


def _probe(urls: tuple[str, ...], **times: int) -> dict[str, Any]:
    """KubeRay's own question, by wget, with more patience; Ray's health pages need no token."""
    asked = " && ".join(f"wget --tries 1 -T 4 -q -O- {url} | grep -q success" for url in urls)
    return {"exec": {"command": ["sh", "-c", asked]}, "periodSeconds": 10, "timeoutSeconds": 10, **times}


def _volumes(node: Node, cache: Cache | None) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": _memory(node.shm_gb)}}
    ]
    if cache and cache.claim:
        volumes.append({"name": "clips", "persistentVolumeClaim": {"claimName": cache.claim}})
    elif cache:
        volumes.append({"name": "clips", "emptyDir": {"sizeLimit": _memory(cache.size_gb)}})
    return volumes


def _mounts(cache: Cache | None) -> list[dict[str, Any]]:
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    return mounts + ([{"name": "clips", "mountPath": cache.path}] if cache else [])


def _memory(gib: float) -> str:
    return f"{gib:g}Gi" if gib == int(gib) else f"{round(gib * 1024)}Mi"


def _cpus(cpus: float) -> str:
    return f"{cpus:g}" if cpus == int(cpus) else f"{round(cpus * 1000)}m"


def _toleration(toleration: Any) -> dict[str, str]:
    fields = {"key": toleration.key, "operator": toleration.operator}
    fields |= {"value": toleration.value} if toleration.operator == "Equal" else {}
    return fields | ({"effect": toleration.effect} if toleration.effect else {})


def _not_on_spot() -> dict[str, Any]:
    expressions = [{"key": key, "operator": "NotIn", "values": [value]} for key, value in SPOT_NODES.items()]
    terms = {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def _pod_security() -> dict[str, Any]:
    ids = {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}  # fsGroup: the volume of clips can be written
    return {"runAsNonRoot": True, **ids, "seccompProfile": {"type": "RuntimeDefault"}}


def container_security() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
