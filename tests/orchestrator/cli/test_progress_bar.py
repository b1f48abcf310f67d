"""The progress bar shows which models learn and which teach."""

import io

from rich.console import Console

from orchestrator.cli.progress_bar import progress, roles
from workloads.runtime.event_log import EventLog

TURN = {"kind": "phase", "index": 2, "of": 9, "total": 300, "trains": ["vit"]}


def test_roles_name_students_and_teachers():
    assert roles({**TURN, "edges": [{"teacher": "cnn", "student": "vit"}]}) == "phase 3/9: cnn -> vit"
    assert roles({**TURN, "trains": ["cnn", "vit"], "edges": []}) == "phase 3/9: cnn, vit"


def test_the_bar_follows_the_event_log_to_its_last_record(tmp_path):
    terminal = io.StringIO()
    event_log = EventLog(tmp_path / "events.jsonl")
    with progress(event_log.path, Console(file=terminal, width=100, force_terminal=True)):
        event_log.append({**TURN, "edges": [{"teacher": "cnn", "student": "vit"}]})
        event_log.append({"kind": "metrics", "step": 120, "values": {}})
    assert "cnn -> vit" in terminal.getvalue()
    assert "120/300" in terminal.getvalue()
