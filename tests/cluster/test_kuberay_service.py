"""A RayService: valid for KubeRay, for Ray Serve and for the application; only ready pods get requests."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from cluster.kuberay import manifests
from cluster.kuberay_service import IMPORT_PATH
from cluster.render import render
from orchestrator.serving.options import APPLICATION, REQUEST_S, ServeOptions
from tests.cluster.crds import mistakes
from tests.cluster.specs import SERVE, make_spec

SCALED = {**SERVE, "min": 1, "max": 3, "cpus": 2, "max_seconds": 60, "queued": 100}
# Ray Serve's own schema of its configuration, and the application that it names, in a process: tests import no Ray
CHECK = """
import json, sys
from ray.serve.schema import ServeDeploySchema
from ray._common.utils import import_attr
schema = ServeDeploySchema.model_validate(json.load(sys.stdin))
(application,) = schema.applications
built = import_attr(application.import_path)(application.args)
config = built._bound_deployment._deployment_config
print(json.dumps([schema.http_options.host, schema.http_options.port, application.name,
    config.max_queued_requests, config.max_ongoing_requests, config.backpressure_config.status_code,
    config.autoscaling_config.min_replicas, config.autoscaling_config.max_replicas,
    built._bound_deployment._replica_config.ray_actor_options]))
"""


def service(**changes: Any) -> dict[str, Any]:
    return manifests(make_spec(kind="service", work=None, serve=SCALED, **changes))[-1]


KEPT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


@pytest.mark.parametrize(
    ("pod", "variables"),
    [
        ({}, KEPT),
        ({"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}, KEPT),
        ({"MALLOC_ARENA_MAX": "4"}, {}),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_max=0"}, {}),
    ],
)
def test_ray_serve_takes_the_configuration_and_builds_the_application(
    pod: dict[str, str], variables: dict[str, str]
) -> None:
    """Replicas keep freed memory, unless the environment of their pods says how memory is to be kept."""
    config = yaml.safe_load(service()["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    assert "runtime_env" not in application, "the environment of the machine that renders is not the pods'"
    others = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        input=json.dumps(config),
        env=others | pod,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *values, actor = json.loads(done.stdout.splitlines()[-1])
    assert values == ["0.0.0.0", 8000, APPLICATION, 100, 16, 503, 1, 3]
    assert actor == {"num_cpus": 2, "runtime_env": {"env_vars": variables}}


def test_the_arguments_are_the_options_of_antiphon_serve() -> None:
    config = yaml.safe_load(service()["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    options = TypeAdapter(ServeOptions).validate_python(application["args"])
    assert options == ServeOptions(
        models=SERVE["models"], replicas=1, max_replicas=3, threads=2, max_seconds=60, queued=100
    )
    assert config["http_options"]["request_timeout_s"] == REQUEST_S
    assert IMPORT_PATH.endswith(":build")


def test_only_workers_whose_proxy_is_ready_get_requests() -> None:
    spec = service()["spec"]
    assert spec["excludeHeadPodFromServeSvc"] is True
    worker = spec["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert {"name": "serve", "containerPort": 8000} in worker["ports"]
    probe = worker["readinessProbe"]
    assert "http://localhost:8000/-/healthz" in probe["exec"]["command"][-1]
    assert probe["failureThreshold"] == 1
    assert "8000" not in worker["livenessProbe"]["exec"]["command"][-1]
    head = spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert "8000" not in head["readinessProbe"]["exec"]["command"][-1]


@pytest.mark.parametrize(
    ("namespace", "source"),
    [
        ("", {"podSelector": {}}),
        ("apps", {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "apps"}}}),
    ],
)
def test_clients_are_let_in(namespace: str, source: dict[str, Any]) -> None:
    serve = {**SERVE, "clients_namespace": namespace}
    policy, manifest = manifests(make_spec(kind="service", work=None, serve=serve, network={}))
    assert manifest["kind"] == "RayService"
    assert policy["spec"]["ingress"][-1] == {"from": [source], "ports": [{"protocol": "TCP", "port": 8000}]}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"upgradeStrategy": {"type": "Sometimes"}},
            "upgradeStrategy.type = Sometimes: must be one of None, NewCluster",
        ),
        (
            {"upgradeStrategy": {"type": "NewClusterWithIncrementalUpgrade"}},
            "upgradeStrategy.clusterUpgradeOptions.stepSizePercent: is needed for NewClusterWithIncrementalUpgrade",
        ),
        ({"rayClusterDeletionDelaySeconds": -1}, "rayClusterDeletionDelaySeconds = -1: must be 0 or more"),
        ({"serveConfig": "x"}, "kuberay.service.serveConfig: no such field of KubeRay's"),
        (
            {"rayClusterConfig": {"headGroupSpec": {"headService": {"metadata": {"name": "x"}}}}},
            "headGroupSpec.headService.metadata.name: must not be set in a RayService",
        ),
    ],
)
def test_kuberay_s_own_rules(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem.replace(".", "[.]")):
        service(kuberay={"service": changes})


def test_a_field_of_kuberay_s_is_merged_over_it() -> None:
    manifest = service(kuberay={"service": {"rayClusterDeletionDelaySeconds": 120}})
    assert manifest["spec"]["rayClusterDeletionDelaySeconds"] == 120
    assert mistakes("RayService", manifest) == []


def test_the_name_leaves_room_for_the_cluster_s() -> None:
    with pytest.raises(ValueError, match="a RayService's must have at most 47 characters"):
        service(name="a" * 48)


@pytest.mark.parametrize("target", ["autoscaler", "slurm"])
def test_other_targets_serve_nothing(target: str) -> None:
    with pytest.raises(ValueError, match="kind = 'service': "):
        render(make_spec(kind="service", work=None, serve=SERVE), target)
