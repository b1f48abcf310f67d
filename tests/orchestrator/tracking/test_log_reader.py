"""Following a spool: when it waits, what it repeats, when it stops. The destinations are lists; MLflow is elsewhere."""

import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.tracking import log_reader
from orchestrator.tracking.log_reader import Cursor, TrackingUnavailable, Writer, follow
from orchestrator.tracking.record_mapping import PARAM_LENGTH, cut, delivery
from workloads.runtime.event_log import EventLog

NOBODY = Writer(pid=0, started=0.0)


class Kept(list[dict[str, Any]]):
    """A destination that keeps what it is given, after refusing it `refusals` times."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.killed_at: int | None = None

    def accept(self, records: Any) -> None:
        if self.refusals:
            self.refusals -= 1
            raise TrackingUnavailable("closed")
        self.extend(records)

    def lost_writer(self, end_ms: int) -> None:
        self.killed_at = end_ms


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader, "POLL_S", 0.01)
    monkeypatch.setattr(log_reader, "RETRY_S", 0.01)


def _event_log(path: Path, count: int, *, end: bool = True) -> Path:
    with EventLog(path) as event_log:
        for step in range(count):
            event_log.append({"kind": "metrics", "step": step, "values": {"cnn/loss": 1.0}})
        if end:
            event_log.append({"kind": "end", "status": "done", "error": ""})
    return path


def _steps(kept: list[dict[str, Any]]) -> list[int]:
    return [record["step"] for record in kept if record["kind"] == "metrics"]


def test_everything_arrives_in_order_through_refusals(tmp_path: Path) -> None:
    path = _event_log(tmp_path / "events.jsonl", 450)
    kept = Kept(refusals=3)
    assert follow(Cursor(path, "here"), kept, writer=NOBODY, old_bytes=0, grace_s=60) == 0
    assert _steps(kept) == list(range(450))
    assert kept.killed_at is None


def test_the_place_is_kept_for_the_same_destination_only(tmp_path: Path) -> None:
    path = _event_log(tmp_path / "events.jsonl", 250)
    follow(Cursor(path, "here"), Kept(), writer=NOBODY, old_bytes=0, grace_s=0)
    again, elsewhere = Cursor(path, "here"), Cursor(path, "elsewhere")
    again.resume()
    elsewhere.resume()
    assert (again.end, again.last["kind"], elsewhere.end) == (path.stat().st_size, "end", 0)


def test_another_spool_under_the_same_name_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = _event_log(tmp_path / "events.jsonl", 20)
    follow(Cursor(path, "here"), Kept(), writer=NOBODY, old_bytes=0, grace_s=0)
    path.unlink()
    _event_log(path, 400)
    cursor = Cursor(path, "here")
    cursor.resume()
    assert cursor.end == 0


def test_a_run_whose_driver_is_gone_is_reported_lost_after_its_last_record(tmp_path: Path) -> None:
    path = _event_log(tmp_path / "events.jsonl", 3, end=False)
    with path.open("ab") as file:
        file.write(b'{"kind": "metr')  # torn by the kill
    kept = Kept()
    me = psutil.Process()
    reused_pid = Writer(pid=os.getpid(), started=me.create_time() - 60)
    assert follow(Cursor(path, "here"), kept, writer=reused_pid, old_bytes=0, grace_s=0) == 0
    assert _steps(kept) == [0, 1, 2]
    assert kept.killed_at == kept[-1]["t"]


def test_the_end_of_an_earlier_attempt_does_not_stop_it(tmp_path: Path) -> None:
    path = _event_log(tmp_path / "events.jsonl", 3)
    old_bytes = path.stat().st_size
    me = psutil.Process()

    class Resumes(Kept):
        """Writes the second attempt while the first one is being delivered."""

        def accept(self, records: Any) -> None:
            super().accept(records)
            if len(self) == 4:
                _event_log(path, 5)

    kept = Resumes()
    writer = Writer(pid=me.pid, started=me.create_time())
    assert follow(Cursor(path, "here"), kept, writer=writer, old_bytes=old_bytes, grace_s=0) == 0
    assert _steps(kept) == [0, 1, 2, 0, 1, 2, 3, 4]


def test_it_gives_up_only_when_the_spool_is_complete(tmp_path: Path) -> None:
    path = _event_log(tmp_path / "events.jsonl", 3, end=False)
    me = psutil.Process()

    class Closed(Kept):
        """Never opens; the run ends at the third refusal."""

        asked = 0

        def accept(self, records: Any) -> None:
            self.asked += 1
            if self.asked == 3:
                _event_log(path, 0)
            raise TrackingUnavailable("closed")

    closed = Closed()
    writer = Writer(pid=me.pid, started=me.create_time())
    assert follow(Cursor(path, "here"), closed, writer=writer, old_bytes=0, grace_s=0) == 3
    assert closed.asked == 3
    assert not (tmp_path / "events.jsonl.offset").exists()


def test_a_damaged_line_is_skipped_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\0\0\0\n")
    kept = Kept()
    assert follow(Cursor(_event_log(path, 2), "here"), kept, writer=NOBODY, old_bytes=0, grace_s=0) == 0
    assert _steps(kept) == [0, 1]
    assert "skipped a line that is not JSON: b'\\x00" in capsys.readouterr().err


def test_values_beyond_mlflows_limit_are_cut_with_a_note() -> None:
    assert cut("x" * PARAM_LENGTH, PARAM_LENGTH) == "x" * PARAM_LENGTH
    short = cut("x" * (PARAM_LENGTH + 1), PARAM_LENGTH)
    assert len(short) == PARAM_LENGTH
    assert short.endswith("x ... [cut: 6001 characters, all of them in the resolved recipe]")


def test_a_resumed_run_keeps_its_parameters_and_tags_what_changed() -> None:
    first = {"kind": "run", "t": 1, "run_id": "r", "params": {"train.lr": "1", "train.threads": "2"}, "tags": {}}
    again = first | {"params": {"train.lr": "1", "train.threads": "4"}}
    end = {"kind": "end", "t": 5, "status": "preempted", "error": "signal"}
    parcel = delivery([first, end, again, {"kind": "start", "t": 6, "attempt": 2, "step": 200, "damaged": []}])
    assert not parcel.bad
    assert parcel.params == {"train.lr": "1", "train.threads": "2"}
    assert parcel.tags["resumed.train.threads"] == "4"
    assert "resumed.train.lr" not in parcel.tags
    assert (parcel.tags["antiphon.resumed_from"], parcel.tags["antiphon.status"]) == ("200", "running")
    assert parcel.status == ("RUNNING", None)


def test_a_record_that_is_wrong_is_named_and_the_others_are_delivered() -> None:
    good = {"kind": "metrics", "t": 1, "step": 10, "values": {"cnn/loss": 0.5}}
    parcel = delivery([{"kind": "song", "t": 1}, good | {"values": {"cnn/loss": None}}, {"kind": "metrics"}, good])
    assert parcel.points == [("cnn/loss", 0.5, 1, 10)]
    assert [words.split(" ")[0] for words in parcel.bad] == ["KeyError", "TypeError", "KeyError"]
