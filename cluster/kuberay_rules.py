"""KubeRay's own rules, which the schemas of its custom resources miss (reference/ray.md 5 and 8.8).

The operator refuses what breaks them only after `kubectl apply` has taken it. Reads manifests as plain values.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.spec_nodes import LABEL, LABEL_KEY

# The cluster of a RayJob or RayService is called like it with 6 characters more, and the longest service of a cluster
# with 10 more; a RayCronJob's jobs with 11 more.
MAX_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 36}
NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")  # a DNS label of RFC 1035
RESOURCE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")
KUEUE, VOLCANO = "kueue.x-k8s.io/queue-name", "volcano.sh/queue-name"
AUTOSCALER_V2 = "RAY_enable_autoscaler_v2"
TOKEN_SINCE, RBAC_SINCE, PRIORITY_SINCE = (2, 52, 0), (2, 55, 0), (2, 56, 0)
UPGRADES = ("None", "NewCluster", "NewClusterWithIncrementalUpgrade")
# All fields of the three, since both the operator and the API server drop others in silence.
JOB_FIELDS = frozenset(
    [
        "activeDeadlineSeconds",
        "backoffLimit",
        "clusterSelector",
        "deletionStrategy",
        "entrypoint",
        "entrypointNumCpus",
        "entrypointNumGpus",
        "entrypointResources",
        "jobId",
        "managedBy",
        "metadata",
        "preRunningDeadlineSeconds",
        "rayClusterSpec",
        "runtimeEnvYAML",
        "shutdownAfterJobFinishes",
        "submissionMode",
        "submitterConfig",
        "submitterPodTemplate",
        "suspend",
        "ttlSecondsAfterFinished",
    ]
)
CLUSTER_FIELDS = frozenset(
    [
        "authOptions",
        "autoscalerOptions",
        "enableInTreeAutoscaling",
        "gcsFaultToleranceOptions",
        "headGroupSpec",
        "headServiceAnnotations",
        "historyServerOptions",
        "managedBy",
        "networkPolicy",
        "rayVersion",
        "suspend",
        "tlsOptions",
        "upgradeStrategy",
        "workerGroupSpecs",
    ]
)


SERVICE_FIELDS = frozenset(
    [
        "deploymentUnhealthySecondThreshold",
        "excludeHeadPodFromServeSvc",
        "managedBy",
        "rayClusterConfig",
        "rayClusterDeletionDelaySeconds",
        "serveConfigV2",
        "serveService",
        "serviceUnhealthySecondThreshold",
        "suspend",
        "upgradeStrategy",
    ]
)


# of the fields that are compared below; KubeRay's definitions say the rest
TYPES: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("backoffLimit", "ttlSecondsAfterFinished"), (int, "a whole number")),
    **dict.fromkeys(("activeDeadlineSeconds", "preRunningDeadlineSeconds"), (int, "a whole number")),
    **dict.fromkeys(("suspend", "shutdownAfterJobFinishes", "enableInTreeAutoscaling"), (bool, "true or false")),
    **dict.fromkeys(("submissionMode", "entrypoint", "rayVersion"), (str, "a text")),
}
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raise ValueError for the first rule that one of KubeRay's objects breaks: value, rule and fix."""
    try:
        problem = next(_problems(manifest), "")
    except (TypeError, AttributeError, KeyError) as error:  # what a user has merged over it has another shape
        problem = f"kuberay: a field that is merged over the manifest has not KubeRay's type: {error!r}"
    if problem:
        raise ValueError(problem)


def _problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    kind, spec, metadata = manifest["kind"], manifest["spec"], manifest["metadata"]
    yield from _name_problems(kind, metadata["name"])
    job = {"RayJob": spec, "RayCronJob": spec.get("jobTemplate")}.get(kind)
    cluster = {"RayCluster": spec, "RayService": spec.get("rayClusterConfig")}.get(kind)
    cluster = job.get("rayClusterSpec") if job is not None else cluster
    if kind == "RayService":
        yield from _field_problems(spec, SERVICE_FIELDS, "kuberay.service")
        yield from _service_problems(spec)
    if kind == "RayCronJob":
        yield from _cron_problems(manifest)
    if job is not None:
        yield from _field_problems(job, JOB_FIELDS, "kuberay.job")
        yield from _job_problems(job)
        yield from _submission_problems(job)
        yield from _deletion_problems(job)
    if KUEUE in metadata.get("labels", {}):
        yield from _kueue_problems(kind, spec, cluster)
    if cluster is not None:
        yield from _field_problems(cluster, CLUSTER_FIELDS, "kuberay.cluster")
        yield from _head_problems(cluster)
        yield from _group_problems(cluster)
        yield from _autoscaler_problems(cluster)
        yield from _auth_problems(cluster, is_job=job is not None)
        yield from _fault_tolerance_problems(cluster, metadata.get("annotations", {}))


