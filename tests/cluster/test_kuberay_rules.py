"""KubeRay's own rules: each one refused, in one line; what is rendered breaks none."""

import copy
from typing import Any

import pytest

from cluster.kuberay import manifests
from cluster.kuberay_rules import CLUSTER_FIELDS, JOB_FIELDS, check_manifest
from cluster.merge import merged
from cluster.spec_file import load_spec
from tests.cluster.crds import closed_schema
from tests.cluster.specs import SPOT_GPUS, make_spec

RULES = {"deletionRules": [{"policy": "DeleteCluster", "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 0}}]}
PAIR = {"onSuccess": {"policy": "DeleteCluster"}, "onFailure": {"policy": "DeleteNone"}}
WORKERS = {"onSuccess": {"policy": "DeleteWorkers"}, "onFailure": {"policy": "DeleteCluster"}}
SELECTOR = {"ray.io/cluster": "mine"}
NO_SHUTDOWN = {"shutdownAfterJobFinishes": False, "ttlSecondsAfterFinished": 0}


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"backofLimit": 1}, "kuberay.job.backofLimit: no such field"),
        ({"submitterConfig": 3, "deletionStrategy": 3}, "has not KubeRay's type"),
        ({"backoffLimit": -1}, "backoffLimit = -1: must be 0 or more"),
        ({"activeDeadlineSeconds": 0}, "activeDeadlineSeconds = 0: must be above 0"),
        ({"preRunningDeadlineSeconds": 0}, "preRunningDeadlineSeconds = 0: must be above 0"),
        ({"ttlSecondsAfterFinished": -1}, "ttlSecondsAfterFinished = -1: must be 0 or more"),
        ({"shutdownAfterJobFinishes": False}, "ttlSecondsAfterFinished = 600: needs shutdownAfterJobFinishes"),
        ({"suspend": True, **NO_SHUTDOWN}, "suspend = true: needs shutdownAfterJobFinishes"),
        ({"clusterSelector": SELECTOR}, "clusterSelector: a RayJob must have either it or a rayClusterSpec"),
        ({"submissionMode": "Carrier"}, "submissionMode = 'Carrier': must be one of K8sJobMode, HTTPMode, Interactive"),
        ({"backoffLimit": "three"}, "kuberay.job.backoffLimit = 'three': must be a whole number"),
        ({"ttlSecondsAfterFinished": "ten"}, "kuberay.job.ttlSecondsAfterFinished = 'ten': must be a whole number"),
        ({"backoffLimit": True}, "kuberay.job.backoffLimit = True: must be a whole number"),
        ({"suspend": 1}, "kuberay.job.suspend = 1: must be true or false"),
        ({"rayClusterSpec": {"rayVersion": 3}}, "kuberay.cluster.rayVersion = 3: must be a text"),
        ({"submissionMode": "InteractiveMode"}, "backoffLimit = 3: must be 0 with submissionMode InteractiveMode"),
        ({"submissionMode": "SidecarMode"}, "submitterPodTemplate: is not possible with submissionMode SidecarMode"),
        (
            {"submissionMode": "SidecarMode", "submitterPodTemplate": None, "submitterConfig": {"backoffLimit": 1}},
            "submitterConfig: is not possible with submissionMode SidecarMode",
        ),
        ({"deletionStrategy": RULES}, "deletionStrategy.deletionRules: need shutdownAfterJobFinishes = false"),
        ({"deletionStrategy": {**RULES, **PAIR}, **NO_SHUTDOWN}, "must have either deletionRules or onSuccess"),
        ({"deletionStrategy": {"onSuccess": PAIR["onSuccess"]}}, "onSuccess and onFailure must come as a pair"),
        ({"deletionStrategy": {}}, "onSuccess and onFailure must come as a pair"),
        ({"deletionStrategy": PAIR}, "DeleteNone contradicts shutdownAfterJobFinishes"),
    ],
)
def test_what_kuberay_refuses_in_jobs_is_refused_here(job: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refused:
        manifests(make_spec(kuberay={"job": job}))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"headGroupSpecs": {}}, "kuberay.cluster.headGroupSpecs: no such field"),
        ({"rayVersion": "2.51.0"}, "rayVersion = '2.51.0': token authentication of this kind needs 2.52.0"),
        ({"rayVersion": ""}, "rayVersion = '': token authentication"),
        ({"authOptions": {"enableK8sTokenAuth": True}}, "enableK8sTokenAuth: is not possible for jobs"),
        ({"headGroupSpec": {"rayStartParams": {"num-cpus": "2"}}}, "num-cpus = '2': must be \"0\""),
        ({"headGroupSpec": {"resources": {"CPU": "1"}}}, "has resources and rayStartParams num-cpus"),
        ({"headGroupSpec": {"rayStartParams": {"labels": "a=b"}}}, "rayStartParams must hold no labels"),
        ({"headGroupSpec": {"labels": {"a": "b c"}}}, "label a = 'b c': must have the syntax"),
        ({"headGroupSpec": {"labels": {"a": "b" * 64}}}, "63 characters at most"),
        ({"headGroupSpec": {"rayStartParams": {"redis-password": "x"}}}, "must hold no redis-password"),
        ({"headGroupSpec": {"rayStartParams": {"redis-username": "x"}}}, "must hold no redis-username"),
        ({"gcsFaultToleranceOptions": {"backend": "rocksdb", "redisAddress": "r:1"}}, "redisAddress: is not possible"),
        ({"gcsFaultToleranceOptions": {"redisAddress": "r:1", "storage": {}}}, "storage: is for backend rocksdb"),
    ],
)
def test_what_kuberay_refuses_in_clusters_is_refused_here(cluster: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refused:
        manifests(make_spec(kuberay={"cluster": cluster}))
    assert message in str(refused.value)


def test_token_authentication_by_kubernetes_is_for_clusters_of_newer_rays_without_a_secret() -> None:
    options = {"mode": "token", "enableK8sTokenAuth": True}
    manifests(make_spec(kind="cluster", kuberay={"cluster": {"authOptions": options}}))
    for changes, message in (
        ({"ray_version": "2.54.0"}, "needs 2.55.0 or later"),
        ({"token_secret": "ray-token"}, "either secretName or enableK8sTokenAuth"),
        ({"token_auth": False}, "needs mode token"),
    ):
        own = {key: value for key, value in options.items() if key != "mode"}
        with pytest.raises(ValueError, match=message):
            manifests(make_spec(kind="cluster", kuberay={"cluster": {"authOptions": own}}, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "n" * 48}, "name = 'n{48}': a RayJob's must have at most 47"),
        ({"name": "n" * 54, "kind": "cluster"}, "a RayCluster's must have at most 53"),
        ({"name": "Nightly"}, "name = 'Nightly': must be small letters"),
        ({"name": "7days"}, "name = '7days': must be small letters"),
        ({"env": {"RAY_enable_autoscaler_v2": "1"}}, "the autoscaler's version is set by autoscalerOptions.version"),
        ({"env": {"RAY_REDIS_ADDRESS": "r:1"}}, "env.RAY_REDIS_ADDRESS: Redis is named by"),
        ({"secrets": {"REDIS_PASSWORD": "redis/password"}}, "env.REDIS_PASSWORD: Redis is named by"),
        ({"workers__gpu": SPOT_GPUS, "gang": {"scheduler": "kueue", "queue": "q"}}, "Kueue admits a fixed number"),
        (
            {"workers__gpu": SPOT_GPUS, "kuberay": {"job": {"deletionStrategy": WORKERS}}},
            "DeleteWorkers is not possible with the autoscaler",
        ),
    ],
)
def test_what_kuberay_refuses_of_a_spec_is_refused_here(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        manifests(make_spec(**changes))


def cron() -> dict[str, Any]:
    return copy.deepcopy(manifests(load_spec("example"))[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": {"name": "n" * 37}}, "a RayCronJob's must have at most 36"),
        ({"spec": {"schedule": "TZ=UTC 0 2 * * *"}}, "must hold no TZ"),
        ({"spec": {"schedule": "@daily"}}, "must have five fields"),
        ({"metadata": {"labels": {"volcano.sh/queue-name": "q"}}}, "do not get its labels"),
        ({"spec": {"jobTemplate": {"backoffLimit": -1}}}, "backoffLimit = -1"),
    ],
)
def test_cron_jobs_and_the_jobs_in_them_are_checked(change: dict[str, Any], message: str) -> None:
    check_manifest(cron())
    with pytest.raises(ValueError, match=message):
        check_manifest(merged(cron(), change))


def group_of(manifest: dict[str, Any], number: int = 0) -> dict[str, Any]:
    return manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][number]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"minReplicas": None}, "minReplicas and maxReplicas must both be set"),
        ({"minReplicas": 3}, "minReplicas = 3, maxReplicas = 2"),
        ({"minReplicas": -1}, "minReplicas = -1, maxReplicas = 2"),
        ({"idleTimeoutSeconds": 60}, "idleTimeoutSeconds needs the autoscaler's version v2"),
        ({"priority": 1}, "priority needs the autoscaler's version v2"),
        ({"resources": {"CPU": "1"}, "rayStartParams": {"num-gpus": "1"}}, "has resources and rayStartParams num-gpus"),
    ],
)
def test_worker_groups_of_a_fixed_size_are_checked(change: dict[str, Any], message: str) -> None:
    manifest = copy.deepcopy(manifests(make_spec())[-1])
    group_of(manifest).update(change)
    with pytest.raises(ValueError, match=message):
        check_manifest(manifest)


