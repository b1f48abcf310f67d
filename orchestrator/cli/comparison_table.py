"""How `antiphon run --compare` prints what teaching did."""

from typing import Any

from rich.table import Table

from orchestrator.cli.printing import cell

OTHERS = {  # compared where models and clips have them
    "frame_mAP": "frame mAP",
    "attention_mass": "attention mass",
    "own_attention_mass": "own attention",
}


def comparison_table(compare: dict[str, dict[str, Any]]) -> Table:
    """Two rows for each student: the score by which models are compared, and the log loss; more where there are frames,
    and of keywords. Fits into 80 columns."""
    first = next(iter(compare.values()))
    seeds = f", {first['seeds']} seeds" if first["seeds"] > 1 else ""
    factor = first.get("overlap_factor")
    wider = f", {factor:.2f} times as long for test folds whose training sets overlap" if factor else ""
    table = Table(
        title=f"what teaching did, on {first['clips']:,} test clips{seeds}",
        caption=f"difference: with its 95 % interval{wider}; above 0 the taught model is better",
    )
    for column in ("model", "score", "taught", "untaught", "difference"):
        table.add_column(column, justify="left" if column in ("model", "score") else "right")
    for student, compared in compare.items():
        scores = [(compared["metric"], compared), ("log loss", compared["log_loss"])]
        scores += [(name, compared[key]) for key, name in OTHERS.items() if key in compared]
        for name, row in scores:
            numbers = [f"{row[side]:.3f}" for side in ("taught", "untaught")]
            table.add_row(cell(student), name, *numbers, difference_text(row))
    return table


def scores_not_compared(compare: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each score that models have and the comparison has not, with the reason."""
    return [
        f"{student}: {name} is not compared: {reason}"
        for student, compared in compare.items()
        for name, reason in compared.get("not_compared", {}).items()
    ]


def difference_text(row: dict[str, Any]) -> str:
    """A difference with its interval: +0.052 (+0.010 to +0.094)."""
    low, high = row["interval"]
    return f"{row['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
