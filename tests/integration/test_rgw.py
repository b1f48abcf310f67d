"""Ceph RGW as the stack starts it: credentials are checked, the second of two creates fails, kill -9 loses nothing."""

import os
import re
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