def test_what_scales_has_no_suspended_groups_and_restarts_no_pods() -> None:
    scaling = manifests(make_spec(workers__gpu=SPOT_GPUS))[-1]
    suspended, restarting, head = (copy.deepcopy(scaling) for _ in range(3))
    group_of(suspended)["suspend"] = True
    group_of(restarting, 1)["template"]["spec"]["restartPolicy"] = "Always"
    head["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["restartPolicy"] = "OnFailure"
    for manifest, message in (
        (suspended, "suspend = true: is not possible with the autoscaler"),
        (restarting, "worker group gpu: restartPolicy = Always"),
        (head, "headGroupSpec: restartPolicy = OnFailure"),
    ):
        with pytest.raises(ValueError, match=message):
            check_manifest(manifest)


def test_jobs_on_a_cluster_that_there_is_are_not_begun_again_nor_suspended() -> None:
    job = copy.deepcopy(manifests(make_spec())[-1])
    job["spec"] = {"entrypoint": "x", "clusterSelector": SELECTOR, "shutdownAfterJobFinishes": True}
    check_manifest(job)
    for change, message in (({"backoffLimit": 1}, "must be 0 with a clusterSelector"), ({"suspend": True}, "suspend")):
        with pytest.raises(ValueError, match=message):
            check_manifest(merged(job, {"spec": change}))
    with pytest.raises(ValueError, match="clusterSelector: is not possible with submissionMode SidecarMode"):
        check_manifest(merged(job, {"spec": {"submissionMode": "SidecarMode"}}))


def test_a_sidecar_s_head_is_not_restarted_and_fault_tolerance_has_one_source() -> None:
    job = copy.deepcopy(manifests(make_spec(head__redis={"address": "redis:6379"}))[-1])
    sidecar = copy.deepcopy(job)
    del sidecar["spec"]["submitterPodTemplate"]
    sidecar["spec"]["submissionMode"] = "SidecarMode"
    check_manifest(sidecar)
    sidecar["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["restartPolicy"] = "Always"
    with pytest.raises(ValueError, match="restartPolicy must be Never or unset with submissionMode SidecarMode"):
        check_manifest(sidecar)
    for name in ("ray.io/ft-enabled", "ray.io/external-storage-namespace"):
        with pytest.raises(ValueError, match=f"annotation {name}: contradicts"):
            check_manifest(merged(job, {"metadata": {"annotations": {name: "true"}}}))


def test_a_job_in_kueue_s_queue_begins_suspended() -> None:
    job = manifests(make_spec(gang={"scheduler": "kueue", "queue": "q"}))[-1]
    with pytest.raises(ValueError, match="suspend: must be true for a RayJob"):
        check_manifest(merged(job, {"spec": {"suspend": False}}))


def test_the_fields_that_are_known_are_kuberay_s() -> None:
    assert set(closed_schema("RayJob")["properties"]["spec"]["properties"]) == JOB_FIELDS
    assert set(closed_schema("RayCluster")["properties"]["spec"]["properties"]) == CLUSTER_FIELDS
