"""Replaying an event log: when it waits, what it sends again, when it stops. Destinations are lists, without MLflow."""

import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.tracking import log_reader
from orchestrator.tracking.log_reader import Cursor, TrackingUnavailable, Writer, replay_until_complete
from orchestrator.tracking.record_mapping import PARAM_LENGTH, truncate, update_for
from workloads.runtime.event_log import EventLog

EXITED = Writer(pid=0, started=0.0)


class Recorder(list[dict[str, Any]]):
    """A destination that appends the records to itself, after it was unavailable `failures` times."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.killed_at: int | None = None

    def log_records(self, records: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise TrackingUnavailable("no connection")
        self.extend(records)

    def mark_killed(self, end_ms: int) -> None:
        self.killed_at = end_ms


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader, "POLL_S", 0.01)
    monkeypatch.setattr(log_reader, "RETRY_S", 0.01)


def _event_log(path: Path, count: int, *, end: bool = True) -> Path:
    with EventLog(path) as event_log:
        for step in range(count):
            event_log.append({"kind": "metrics", "step": step, "values": {"cnn/loss": 1.0}})
        if end:
            event_log.append({"kind": "end", "status": "done", "error": ""})
    return path


def _steps(received: list[dict[str, Any]]) -> list[int]:
    return [record["step"] for record in received if record["kind"] == "metrics"]


def test_all_records_arrive_in_order_despite_failures(tmp_path: Path) -> None:
    path = _event_log(tmp_path / "events.jsonl", 450)
    received = Recorder(failures=3)
    assert replay_until_complete(Cursor(path, "here"), received, writer=EXITED, old_bytes=0, grace_s=60) == 0
    assert _steps(received) == list(range(450))
    assert received.killed_at is None


def test_the_position_is_saved_for_the_same_destination_only(tmp_path: Path) -> None:
    path = _event_log(tmp_path / "events.jsonl", 250)
    replay_until_complete(Cursor(path, "here"), Recorder(), writer=EXITED, old_bytes=0, grace_s=0)
    again, elsewhere = Cursor(path, "here"), Cursor(path, "elsewhere")
    again.resume()
    elsewhere.resume()
    assert (again.end, again.last["kind"], elsewhere.end) == (path.stat().st_size, "end", 0)


def test_another_log_under_the_same_name_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = _event_log(tmp_path / "events.jsonl", 20)
    replay_until_complete(Cursor(path, "here"), Recorder(), writer=EXITED, old_bytes=0, grace_s=0)
    path.unlink()
    _event_log(path, 400)
    cursor = Cursor(path, "here")
    cursor.resume()
    assert cursor.end == 0


def test_a_run_whose_driver_has_exited_is_marked_killed_after_its_last_record(tmp_path: Path) -> None:
    path = _event_log(tmp_path / "events.jsonl", 3, end=False)
    with path.open("ab") as file:
        file.write(b'{"kind": "metr')  # half a line, as a kill leaves it
    received = Recorder()
    me = psutil.Process()
    reused_pid = Writer(pid=os.getpid(), started=me.create_time() - 60)
    assert replay_until_complete(Cursor(path, "here"), received, writer=reused_pid, old_bytes=0, grace_s=0) == 0
    assert _steps(received) == [0, 1, 2]
    assert received.killed_at == received[-1]["t"]


def test_a_record_after_the_end_changes_nothing(tmp_path: Path) -> None:
    """A process that the driver does not wait for may be late; the run has ended all the same."""
    path = _event_log(tmp_path / "events.jsonl", 3)
    with EventLog(path) as event_log:
        event_log.append({"kind": "machine", "values": {}})
    me, received = psutil.Process(), Recorder()
    writer = Writer(pid=me.pid, started=me.create_time())
    assert replay_until_complete(Cursor(path, "here"), received, writer=writer, old_bytes=0, grace_s=0) == 0
    again = Cursor(path, "here")
    again.resume()
    assert replay_until_complete(again, received, writer=EXITED, old_bytes=0, grace_s=0) == 0
    assert [record["kind"] for record in received[-2:]] == ["end", "machine"]
    assert received.killed_at is None


def test_the_end_of_an_earlier_attempt_does_not_stop_the_replay(tmp_path: Path) -> None:
    path = _event_log(tmp_path / "events.jsonl", 3)
    old_bytes = path.stat().st_size
    me = psutil.Process()

    class Resumes(Recorder):
        """Appends the second attempt while the records of the first are being sent."""

        def log_records(self, records: Any) -> None:
            super().log_records(records)
            if len(self) == 4:
                _event_log(path, 5)

    received = Resumes()
    writer = Writer(pid=me.pid, started=me.create_time())
    assert replay_until_complete(Cursor(path, "here"), received, writer=writer, old_bytes=old_bytes, grace_s=0) == 0
    assert _steps(received) == [0, 1, 2, 0, 1, 2, 3, 4]


def test_it_gives_up_only_when_the_log_is_complete(tmp_path: Path) -> None:
    path = _event_log(tmp_path / "events.jsonl", 3, end=False)
    me = psutil.Process()

    class Unavailable(Recorder):
        """Never available; the run ends at the third call."""

        calls = 0

        def log_records(self, records: Any) -> None:
            self.calls += 1
            if self.calls == 3:
                _event_log(path, 0)
            raise TrackingUnavailable("no connection")

    destination = Unavailable()
    writer = Writer(pid=me.pid, started=me.create_time())
    assert replay_until_complete(Cursor(path, "here"), destination, writer=writer, old_bytes=0, grace_s=0) == 3
    assert destination.calls == 3
    assert not (tmp_path / "events.jsonl.offset").exists()


def test_a_damaged_line_is_skipped_and_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\0\0\0\n")
    received = Recorder()
    assert (
        replay_until_complete(Cursor(_event_log(path, 2), "here"), received, writer=EXITED, old_bytes=0, grace_s=0) == 0
    )
    assert _steps(received) == [0, 1]
    assert "skipped a line that is no record: b'\\x00" in capsys.readouterr().err


def test_values_beyond_mlflows_limit_are_truncated_with_a_note() -> None:
    assert truncate("x" * PARAM_LENGTH, PARAM_LENGTH) == "x" * PARAM_LENGTH
    short = truncate("x" * (PARAM_LENGTH + 1), PARAM_LENGTH)
    assert len(short) == PARAM_LENGTH
    assert short.endswith("x ... [cut: 6001 characters, all of them in the resolved recipe]")


def test_a_resumed_run_keeps_its_parameters_and_tags_what_changed() -> None:
    first = {"kind": "run", "t": 1, "run_id": "r", "params": {"train.lr": "1", "train.threads": "2"}, "tags": {}}
    again = first | {"params": {"train.lr": "1", "train.threads": "4"}}
    end = {"kind": "end", "t": 5, "status": "preempted", "error": "signal"}
    update = update_for([first, end, again, {"kind": "start", "t": 6, "attempt": 2, "step": 200, "damaged": []}])
    assert not update.invalid
    assert update.params == {"train.lr": "1", "train.threads": "2"}
    assert update.tags["resumed.train.threads"] == "4"
    assert "resumed.train.lr" not in update.tags
    assert (update.tags["antiphon.resumed_from"], update.tags["antiphon.status"]) == ("200", "running")
    assert update.status == ("RUNNING", None)


def test_an_invalid_record_is_reported_and_the_others_are_sent() -> None:
    good = {"kind": "metrics", "t": 1, "step": 10, "values": {"cnn/loss": 0.5}}
    update = update_for([{"kind": "song", "t": 1}, good | {"values": {"cnn/loss": None}}, {"kind": "metrics"}, good])
    assert update.points == [("cnn/loss", 0.5, 1, 10)]
    assert [message.split(" ")[0] for message in update.invalid] == ["KeyError", "TypeError", "KeyError"]
