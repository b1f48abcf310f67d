"""Ceph RGW as the stack starts it: credentials are checked, the second of two creates fails, kill -9 loses nothing."""

import os
import re
import signal
import subprocess
import sys
from typing import Any

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError

from cluster import ceph
from cluster.process_registry import ProcessRegistry
from cluster.processes import state, wait_until_up


def client(server: Any, *, secret: str | None = None) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=secret or server.env["AWS_SECRET_ACCESS_KEY"],
        region_name=server.env["AWS_DEFAULT_REGION"],
    )


def test_no_command_line_held_a_key(rgw_server: Any) -> None:
    commands = (rgw_server.folder / "command-lines").read_text()
    assert "user create --uid antiphon" in commands
    keyrings = "".join(path.read_text() for path in (rgw_server.folder / "rgw").glob("*.keyring"))
    keys = [rgw_server.env["AWS_SECRET_ACCESS_KEY"], *re.findall(r"key = (\S+)", keyrings)]
    assert len(set(keys)) >= 6  # of the S3 user, the administrator, monitor, manager, OSD and gateway
    assert [key for key in keys if key in commands] == []


def test_a_wrong_secret_is_refused_and_the_second_create_fails(rgw_server: Any) -> None:
    s3 = client(rgw_server)
    s3.create_bucket(Bucket="exclusive")
    s3.put_object(Bucket="exclusive", Key="marker", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket="exclusive", Key="marker", Body=b"second", IfNoneMatch="*")
    assert s3.get_object(Bucket="exclusive", Key="marker")["Body"].read() == b"first"
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client(rgw_server, secret="wrong").get_object(Bucket="exclusive", Key="marker")


def test_objects_survive_kill_9_of_all_daemons(rgw_server: Any) -> None:
    s3 = client(rgw_server)
    s3.create_bucket(Bucket="lasting")
    body = os.urandom(1 << 20)
    s3.put_object(Bucket="lasting", Key="object", Body=body)
    registry = ProcessRegistry(rgw_server.folder)
    assert set(registry.services) == {"s3-mon", "s3-mgr", "s3-osd", "s3"}
    daemons = [psutil.Process(service.pid) for service in registry.services.values()]
    for daemon in daemons:
        daemon.kill()
    psutil.wait_procs(daemons, timeout=10)
    assert {state(service) for service in registry.services.values()} == {"dead"}

    wait_until_up(ceph.start(registry), deadline_s=60)
    assert registry.services["s3"].address == rgw_server.endpoint
    assert client(rgw_server).get_object(Bucket="lasting", Key="object")["Body"].read() == body


def test_a_store_of_teacher_outputs_is_filled_by_two_processes_of_which_one_is_killed(rgw_server: Any) -> None:
    """The store is what one process makes undisturbed; in processes of their own: s3fs keeps its first credentials."""
    client(rgw_server).create_bucket(Bucket="outputs")
    killed = "stores.fill(uri, stores.about(k=3), clips, most=2); os.kill(os.getpid(), signal.SIGKILL)"
    whole = "stores.fill(uri, stores.about(k=3), clips); print(inspect.verify_store(uri)); print(file_sizes(uri))"

    def run(name: str, what: str) -> subprocess.CompletedProcess[str]:
        lines = [
            "import os, signal",
            "from orchestrator.storage.object_store import file_sizes",
            "from orchestrator.stores import inspect",
            "from tests import stores",
            f"uri, clips = 's3://outputs/{name}', [f'clip-{{number:02}}' for number in range(11)]",
            what,
        ]
        env = {**os.environ, **rgw_server.env}
        return subprocess.run([sys.executable, "-c", "\n".join(lines)], env=env, capture_output=True, text=True)

    assert run("one", killed).returncode == -signal.SIGKILL
    first, second = run("one", whole), run("two", whole)
    assert first.stdout.startswith("Verified(shards=3, rows=22, damaged=(), foreign=())"), first.stderr
    assert first.stdout == second.stdout, "the names of files have the SHA-256 of their content"
