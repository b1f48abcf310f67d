"""What teaching did, for the report of a run: each student against its untaught control."""

from typing import Any

from orchestrator.reports.formatting import format_score
from orchestrator.reports.run_history import RunHistory


def verdict(history: RunHistory) -> str:
    """One line for all students, by the intervals; empty for a run without a comparison."""
    return "; ".join(f"{student}: {_of_student(compared)}" for student, compared in history.comparison.items())


def _of_student(compared: dict[str, Any]) -> str:
    words = [f"{_word(row)} in {name} ({_difference(row)})" for name, row in _scores(compared)]
    return ", ".join(words)


def _word(row: dict[str, Any]) -> str:
    """Whether the interval lies on one side of 0."""
    low, high = row["interval"]
    return "better" if low > 0 else "worse" if high < 0 else "no difference shown"


def rows(history: RunHistory) -> list[dict[str, str]]:
    """Two rows for each student: the score by which models are compared, and the log loss; more where there are frames,
    and of keywords."""
    return [
        {
            "model": student,
            "score": name,
            "taught": format_score(row["taught"]),
            "untaught": format_score(row["untaught"]),
            "difference": _difference(row),
            "interval": "{:+.4f} to {:+.4f}".format(*row["interval"]),
        }
        for student, compared in history.comparison.items()
        for name, row in _scores(compared)
    ]


def not_compared(history: RunHistory) -> list[str]:
    """A sentence for each test score that is not compared, with the reason."""
    return [
        f"{student}: {name} is not compared: {reason}."
        for student, compared in history.comparison.items()
        for name, reason in compared.get("not_compared", {}).items()
    ]


def sample(history: RunHistory) -> str:
    """On how many clips and seeds the comparison rests; empty without one."""
    first = next(iter(history.comparison.values()), None)
    if first is None:
        return ""
    seeds = f"{first['seeds']} seeds" if first["seeds"] > 1 else "one seed"
    return f"{first['clips']:,} test clips and {seeds}"


def _scores(compared: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    names = {
        "log_loss": "log loss",
        "frame_mAP": "frame mAP",
        "attention_mass": "attention mass",
        "own_attention_mass": "own attention mass",
    }
    return [
        (compared["metric"], compared),
        *((name, compared[key]) for key, name in names.items() if key in compared),
    ]


def _difference(row: dict[str, Any]) -> str:
    return f"{row['difference']:+.4f}"
