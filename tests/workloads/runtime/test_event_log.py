"""The event log keeps every complete record, also when a writer is killed."""

import json
import os
import re
import time
from pathlib import Path

import pytest

from orchestrator.storage import object_store
from workloads.runtime.event_log import EventLog, end_of, read_event_log


def test_records_are_read_back_in_order_with_the_time_of_their_event(tmp_path: Path) -> None:
    before = time.time_ns() // 1_000_000
    with EventLog(tmp_path / "new" / "events.jsonl") as event_log:
        event_log.append({"kind": "metrics", "step": 10, "values": {"cnn/loss": 0.5}})
        event_log.append({"kind": "end", "status": "done", "error": "é\nx"})
    after = time.time_ns() // 1_000_000
    first, second = read_event_log(tmp_path / "new" / "events.jsonl")
    assert first.pop("t") <= second.pop("t") <= after
    assert first == {"kind": "metrics", "step": 10, "values": {"cnn/loss": 0.5}}
    assert second == {"kind": "end", "status": "done", "error": "é\nx"}
    assert before <= read_event_log(tmp_path / "new" / "events.jsonl")[0]["t"]


def test_a_record_can_be_read_before_the_event_log_is_closed(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as event_log:
        event_log.append({"kind": "metrics", "step": 0, "values": {}})
        assert len(read_event_log(event_log.path)) == 1


def test_a_torn_last_line_is_left_out_then_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as event_log:
        event_log.append({"kind": "metrics", "step": 0, "values": {}})
    complete = path.read_bytes()
    path.write_bytes(complete + b'{"kind": "metr')
    assert [record["step"] for record in read_event_log(path)] == [0]
    with EventLog(path) as event_log:
        event_log.append({"kind": "metrics", "step": 10, "values": {}})
    assert path.read_bytes().startswith(complete)
    assert [record["step"] for record in read_event_log(path)] == [0, 10]


def test_the_message_names_an_invalid_line_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps({"kind": "end"}) + "\n\0\0\0\n" + json.dumps({"kind": "end"}) + "\n")
    with pytest.raises(ValueError, match=r"events\.jsonl, line 2: is not JSON .*; delete that line"):
        read_event_log(path)


@pytest.mark.parametrize(
    ("kinds", "ended"),
    [
        (["run", "metrics"], False),
        (["run", "metrics", "end"], True),
        (["run", "end", "machine"], True),  # a process that the driver does not wait for was late
        (["run", "end", "run", "metrics"], False),  # resumed
        (["run", "end", "run", "end", "checkpoint"], True),
        ([], False),
    ],
)
def test_the_end_is_the_last_attempts_wherever_it_stands(kinds: list[str], ended: bool) -> None:
    records = [{"kind": kind, "number": number} for number, kind in enumerate(kinds)]
    end = end_of(records)
    assert (end is not None) == ended
    if end is not None:
        assert end["number"] == max(number for number, kind in enumerate(kinds) if kind == "end")


def test_a_trials_records_are_not_the_searchs() -> None:
    end = {"kind": "end", "status": "done"}
    assert end_of([{"kind": "run"}, end, {"kind": "run", "child": "0001"}]) is end


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_has_a_files_name_and_is_none_is_a_mistake_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "events.jsonl"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    fault = re.escape(f"{path}: is a {kind}") + "( or a device)?, where a file of this name is expected; move it away"
    for read in (read_event_log, EventLog, lambda path: object_store.read_json(str(path))):
        with pytest.raises(ValueError, match=fault):
            read(path)
