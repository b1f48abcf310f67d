"""The page of a study: one HTML file that needs no network. Owns the page and its tables, not the figures."""

from pathlib import Path
from typing import Any

from orchestrator.reports import study_figures
from orchestrator.reports.formatting import NOT_AVAILABLE, format_duration, format_score
from orchestrator.reports.html_page import drawn, plotly_script, render, write_page
from orchestrator.study.results import folds_and_seeds
from workloads.config.study import CONTROL

SCORES = {"": "", "log_loss": "log loss", "frame_mAP": "frame mAP"}  # key of a row -> its label; "" is the primary one
Row = dict[str, Any]


def write_study_page(outcome: Row, out: Path) -> None:
    """Write the page of a study, finished or not, to `out`, atomically; below 1 MB, of which 0.66 are Plotly.

    `outcome` is what `study_results` and the driver say of it.
    """
    students = list(outcome["methods"][CONTROL]["students"])
    page = render(
        "study.html.j2",
        outcome=outcome,
        control=CONTROL,
        students=[_student(outcome, student) for student in students],
        methods=[_method(name, row, students) for name, row in outcome["methods"].items()],
        names=students,
        scores_not_compared=_scores_not_compared(outcome),
        on_gpu=any(row["gpu_seconds"] for row in outcome["methods"].values()),
        single=outcome["labels"] == "single",
        plotly=plotly_script(),
    )
    write_page(page, out)


def _scores_not_compared(outcome: Row) -> list[str]:
    """A line for each score that models have and a comparison has not."""
    return [
        f"{name}, {student}: {score} is not compared: {reason}"
        for name, row in outcome["methods"].items()
        for student, compared in row["students"].items()
        for score, reason in compared.get("not_compared", {}).items()
    ]


def _student(outcome: Row, student: str) -> Row:
    """A student's section: its table, and its figures."""
    rows = study_figures.compared(outcome, student)
    scores = [key for key in SCORES if any(not key or key in row for row in rows.values())]
    return {
        "name": student,
        "rows": [*_control_rows(outcome, student), *_rows(rows)],
        "forests": {key or "primary": drawn(study_figures.forest(outcome, student, key)) for key in scores},
        "costs": drawn(study_figures.cost_and_gain(outcome, student)) if rows else None,
        "curves": drawn(study_figures.curves(outcome, student)) if outcome["curves"].get(student) else None,
    }


def _control_rows(outcome: Row, student: str) -> list[dict[str, str]]:
    row = outcome["methods"][CONTROL]["students"][student]
    scores = {row["metric"]: row["score"], "log loss": row["log_loss"]["score"]}
    nothing = dict.fromkeys(("difference", "interval", "verdict", "untaught"), "")
    return [
        {"method": CONTROL, "score": name, "value": format_score(value), "sample": folds_and_seeds(row), **nothing}
        for name, value in scores.items()
    ]


def _rows(rows: dict[str, Row]) -> list[dict[str, str]]:
    """A row for each method and score of a student."""
    return [
        {
            "method": name,
            "score": label or row["metric"],
            "value": format_score(own["taught"]),
            "untaught": format_score(own["untaught"]),
            "difference": f"{own['difference']:+.4f}",
            "interval": "{:+.4f} to {:+.4f}".format(*own["interval"]),
            "verdict": study_figures.verdict(own),
            "sample": folds_and_seeds(row),
        }
        for name, row in rows.items()
        for key, label in SCORES.items()
        if (own := row if not key else row.get(key)) is not None
    ]


def _method(name: str, row: Row, students: list[str]) -> Row:
    """A method's row in the table of costs, agreement and calibration."""
    errors = [row["students"].get(student, {}).get("ece") for student in students]
    return {
        "name": name,
        "about": row["about"],
        "runs": f"{row['runs']} of {row['total']}",
        **{cost: format_duration(row[cost]) for cost in ("seconds", "cpu_seconds", "gpu_seconds")},
        "agreement": format_score(row["agreement"]),
        "ece": [NOT_AVAILABLE if error is None else format_score(_taught(error)) for error in errors],
    }


def _taught(error: float | dict[str, float]) -> float:
    return error["taught"] if isinstance(error, dict) else error
