"""Fixtures for tests of what runs leave: storages, and drivers of runs."""

import json
import subprocess
import sys

import pytest

from orchestrator.runs.lease import Driver


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path, monkeypatch) -> str:
    if request.param == "local":
        return str(tmp_path / "runs")
    server = request.getfixturevalue("s3_server")
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{tmp_path.name.replace('_', '-').lower()}"
    server.client().create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs"


@pytest.fixture(scope="session")
def ended_driver() -> Driver:
    """The driver of a process of this machine that has ended without a note."""
    script = "import json; from dataclasses import asdict; from orchestrator.runs.lease import Driver; "
    done = subprocess.run(
        [sys.executable, "-c", script + "print(json.dumps(asdict(Driver())))"], capture_output=True, check=True
    )
    return Driver(**json.loads(done.stdout))
