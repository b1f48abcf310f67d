"""Manifests for KubeRay: a RayJob, RayCronJob, RayCluster or RayService, and who may connect to its pods.

The fields are those of KubeRay 1.7's custom resources (reference/ray.md 5 and 8.8). Knows no Ray and no Kubernetes
client: manifests are plain values. What KubeRay refuses is checked at the end by `cluster/kuberay_rules.py`.
"""

from typing import Any

from cluster.kuberay_pods import LABEL, container_security, head_pod, submitter_pod, worker_pod
from cluster.kuberay_rules import check_manifest
from cluster.kuberay_service import clients_rule, service_spec
from cluster.merge import merged
from cluster.spec import Gang, Network, Spec
from cluster.spec_nodes import Redis, Workers, secret_reference
from cluster.work_command import shell_command

API = "ray.io/v1"
QUEUES = {"kueue": "kueue.x-k8s.io/queue-name", "volcano": "volcano.sh/queue-name"}
DASHBOARD, METRICS = 8265, 8080
KINDS = {"job": "RayJob", "cron": "RayCronJob", "cluster": "RayCluster", "service": "RayService"}


def manifests(spec: Spec) -> list[dict[str, Any]]:
    """All objects of a spec, in the order in which they are to be applied; ValueError for what KubeRay refuses."""
    policy = [_network_policy(spec, spec.network)] if spec.network else []
    main = {
        "apiVersion": API,
        "kind": KINDS[spec.kind],
        "metadata": {"name": spec.name, "labels": {LABEL: spec.name, **_queue(spec.gang)}},
        "spec": _SPECS[spec.kind](spec),
    }
    check_manifest(main)
    return [*policy, main]


def _job_spec(spec: Spec) -> dict[str, Any]:
    limits, work = spec.limits, spec.work
    assert work is not None, "checked by the spec"
    rendered = {
        "entrypoint": shell_command(work, spec.cache, daily=spec.kind == "cron"),
        "submissionMode": "K8sJobMode",
        "backoffLimit": limits.retries,
        **({"activeDeadlineSeconds": limits.deadline_s} if limits.deadline_s else {}),
        **({"preRunningDeadlineSeconds": limits.pending_s} if limits.pending_s else {}),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": limits.keep_s,
        **({"suspend": True} if _is_kueue(spec) else {}),  # Kueue resumes it when there is room
        "submitterPodTemplate": submitter_pod(spec),
        "rayClusterSpec": _cluster_spec(spec),
    }
    return merged(rendered, spec.kuberay.job)


def _cron_spec(spec: Spec) -> dict[str, Any]:
    assert spec.work is not None, "checked by the spec"
    return {"schedule": spec.work.schedule, "timeZone": "Etc/UTC", "jobTemplate": _job_spec(spec)}


def _suspendable_cluster_spec(spec: Spec) -> dict[str, Any]:
    return ({"suspend": True} if _is_kueue(spec) else {}) | _cluster_spec(spec)


def _service_spec(spec: Spec) -> dict[str, Any]:
    return ({"suspend": True} if _is_kueue(spec) else {}) | merged(
        service_spec(spec, _cluster_spec(spec)), spec.kuberay.service
    )


_SPECS = {"job": _job_spec, "cron": _cron_spec, "cluster": _suspendable_cluster_spec, "service": _service_spec}


def _cluster_spec(spec: Spec) -> dict[str, Any]:
    token = {"mode": "token", **({"secretName": spec.token_secret} if spec.token_secret else {})}
    rendered = {
        "rayVersion": spec.ray_version,
        "authOptions": token if spec.token_auth else {"mode": "disabled"},
        **(_autoscaling(spec) if spec.scales else {"enableInTreeAutoscaling": False}),
        **(_fault_tolerance(spec.head.redis) if spec.head.redis else {}),
        "headGroupSpec": {
            # no tasks on the head: it has the driver, and with it the only process that ends the run if it goes
            "rayStartParams": {
                "num-cpus": "0",
                "dashboard-host": "0.0.0.0",
                "object-store-memory": _object_store(spec.head.shm_gb),
            },
            **({"labels": dict(spec.head.labels)} if spec.head.labels else {}),
            "template": head_pod(spec),
        },
        "workerGroupSpecs": [_worker_group(spec, name, group) for name, group in spec.workers.items()],
    }
    return merged(rendered, spec.kuberay.cluster)


def _worker_group(spec: Spec, name: str, group: Workers) -> dict[str, Any]:
    return {
        "groupName": name,
        "replicas": group.min,
        "minReplicas": group.min,
        "maxReplicas": group.max,
        "rayStartParams": {"object-store-memory": _object_store(group.shm_gb)},
        **({"labels": group.ray_labels} if group.ray_labels else {}),
        "template": worker_pod(spec, group),
    }


def _object_store(shm_gb: float) -> str:
    """Bytes for Ray's objects: half of /dev/shm; the other half is for the loaders' batches."""
    return str(int(shm_gb / 2 * 2**30))


def _autoscaling(spec: Spec) -> dict[str, Any]:
    resources = {"cpu": "500m", "memory": "1Gi"}
    options = {
        "version": "v2",
        "idleTimeoutSeconds": spec.limits.idle_s,
        "upscalingMode": "Default",
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": container_security(),
    }
    return {"enableInTreeAutoscaling": True, "autoscalerOptions": options}


def _fault_tolerance(redis: Redis) -> dict[str, Any]:
    password = {"redisPassword": {"valueFrom": secret_reference(redis.password)}} if redis.password else {}
    return {"gcsFaultToleranceOptions": {"redisAddress": redis.address, **password}}


def _queue(gang: Gang | None) -> dict[str, str]:
    return {QUEUES[gang.scheduler]: gang.queue} if gang else {}


def _is_kueue(spec: Spec) -> bool:
    return spec.gang is not None and spec.gang.scheduler == "kueue"


def _network_policy(spec: Spec, network: Network) -> dict[str, Any]:
    """Kubernetes' own policy: KubeRay's `networkPolicy` is behind a feature gate that is off (reference/ray.md 8.8)."""
    pods = {"matchLabels": {LABEL: spec.name}}
    ingress = [{"from": [{"podSelector": pods}]}, _from_namespace(network.operator_namespace, DASHBOARD)]
    if network.metrics_namespace:
        ingress.append(_from_namespace(network.metrics_namespace, METRICS))
    if spec.kind == "service" and spec.serve:
        ingress.append(clients_rule(spec.serve))
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": spec.name, "labels": {LABEL: spec.name}},
        "spec": {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": ingress},
    }


def _from_namespace(namespace: str, port: int) -> dict[str, Any]:
    selector = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    return {"from": [selector], "ports": [{"protocol": "TCP", "port": port}]}
