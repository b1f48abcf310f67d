"""The rows of a comparison of runs, as text: for the terminal and for the page. Reads what `diff_runs` has found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.reports.formatting import NOT_AVAILABLE, format_duration

SHOWN_DIGITS = 12  # of a commit and of a data set's fingerprint
LABELS = {"accuracy": "accuracy", "mAP": "mAP", "log_loss": "log loss", "frame_mAP": "frame mAP"}
LABELS |= {"attention_mass": "attention mass"}  # of the scores the main ones; --json has all


@dataclass(frozen=True)
class DiffRow:
    """What is compared, and its value in each run."""

    label: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


def fact_rows(found: dict[str, Any]) -> list[DiffRow]:
    """Status, code, data, clips, steps, time and workers."""
    return [
        DiffRow(name, tuple(_fact(name, value) for value in values)) for name, values in _named(found["facts"]).items()
    ]


def _named(facts: dict[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    names = {"code": "code version", "clips": "clips: train, val, test", "seconds": "time"}
    return {names.get(key, key): values for key, values in facts.items()}


def _fact(name: str, value: Any) -> str:
    if name == "time":
        return format_duration(value)
    if name.startswith("clips"):
        return ", ".join(str(value[part]) for part in ("train", "val", "test")) if value else NOT_AVAILABLE
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return (text[:SHOWN_DIGITS] if name in ("code version", "data") else text) or NOT_AVAILABLE


def recipe_rows(found: dict[str, Any]) -> list[DiffRow]:
    """The values that differ, by their path."""
    return [
        DiffRow(path, tuple(NOT_AVAILABLE if value is None else value or '""' for value in values))
        for path, values in found["recipe"].items()
    ]


def score_rows(found: dict[str, Any]) -> list[DiffRow]:
    """The scores of each model, with their intervals where there are some."""
    return [
        DiffRow(
            f"{row['model']}: {row['part']} {LABELS[row['metric']]}",
            tuple(_score(own) for own in row["runs"]),
        )
        for row in found["scores"]
        if row["metric"] in LABELS
    ]


def _score(own: dict[str, Any] | None) -> str:
    if own is None:
        return NOT_AVAILABLE
    text = f"{own['value']:.4f}"
    return text if own["interval"] is None else f"{text} ({own['interval'][0]:.4f} to {own['interval'][1]:.4f})"


def compared_rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(run, model, differences to the first run with intervals and what they show) of each model."""
    rows: dict[tuple[str, str], list[str]] = {}
    for row in found["compared"]:
        low, high = row["interval"]
        verdict = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
        text = f"{LABELS[row['metric']]} {row['difference']:+.4f} ({low:+.4f} to {high:+.4f}), {verdict}"
        rows.setdefault((row["run"], row["model"]), []).append(text)
    return [(run, model, "; ".join(texts)) for (run, model), texts in rows.items()]
