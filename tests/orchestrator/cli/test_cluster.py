"""`antiphon cluster` by its exit codes and output, with one small process as the stack; the real one: test_stack.py."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.process_registry import ProcessRegistry, ServiceSpec
from cluster.processes import stop
from orchestrator.cli.cluster import app

run = CliRunner()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A stack folder that records one running service."""
    spec = ServiceSpec(command=[sys.executable, "-c", "import signal; signal.pause()"], address="nowhere:1")
    service = ProcessRegistry(tmp_path).ensure("sleeper", lambda ports, scratch: spec, num_ports=0, settings={})
    yield tmp_path
    stop(service)


def test_status_without_a_stack_fails_and_prints_how_to_start_one(tmp_path: Path) -> None:
    result = run.invoke(app, ["status", "--folder", str(tmp_path)])
    assert result.exit_code == 1
    assert "antiphon cluster up" in result.stderr
    as_json = run.invoke(app, ["status", "--folder", str(tmp_path), "--json"])
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout) == {"folder": str(tmp_path), "up": False, "services": []}


def test_status_then_down_then_down_again(folder: Path) -> None:
    status = run.invoke(app, ["status", "--folder", str(folder)])
    assert status.exit_code == 0
    assert "sleeper" in status.stdout
    assert "nowhere:1" in status.stdout
    as_json = json.loads(run.invoke(app, ["status", "--folder", str(folder), "--json"]).stdout)
    assert as_json["up"]
    assert [(record["name"], record["state"]) for record in as_json["services"]] == [("sleeper", "up")]

    for stopped in (["sleeper"], []):
        down = run.invoke(app, ["down", "--folder", str(folder), "--json"])
        assert down.exit_code == 0
        assert json.loads(down.stdout) == {"folder": str(folder), "stopped": stopped}


def test_a_dead_service_makes_status_fail(folder: Path) -> None:
    stop(ProcessRegistry(folder).services["sleeper"])
    result = run.invoke(app, ["status", "--folder", str(folder), "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["services"][0]["state"] == "dead"


def test_up_with_an_unknown_s3_server_is_the_users_mistake(tmp_path: Path) -> None:
    result = run.invoke(app, ["up", "--s3", "minio", "--folder", str(tmp_path)])
    assert isinstance(result.exception, ValueError)  # `main` turns it into exit code 2
    assert "moto, rgw" in str(result.exception)
