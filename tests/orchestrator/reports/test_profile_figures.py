"""The figure of when models listen: what it draws, and that a record which does not fit itself is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.reports.run_page import write_report
from orchestrator.reports.write import rewrite_report
from tests.orchestrator.reports.test_run_page import recipe, run_records
from tests.pages import Page


def profiles() -> dict[str, Any]:
    """Of two clips of two seconds: one model with four steps, another with two that begin before the clip."""
    clips = [
        {"clip_id": f"clip-{tag}", "tag": tag, "onset": 0.5, "offset": 1.0, "mel": [[0, 50, 99, 10]] * 3}
        for tag in ("yes", "<b>no</b>")
    ]
    models = {
        "cnn": {"profile": "energy", "first": 0.0, "step": 0.5, "clips": [[0.1, 0.4, 0.3, 0.2], [0.25] * 4]},
        "vit": {"profile": "rollout", "first": -1.5, "step": 2.0, "clips": [[0.2, 0.8], [0.5, 0.5]]},
    }
    return {"kind": "profiles", "t": 1_795_000_000_000, "step": 280, "seconds": 2.0, "clips": clips, "models": models}


def test_each_clip_has_its_spectrogram_its_keyword_and_a_line_for_each_model(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    *records, end = run_records()
    write_report([*records, profiles(), end], recipe("single"), run_id="demo-1", uri="/runs/demo-1", out=out)
    figure = Page(out.read_text(encoding="utf-8")).figures["profiles"]
    first, second = (trace for trace in figure["data"] if trace["type"] == "heatmap")
    assert first["z"] == [[0, 50, 99, 10]] * 3
    assert (first["x0"], first["dx"]) == (0.25, 0.5)
    assert second["yaxis"] != first["yaxis"]
    lines = [trace for trace in figure["data"] if trace["type"] == "scatter"]
    assert [line["name"] for line in lines] == ["cnn (energy)", "vit (rollout)"] * 2
    assert lines[0]["x"] == [0.25, 0.75, 1.25, 1.75]
    assert lines[0]["y"] == pytest.approx([0.25, 1.0, 0.75, 0.5])
    assert lines[1]["x"] == [1.5], "the middle of its first step lies before the clip"
    frames = [shape for shape in figure["layout"]["shapes"] if shape["type"] == "rect"]
    assert [(frame["x0"], frame["x1"]) for frame in frames] == [(0.5, 1.0)] * 2
    titles = [note["text"] for note in figure["layout"]["annotations"]]
    assert titles == ["yes (clip-yes)", "&lt;b&gt;no&lt;/b&gt; (clip-&lt;b&gt;no&lt;/b&gt;)"]


def test_a_run_without_keywords_has_no_such_figure(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(run_records(), recipe("single"), run_id="demo-1", uri="/runs/demo-1", out=out)
    assert "profiles" not in Page(out.read_text(encoding="utf-8")).figures


def test_a_record_with_profiles_of_other_clips_is_refused(tmp_path: Path) -> None:
    record = profiles()
    record["models"]["vit"]["clips"].pop()
    (tmp_path / "recipe.json").write_text(json.dumps(recipe("single")))
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*run_records(), record]))
    with pytest.raises(ValueError, match=r"models\.vit: profiles of 1 clips, and 2 are shown"):
        rewrite_report(str(tmp_path), str(tmp_path / "out.html"))
