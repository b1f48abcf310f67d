"""What a resumed run takes over from its storage, where this machine's event log lacks it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from orchestrator.runs.checkpoint_store import CheckpointStore, NewestAndBest
from orchestrator.runs.lease import Driver, take_over
from orchestrator.runs.location import RunLocation, location_of
from orchestrator.runs.outcome import publish_event_log
from orchestrator.runs.records import continue_event_log, end_record
from orchestrator.runs.resume import RECIPE
from orchestrator.storage import object_store
from workloads.runtime import checkpoint
from workloads.runtime.event_log import EVENT_LOG, EventLog, read_event_log

on_s3 = pytest.mark.parametrize("storage", ["s3"], indirect=True)  # elsewhere than the driver's own files


def on_host(location: RunLocation, home: Path) -> RunLocation:
    """The same run, seen from a host whose own files lie in `home`."""
    return replace(location, folder=home / "r")


def attempt(location: RunLocation, number: int, *, end: bool = True) -> list[tuple[str, int]]:
    """Drive one attempt that records two steps; what its event log holds then."""
    with EventLog(location.event_log) as event_log:
        continue_event_log(event_log, location, {"kind": "run", "number": number})
        publish_event_log(location)
        for step in (1, 2):
            event_log.append({"kind": "metrics", "number": number, "step": step, "values": {}})
        if end:
            event_log.append(end_record("preempted") | {"number": number})
            publish_event_log(location)
    return contents(location)


def contents(location: RunLocation) -> list[tuple[str, int]]:
    return [(record["kind"], record["number"]) for record in read_event_log(location.event_log)]


def whole(number: int) -> list[tuple[str, int]]:
    return [("run", number), ("metrics", number), ("metrics", number), ("end", number)]


@pytest.fixture
def location(storage) -> RunLocation:
    return location_of(storage, "r", "none")


@on_s3
def test_attempts_on_changing_hosts_lose_no_records(location, tmp_path):
    one, other = on_host(location, tmp_path / "one"), on_host(location, tmp_path / "other")
    assert attempt(one, 1) == whole(1)
    assert attempt(other, 2) == whole(1) + whole(2)
    assert attempt(one, 3) == whole(1) + whole(2) + whole(3)
    published = object_store.get_bytes(object_store.join(location.uri, EVENT_LOG))
    assert [json.loads(line)["number"] for line in published.splitlines()] == [1] * 4 + [2] * 4 + [3] * 4


@on_s3
def test_a_lost_event_log_begins_with_the_own_record_and_what_the_checkpoint_carries(location, tmp_path):
    claim = take_over(location.uri, Driver())
    carried = tmp_path / EVENT_LOG
    carried.write_text(json.dumps({"kind": "start", "number": 1}) + "\n")
    folder = checkpoint.write(
        tmp_path / "step-00000001-attempt-1",
        tensors={"cnn": {"w": torch.ones(1)}},
        state={"best_for": {}},
        files={EVENT_LOG: carried},
    )
    CheckpointStore(claim, retention=NewestAndBest(1), patience_s=0).publish(folder)
    assert attempt(on_host(location, tmp_path / "new"), 2)[:3] == [("run", 2), ("start", 1), ("metrics", 2)]


def test_runs_of_one_id_in_two_buckets_share_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    one, other = (location_of(f"s3://{bucket}/runs", "r", "") for bucket in ("a", "b"))
    assert one.folder == tmp_path / ".cache/antiphon/runs/s3/a/runs/r"
    assert one.folder != other.folder
    assert one.tracking == other.tracking
    with pytest.raises(ValueError, match=r"storage 's3://a/../b': must not contain '\.\.'"):
        location_of("s3://a/../b", "r", "")


@on_s3
def test_a_new_run_does_not_begin_with_the_records_of_an_emptied_storage(storage, tmp_path):
    location = on_host(location_of(storage, "r", "none"), tmp_path)
    location.require_new(RECIPE)
    EventLog(location.event_log).close()
    with pytest.raises(ValueError, match="event log of another run called so; choose another id, or move"):
        location.require_new(RECIPE)
    object_store.put_text(object_store.join(location.uri, RECIPE), "{}")
    location.require_new(RECIPE)  # it exists in the storage: whether it may be created is decided there
