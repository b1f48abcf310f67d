"""The progress bar shows which models learn and which teach."""

import io

from rich.console import Console

from orchestrator.cli.progress_bar import progress
from orchestrator.runs.progress import roles
from workloads.runtime.event_log import EventLog

TURN = {"kind": "phase", "index": 2, "of": 9, "total": 300, "trains": ["vit"]}


def test_roles_name_students_and_teachers():
    assert roles({**TURN, "edges": [{"teacher": "cnn", "student": "vit"}]}) == "phase 3/9: cnn -> vit"
    assert roles({**TURN, "trains": ["cnn", "vit"], "edges": []}) == "phase 3/9: cnn, vit"


LEARNS = {**TURN, "edges": [{"teacher": "cnn", "student": "vit"}]}


def shown(tmp_path, records, *, warned=(), **console) -> str:
    """What the console shows of records that are written while it follows, after others that were there before."""
    out = io.StringIO()
    with EventLog(tmp_path / "events.jsonl") as event_log:
        event_log.append({"kind": "metrics", "step": 60, "values": {"cnn/val/mAP": 0.9}})
        with progress(event_log.path, Console(file=out, **console), warned=warned):
            for number, record in enumerate(records):
                event_log.append({"t": 1000 * number, **record})
    return out.getvalue()


EVALUATED = [
    {"kind": "start", "step": 60, "attempt": 3, "damaged": ["step-80"]},
    LEARNS,
    {"kind": "metrics", "step": 110, "values": {"vit/loss": 0.51234, "vit/lr": 0.1}},
    {"kind": "bad", "step": 111, "models": ["vit"]},
    {"kind": "metrics", "step": 120, "values": {"vit/val/accuracy": 0.5, "vit/val/mAP": 0.41, "cnn/val/accuracy": 1}},
]


def test_the_bar_shows_step_roles_losses_and_scores(tmp_path):
    terminal = shown(tmp_path, EVALUATED, width=100, force_terminal=True)
    for text in (
        "phase 3/9: cnn -> vit",
        "120/300",
        "0:00:12 left",
        "loss vit 0.512; val accuracy vit 0.500, cnn 1.000",
    ):
        assert text in terminal


def test_without_a_terminal_each_evaluation_is_a_line(tmp_path):
    """180 of 240 steps are left after 4 s for 60 steps: another 12 s. Records of before are not shown again."""
    lines = shown(tmp_path, EVALUATED, width=80).splitlines()
    assert lines[:3] == [
        "damaged: step-80",
        "attempt 3 resumes from step 60",
        "step 111: numbers of vit are not finite",
    ]
    numbers = "loss vit 0.512; val accuracy vit 0.500, cnn 1.000; 0:00:12 left"
    assert [line[9:] for line in lines[3:]] == [f"step 120/300 (phase 3/9: cnn -> vit): {numbers}"]


def test_a_clip_that_was_replaced_is_a_warning(tmp_path):
    replaced = {"kind": "replaced", "step": 110, "clip_id": "9", "reason": "damaged", "by": "[4]"}
    assert shown(tmp_path, [replaced, replaced], width=80) == (
        "warning: clip 9 cannot be used any more: damaged; it is replaced by clip [4] in every epoch\n"
    )


def test_workers_that_save_for_another_number_say_so(tmp_path):
    records = [{"kind": "workers", "count": 1}, {"kind": "resizing", "step": 40, "workers": 1}]
    records += [{"kind": "workers", "count": 4}, {"kind": "resizing", "step": 80, "workers": 4}]
    assert shown(tmp_path, records, width=80).splitlines() == [
        "step 40: saved by 1 worker; the cluster holds another number, which start again",
        "step 80: saved by 4 workers; the cluster holds another number, which start again",
    ]


def test_warnings_about_the_data_are_printed_once(tmp_path):
    data = {"kind": "data", "clips": {"val": 1}, "warnings": ["said before the start", "at [8000] Hz"]}
    lines = shown(tmp_path, [data, data], warned=["said before the start"], width=80)
    assert lines == "warning: at [8000] Hz\n"
