"""The page of a comparison of runs: one small HTML file that needs no network and no script."""

from pathlib import Path
from typing import Any

from orchestrator.reports.diff_rows import compared_rows, fact_rows, recipe_rows, score_rows
from orchestrator.reports.html_page import render, write_page


def write_diff_page(found: dict[str, Any], out: Path) -> None:
    """Write what `diff_runs` has found to `out`, atomically."""
    tables = {
        "Runs": fact_rows(found),
        "Recipe values that differ": recipe_rows(found),
        "Scores": score_rows(found),
    }
    page = render("diff.html.j2", found=found, tables=tables, compared=compared_rows(found), plotly="")
    write_page(page, out)
