"""The figures of a study, from rows of its outcome."""

from orchestrator.reports import study_figures
from orchestrator.reports.study_page import write_study_page
from tests.pages import Page


def row(difference, **others):
    scores = {"taught": 0.5 + difference, "untaught": 0.5, "difference": difference, "interval": [-0.1, 0.2]}
    return {"metric": "mAP", **scores, "folds": [1, 2], "seeds": [0], "ece": {"taught": 0.1}, **others}


def outcome():
    control = {"metric": "mAP", "score": 0.5, "log_loss": {"score": 0.3}, "ece": 0.1, "folds": [1, 2], "seeds": [0]}
    students = {"plain": control, "mutual": row(0.1, frame_mAP=row(0.05)), "ensemble": row(0.2)}
    costs = {"runs": 2, "total": 2, "seconds": 1.0, "cpu_seconds": 1.0, "gpu_seconds": 0.0, "agreement": 0.5}
    methods = {
        name: {"about": "", **costs, "not_compared": "", "students": {"vit": student}}
        for name, student in students.items()
    }
    methods["gated"] = methods["mutual"] | {"not_compared": "other clips", "students": {}}
    head = {"study_id": "s", "status": "done", "about": "", "recipe": "demo", "rule": "", "labels": "multi"}
    return head | {"runs": 6, "total": 6, "left_out": {}, "failed": {}, "methods": methods, "curves": {}}


def test_the_forest_of_frames_has_the_methods_that_have_frames():
    figure = study_figures.forest(outcome(), "vit", "frame_mAP")
    assert [tuple(trace.y) for trace in figure.data] == [("mutual",)]
    assert list(figure.layout.yaxis.categoryarray) == ["mutual"]


def test_the_page_draws_it_and_names_what_is_not_compared(tmp_path):
    write_study_page(outcome(), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert {"forest-vit-primary", "forest-vit-frame_mAP"} <= page.figures.keys()
    assert "forest-vit-log_loss" not in page.figures
    assert "<b>gated</b> is not compared: other clips." in text