def _field_problems(values: Mapping[str, Any], known: frozenset[str], where: str) -> Iterator[str]:
    for name in values:
        if name not in known:
            yield f"{where}.{name}: no such field of KubeRay's; the fields are {', '.join(sorted(known))}"
    for name, (kind, in_words) in TYPES.items():
        value = values.get(name)
        if value is not None and type(value) is not kind:  # of Python's booleans each is a whole number too
            yield f"{where}.{name} = {value!r}: must be {in_words}"


def _name_problems(kind: str, name: str) -> Iterator[str]:
    if len(name) > MAX_NAME[kind]:
        yield f"name = {name!r}: a {kind}'s must have at most {MAX_NAME[kind]} characters; shorten it"
    if not NAME.fullmatch(name):
        yield f"name = {name!r}: must be small letters, digits and '-', a letter first and no '-' last"


def _cron_problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    schedule = manifest["spec"]["schedule"]
    if "TZ" in schedule:
        yield f"schedule = {schedule!r}: must hold no TZ; the time zone is a field of its own"
    if len(schedule.split()) != 5:
        yield f"schedule = {schedule!r}: must have five fields, as '0 2 * * *'"
    if {KUEUE, VOLCANO} & {*manifest["metadata"].get("labels", {})}:
        yield (
            "gang: the jobs of a RayCronJob do not get its labels, so no queue would see them; leave gang out, or use "
            "kind job"
        )


def _job_problems(job: Mapping[str, Any]) -> Iterator[str]:
    selector = job.get("clusterSelector")
    if bool(selector) == ("rayClusterSpec" in job):
        yield "clusterSelector: a RayJob must have either it or a rayClusterSpec; keep one of them"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if name in job and job[name] <= 0:
            yield f"{name} = {job[name]}: must be above 0; leave it out for none"
    for name in ("backoffLimit", "ttlSecondsAfterFinished"):
        if job.get(name, 0) < 0:
            yield f"{name} = {job[name]}: must be 0 or more"
    if job.get("suspend") and not job.get("shutdownAfterJobFinishes"):
        yield "suspend = true: needs shutdownAfterJobFinishes = true; set it"
    if job.get("suspend") and selector:
        yield "suspend = true: is not possible with a clusterSelector; remove one of them"
    if job.get("ttlSecondsAfterFinished") and not job.get("shutdownAfterJobFinishes"):
        yield (
            f"ttlSecondsAfterFinished = {job['ttlSecondsAfterFinished']}: needs shutdownAfterJobFinishes = true; set "
            "it, or set the time to 0"
        )
    if job.get("backoffLimit") and selector:
        yield f"backoffLimit = {job['backoffLimit']}: must be 0 with a clusterSelector, whose cluster is not replaced"


def _service_problems(service: Mapping[str, Any]) -> Iterator[str]:
    strategy = service.get("upgradeStrategy", {})
    if (upgrade := strategy.get("type", "NewCluster")) not in UPGRADES:
        yield f"upgradeStrategy.type = {upgrade}: must be one of {', '.join(UPGRADES)}"
    if upgrade == "NewClusterWithIncrementalUpgrade":
        options = strategy.get("clusterUpgradeOptions", {})
        needed = [name for name in ("stepSizePercent", "intervalSeconds", "gatewayClassName") if not options.get(name)]
        if needed:
            yield f"upgradeStrategy.clusterUpgradeOptions.{needed[0]}: is needed for {upgrade}; add it"
        if not service["rayClusterConfig"].get("enableInTreeAutoscaling"):
            yield f"upgradeStrategy.type = {upgrade}: needs the autoscaler; set max above min for a group"
    if service.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield f"rayClusterDeletionDelaySeconds = {service['rayClusterDeletionDelaySeconds']}: must be 0 or more"
    if service["rayClusterConfig"]["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"):
        yield "headGroupSpec.headService.metadata.name: must not be set in a RayService, which names it; remove it"


