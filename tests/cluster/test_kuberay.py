"""Manifests for KubeRay: valid by its schemas closed against unknown keys, and what a cluster needs is in them."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from cluster.kuberay import manifests
from cluster.render import render
from cluster.spec import Spec
from cluster.spec_file import load_spec
from tests.cluster.crds import mistakes
from tests.cluster.specs import SERVE, SPOT_GPUS, make_spec

FULL: dict[str, Any] = {
    "workers__gpu": {
        **SPOT_GPUS,
        "node_selector": {"pool": "gpu"},
        "tolerations": [{"key": "spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}, {"key": "gpu"}],
    },
    "head__redis": {"address": "redis:6379", "password": "redis/password"},
    "head__labels": {"tier": "head"},
    "token_secret": "ray-token",
    "env": {"AWS_ENDPOINT_URL": "https://s3"},
    "secrets": {"AWS_SECRET_ACCESS_KEY": "s3/secret-key"},
    "cache": {"claim": "clips"},
    "limits": {"deadline_s": 3600, "pending_s": 600},
    "gang": {"scheduler": "volcano", "queue": "audio"},
    "network": {"metrics_namespace": "monitoring"},
    "kuberay": {"job": {"submitterConfig": {"backoffLimit": 5}}, "cluster": {"upgradeStrategy": {"type": "None"}}},
}


def main(spec: Spec) -> dict[str, Any]:
    """The manifest that is not the network policy."""
    return manifests(spec)[-1]


def pods(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield cluster["headGroupSpec"]["template"]
    yield from (group["template"] for group in cluster["workerGroupSpecs"])


def containers(job: dict[str, Any]) -> list[dict[str, Any]]:
    templates = [job["submitterPodTemplate"], *pods(job["rayClusterSpec"])]
    return [container for pod in templates for container in pod["spec"]["containers"]]


@pytest.mark.parametrize("changes", [{}, FULL, {"gang": {"scheduler": "kueue", "queue": "audio"}}])
@pytest.mark.parametrize("kind", ["job", "cluster", "service"])
def test_manifests_are_valid_by_kuberay_s_schemas(kind: str, changes: dict[str, Any]) -> None:
    manifest = main(make_spec(kind=kind, serve=SERVE, **changes))
    assert mistakes(manifest["kind"], manifest) == []


def test_the_job_of_a_cron_job_is_valid_too() -> None:
    """RayCronJob's definition is not among ours; its template is a RayJob's spec."""
    cron = main(load_spec("example"))
    assert cron["kind"] == "RayCronJob"
    assert {**cron["spec"], "jobTemplate": None} == {
        "schedule": "0 2 * * *",
        "timeZone": "Etc/UTC",
        "jobTemplate": None,
    }
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {}, "spec": cron["spec"]["jobTemplate"]}
    assert mistakes("RayJob", job) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("entrypont",), "a misspelled key"),
        (("backoffLimit",), "three"),
        (("rayClusterSpec", "autoscalerOptions", "version"), "v3"),
        (("rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "imagePulPolicy"), "Always"),
        (("rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "volumes", 0, "emptyDir", "sizelimit"), "1Gi"),
    ],
)
def test_the_closed_schema_finds_what_is_wrong(path: tuple[Any, ...], value: Any) -> None:
    manifest = copy.deepcopy(main(make_spec(**FULL)))
    table = manifest["spec"]
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    assert len(mistakes("RayJob", manifest)) == 1


def test_every_container_gets_what_it_asks_for_and_no_rights() -> None:
    job = main(make_spec(**FULL))["spec"]
    assert {container["name"] for container in containers(job)} == {"ray-job-submitter", "ray-head", "ray-worker"}
    for container in containers(job):
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    autoscaler = job["rayClusterSpec"]["autoscalerOptions"]  # KubeRay makes a container of the head's pod from it
    for part in ("securityContext", "resources"):
        assert autoscaler[part].keys() == containers(job)[0][part].keys()
    assert autoscaler["securityContext"] == containers(job)[0]["securityContext"]
    gpu = job["rayClusterSpec"]["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]
    assert gpu["resources"]["limits"] == {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": 1}
    for pod in [job["submitterPodTemplate"], *pods(job["rayClusterSpec"])]:
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["restartPolicy"] == "Never"
        assert pod["metadata"]["labels"] == {"antiphon": "nightly"}


def test_pods_save_before_they_stop_within_the_time_that_kubernetes_gives_them() -> None:
    cluster = main(make_spec(**FULL))["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command[:5] == ["python", "-m", "orchestrator.cli.app", "cluster", "leave"]
        assert float(command[6]) < pod["terminationGracePeriodSeconds"]


def test_groups_scale_and_the_head_takes_no_tasks_and_no_spot_node() -> None:
    cluster = main(make_spec(**FULL))["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    affinity = cluster["headGroupSpec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {expression["operator"] for expression in term["matchExpressions"]} == {"NotIn"}
    sizes = [
        (group["groupName"], group["minReplicas"], group["replicas"], group["maxReplicas"])
        for group in cluster["workerGroupSpecs"]
    ]
    assert sizes == [("cpu", 2, 2, 2), ("gpu", 0, 0, 4)]
    gpu = cluster["workerGroupSpecs"][1]
    assert gpu["labels"] == {"ray.io/market-type": "spot", "ray.io/accelerator-type": "A100"}
    assert gpu["template"]["spec"]["nodeSelector"] == {"pool": "gpu"}
    assert gpu["template"]["spec"]["tolerations"] == [
        {"key": "spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
        {"key": "gpu", "operator": "Exists"},
    ]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    fixed = main(make_spec())["spec"]["rayClusterSpec"]
    assert fixed["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in fixed


def test_shared_memory_is_half_for_ray_s_objects() -> None:
    cluster = main(make_spec(workers__cpu__shared_memory_gb=3, head__memory_gb=10))["spec"]["rayClusterSpec"]
    sizes = [pod["spec"]["volumes"][0]["emptyDir"] for pod in pods(cluster)]
    assert sizes == [{"medium": "Memory", "sizeLimit": "2560Mi"}, {"medium": "Memory", "sizeLimit": "3Gi"}]
    stores = [
        group["rayStartParams"]["object-store-memory"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    ]
    assert stores == [str(int(1.25 * 2**30)), str(int(1.5 * 2**30))]
    for pod in pods(cluster):
        assert {"name": "shared-memory", "mountPath": "/dev/shm"} in pod["spec"]["containers"][0]["volumeMounts"]


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        ({"claim": "clips"}, {"persistentVolumeClaim": {"claimName": "clips"}}),
        ({"size_gb": 1.5}, {"emptyDir": {"sizeLimit": "1536Mi"}}),
    ],
)
def test_clips_lie_where_the_command_looks_for_them(cache: dict[str, Any], volume: dict[str, Any]) -> None:
    job = main(make_spec(cache={"path": "/clips", **cache}))["spec"]
    for pod in pods(job["rayClusterSpec"]):
        assert {"name": "clips", **volume} in pod["spec"]["volumes"]
        assert {"name": "clips", "mountPath": "/clips"} in pod["spec"]["containers"][0]["volumeMounts"]
    assert "--set data.cache=/clips" in job["entrypoint"]


def test_secrets_are_named_and_never_held() -> None:
    job = main(make_spec(**FULL))["spec"]
    for pod in pods(job["rayClusterSpec"]):
        environment = {each["name"]: each for each in pod["spec"]["containers"][0]["env"]}
        reference = {"secretKeyRef": {"name": "s3", "key": "secret-key"}}
        assert environment["AWS_SECRET_ACCESS_KEY"] == {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": reference}
        assert environment["AWS_ENDPOINT_URL"] == {"name": "AWS_ENDPOINT_URL", "value": "https://s3"}
    cluster = job["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert cluster["gcsFaultToleranceOptions"] == {
        "redisAddress": "redis:6379",
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}},
    }
    assert main(make_spec(token_auth=False))["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "disabled"}


def test_a_job_is_repeated_ended_and_cleaned_up() -> None:
    job = main(make_spec(**FULL))["spec"]
    assert (job["backoffLimit"], job["activeDeadlineSeconds"], job["preRunningDeadlineSeconds"]) == (3, 3600, 600)
    assert (job["shutdownAfterJobFinishes"], job["ttlSecondsAfterFinished"]) == (True, 600)
    assert "activeDeadlineSeconds" not in main(make_spec())["spec"]
    assert job["submitterConfig"] == {"backoffLimit": 5}  # merged over it
    assert job["rayClusterSpec"]["upgradeStrategy"] == {"type": "None"}


@pytest.mark.parametrize(
    ("scheduler", "label"), [("kueue", "kueue.x-k8s.io/queue-name"), ("volcano", "volcano.sh/queue-name")]
)
@pytest.mark.parametrize("kind", ["job", "cluster", "service"])
def test_queues_are_labels_and_kueue_begins_what_is_suspended(kind: str, scheduler: str, label: str) -> None:
    manifest = main(make_spec(kind=kind, serve=SERVE, gang={"scheduler": scheduler, "queue": "audio"}))
    assert manifest["metadata"]["labels"] == {"antiphon": "nightly", label: "audio"}
    assert manifest["spec"].get("suspend", False) is (scheduler == "kueue")


def test_the_network_policy_lets_the_cluster_the_operator_and_prometheus_in() -> None:
    policy, _ = manifests(make_spec(**FULL))
    assert policy["spec"]["podSelector"] == {"matchLabels": {"antiphon": "nightly"}}
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    own, operator, prometheus = policy["spec"]["ingress"]
    assert own == {"from": [{"podSelector": policy["spec"]["podSelector"]}]}
    for rule, namespace, port in ((operator, "kuberay-system", 8265), (prometheus, "monitoring", 8080)):
        selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
        assert rule == {"from": [{"namespaceSelector": selector}], "ports": [{"protocol": "TCP", "port": port}]}
    assert len(manifests(make_spec())) == 1


def test_the_text_is_the_same_every_time_and_reads_back() -> None:
    spec = make_spec(**FULL)
    text = render(spec, "kuberay")
    assert text == render(make_spec(**FULL), "kuberay")
    assert "&id" not in text  # nothing by reference
    assert [*yaml.safe_load_all(text)] == json.loads(json.dumps(manifests(spec)))
