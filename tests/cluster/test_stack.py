"""The local stack with real Ray and MLflow: started by a command that ends, used, killed, restarted, stopped."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import stack
from cluster.process_registry import is_free
from cluster.processes import Service, is_running, processes_of

ROOT = Path(__file__).parents[2]
CLIENT = """
import os, ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
print(ray.get(ray.remote(num_cpus=1)(lambda x: x * 7).remote(6)), int(ray.cluster_resources()["CPU"]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("stack")
    yield folder
    stack.down(folder)


@pytest.fixture
def running(folder: Path) -> stack.Stack:
    """The stack, up; the first time by the command line, in a process that ends before the tests begin."""
    if not stack.status(folder):
        run = "from orchestrator.cli.cluster import app; app()"
        options = ["--cpus", "1", "--s3", "moto", "--folder", str(folder), "--json"]
        started = subprocess.run([sys.executable, "-c", run, "up", *options], cwd=ROOT, capture_output=True, text=True)
        assert started.returncode == 0, started.stderr
        assert json.loads(started.stdout.splitlines()[-1])["launched"] == ["s3", "ray", "mlflow"]
    return stack.up(folder)


def names_by_state(folder: Path) -> dict[str, str]:
    return {service.name: state for service, state in stack.status(folder)}


def pids(services: tuple[Service, ...]) -> dict[str, int]:
    return {service.name: service.pid for service in services}


def test_a_client_with_the_stacks_environment_runs_a_task(running: stack.Stack) -> None:
    environment = {**os.environ, **stack.client_environment(running)}
    command = [sys.executable, "-c", CLIENT, running.ray_address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["42", "1"], done.stderr


def test_the_token_is_required_and_only_its_owner_may_read_it(running: stack.Stack) -> None:
    environment = stack.client_environment(running)
    token = Path(environment["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600
    assert (running.folder / "stack.json").stat().st_mode & 0o777 == 0o600
    gcs_probe = next(probe for service in running.services for probe in service.probes if probe.endswith("gcs_healthz"))
    status_url = gcs_probe.replace("gcs_healthz", "cluster_status")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(status_url, timeout=10)
    request = urllib.request.Request(status_url, headers={"Authorization": f"Bearer {token.read_text()}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.status == 200


def test_mlflow_and_s3_answer_at_the_addresses_of_the_environment(running: stack.Stack) -> None:
    environment = stack.client_environment(running)
    with urllib.request.urlopen(f"{environment['MLFLOW_TRACKING_URI']}/health", timeout=10) as health:
        assert health.read() == b"OK"
    with urllib.request.urlopen(environment["AWS_ENDPOINT_URL"], timeout=10) as listing:
        assert b"ListAllMyBucketsResult" in listing.read()
    assert environment["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"


def test_up_on_a_running_stack_starts_nothing_and_refuses_other_settings(running: stack.Stack) -> None:
    again = stack.up(running.folder, cpus=1, s3="moto")
    assert again.launched == ()
    assert pids(again.services) == pids(running.services)
    with pytest.raises(ValueError, match=r"ray: requested with cpus = 2, .* has it with cpus = 1"):
        stack.up(running.folder, cpus=2)


def test_only_the_killed_service_is_restarted_at_its_old_address(running: stack.Stack) -> None:
    before = {service.name: service for service in running.services}
    killed = psutil.Process(before["s3"].pid)
    killed.kill()
    psutil.wait_procs([killed], timeout=5)
    assert names_by_state(running.folder) == {"ray": "up", "mlflow": "up", "s3": "dead"}

    restarted = stack.up(running.folder)
    assert restarted.launched == ("s3",)
    after = {service.name: service for service in restarted.services}
    assert after["s3"].address == before["s3"].address
    assert {name: after[name].pid for name in ("ray", "mlflow")} == {
        name: before[name].pid for name in ("ray", "mlflow")
    }
    assert set(names_by_state(running.folder).values()) == {"up"}


def test_down_ends_every_process_of_the_stack_and_no_other(running: stack.Stack) -> None:
    look_alike = [sys.executable, "-c", "input()", "-m", "ray.scripts.scripts", "start", "--head", "mlflow", "raylet"]
    processes = [process for service in running.services for process in processes_of(service)]
    assert len(processes) > 10  # a Ray head alone is a dozen
    with subprocess.Popen(look_alike, stdin=subprocess.PIPE) as other:
        assert stack.down(running.folder) == ("mlflow", "ray", "s3")
        assert other.poll() is None
        other.kill()
    assert not any(is_running(process) for process in processes)
    assert all(is_free(port) for service in running.services for port in service.ports)
    assert not any(Path(service.scratch).exists() for service in running.services)
    assert stack.status(running.folder) == ()
    assert stack.down(running.folder) == ()