def _submission_problems(job: Mapping[str, Any]) -> Iterator[str]:
    mode = job.get("submissionMode", "K8sJobMode")
    if mode not in SUBMISSION_MODES:
        yield f"kuberay.job.submissionMode = {mode!r}: must be one of {', '.join(SUBMISSION_MODES)}"
    if mode == "InteractiveMode" and job.get("backoffLimit"):
        yield f"backoffLimit = {job['backoffLimit']}: must be 0 with submissionMode InteractiveMode"
    if mode == "SidecarMode":
        for name in ("clusterSelector", "submitterPodTemplate", "submitterConfig"):
            if job.get(name):
                yield f"{name}: is not possible with submissionMode SidecarMode; remove it, or use K8sJobMode"
        if _restart_policy(job["rayClusterSpec"]["headGroupSpec"]) not in ("", "Never"):
            yield "headGroupSpec: restartPolicy must be Never or unset with submissionMode SidecarMode"


def _deletion_problems(job: Mapping[str, Any]) -> Iterator[str]:
    strategy = job.get("deletionStrategy")
    if strategy is None:
        return
    rules, pair = strategy.get("deletionRules"), [strategy.get("onSuccess"), strategy.get("onFailure")]
    if rules and job.get("shutdownAfterJobFinishes"):
        yield "deletionStrategy.deletionRules: need shutdownAfterJobFinishes = false and ttlSecondsAfterFinished = 0"
    if rules and any(pair):
        yield "deletionStrategy: must have either deletionRules or onSuccess and onFailure; remove one of the two"
    if not rules and not all(pair):
        yield "deletionStrategy: onSuccess and onFailure must come as a pair; add the other one"
    policies = [each["policy"] for each in [*(rules or []), *filter(None, pair)]]
    if "DeleteWorkers" in policies and job.get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
        yield "deletionStrategy: DeleteWorkers is not possible with the autoscaler; use DeleteCluster"
    if "DeleteNone" in policies and all(pair) and job.get("shutdownAfterJobFinishes"):
        yield "deletionStrategy: DeleteNone contradicts shutdownAfterJobFinishes = true; set that to false"


def _kueue_problems(kind: str, spec: Mapping[str, Any], cluster: Mapping[str, Any] | None) -> Iterator[str]:
    if not spec.get("suspend"):
        yield f"suspend: must be true for a {kind} in a queue of Kueue, which resumes it; set it"
    if cluster and cluster.get("enableInTreeAutoscaling"):
        yield "gang: Kueue admits a fixed number of nodes; set min = max for every group, or use volcano"


def _head_problems(cluster: Mapping[str, Any]) -> Iterator[str]:
    head = cluster["headGroupSpec"]
    yield from _resource_and_label_problems("headGroupSpec", head)
    cpus = head.get("rayStartParams", {}).get("num-cpus")
    if cpus != "0":
        yield f'headGroupSpec: rayStartParams num-cpus = {cpus!r}: must be "0", so that no task runs beside the driver'


def _group_problems(cluster: Mapping[str, Any]) -> Iterator[str]:
    scales = cluster.get("enableInTreeAutoscaling", False)
    v2 = scales and cluster.get("autoscalerOptions", {}).get("version") == "v2"
    for group in cluster.get("workerGroupSpecs", ()):
        where = f"worker group {group['groupName']}"
        yield from _resource_and_label_problems(where, group)
        low, high = group.get("minReplicas"), group.get("maxReplicas")
        if not scales and (low is None or high is None):
            yield f"{where}: without the autoscaler minReplicas and maxReplicas must both be set; add them"
        if low is not None and high is not None and not 0 <= low <= high:
            yield f"{where}: minReplicas = {low}, maxReplicas = {high}: must be 0 or more, and the first not larger"
        if group.get("suspend") and scales:
            yield f"{where}: suspend = true: is not possible with the autoscaler; remove one of them"
        if group.get("idleTimeoutSeconds") is not None and not v2:
            yield f"{where}: idleTimeoutSeconds needs the autoscaler's version v2; set autoscalerOptions.version"
        if group.get("priority") and not (v2 and _version(cluster) >= PRIORITY_SINCE):
            yield f"{where}: priority needs the autoscaler's version v2 and rayVersion 2.56 or later"


def _resource_and_label_problems(where: str, group: Mapping[str, Any]) -> Iterator[str]:
    params = group.get("rayStartParams", {})
    given = [name for name in RESOURCE_PARAMS if params.get(name)]
    if given and group.get("resources"):
        yield f"{where}: has resources and rayStartParams {given[0]}; give resources in one of the two only"
    if "labels" in params:
        yield f"{where}: rayStartParams must hold no labels; use the group's own labels"
    for key, value in group.get("labels", {}).items():
        if not LABEL_KEY.fullmatch(key) or not LABEL.fullmatch(value):
            yield f"{where}: label {key} = {value!r}: must have the syntax of Kubernetes' labels, 63 characters at most"


def _autoscaler_problems(cluster: Mapping[str, Any]) -> Iterator[str]:
    version = cluster.get("autoscalerOptions", {}).get("version")
    by_variable = [each for each in _head_environment(cluster) if each["name"] == AUTOSCALER_V2]
    if by_variable:
        yield f"env.{AUTOSCALER_V2}: the autoscaler's version is set by autoscalerOptions.version; remove the variable"
    if cluster.get("enableInTreeAutoscaling") and version == "v2":
        for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())):
            if (policy := _restart_policy(group)) not in ("", "Never"):
                where = f"worker group {group['groupName']}" if "groupName" in group else "headGroupSpec"
                yield f"{where}: restartPolicy = {policy}: must be Never or unset with the autoscaler's version v2"


def _auth_problems(cluster: Mapping[str, Any], *, is_job: bool) -> Iterator[str]:
    options = cluster.get("authOptions", {})
    token, rbac = options.get("mode") == "token", options.get("enableK8sTokenAuth")
    since = RBAC_SINCE if rbac else TOKEN_SINCE
    if token and _version(cluster) < since:
        needed = ".".join(map(str, since))
        yield f"rayVersion = {cluster.get('rayVersion')!r}: token authentication of this kind needs {needed} or later"
    if rbac and not token:
        yield "authOptions.enableK8sTokenAuth: needs mode token; set it"
    if rbac and options.get("secretName"):
        yield "authOptions: must have either secretName or enableK8sTokenAuth; remove one of them"
    if rbac and is_job:
        yield "authOptions.enableK8sTokenAuth: is not possible for jobs; use a secret with the token"


def _fault_tolerance_problems(cluster: Mapping[str, Any], annotations: Mapping[str, str]) -> Iterator[str]:
    options = cluster.get("gcsFaultToleranceOptions")
    params = cluster["headGroupSpec"].get("rayStartParams", {})
    variables = {each["name"] for each in _head_environment(cluster)}
    for name in ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"):
        if name in variables:
            yield f"env.{name}: Redis is named by gcsFaultToleranceOptions alone (head.redis); remove the variable"
    for name in ("redis-password", "redis-username"):
        if params.get(name):
            yield f"headGroupSpec: rayStartParams must hold no {name}; use gcsFaultToleranceOptions"
    if options is None:
        return
    for name in ("ray.io/ft-enabled", "ray.io/external-storage-namespace"):
        if annotations.get(name):
            yield f"annotation {name}: contradicts gcsFaultToleranceOptions; remove it"
    redis = [name for name in options if name.startswith("redis") or name == "externalStorageNamespace"]
    if options.get("backend") == "rocksdb" and redis:
        yield f"gcsFaultToleranceOptions.{redis[0]}: is not possible with backend rocksdb; remove one of them"
    if options.get("backend", "redis") == "redis" and "storage" in options:
        yield "gcsFaultToleranceOptions.storage: is for backend rocksdb; remove it"


def _head_environment(cluster: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return cluster["headGroupSpec"]["template"]["spec"]["containers"][0].get("env", [])


def _restart_policy(group: Mapping[str, Any]) -> str:
    return group["template"]["spec"].get("restartPolicy", "")


def _version(cluster: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", cluster.get("rayVersion", ""))[:3])
