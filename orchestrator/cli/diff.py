"""`antiphon diff`: how runs differ. Parses and prints; `runs/differences.py` reads, `reports/diff_page.py` writes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.options import JsonOption, only_json
from orchestrator.cli.printing import cell, print_note, print_out

RUNS = typer.Argument(
    metavar="RUN RUN...", help="Folders or URIs of runs, finished or not; the first is compared with."
)


def diff(
    runs: Annotated[list[str], RUNS],
    out: Annotated[Path | None, typer.Option(help="Also write a page to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print how runs differ: recipe values, code, data, steps, time, scores with intervals."""
    from orchestrator.runs.differences import diff_runs
    from workloads.runtime.atomic_files import require_folder_for

    if out is not None:
        require_folder_for(out, "--out")
    with only_json(as_json) as emit:
        found = diff_runs(runs)
        emit(found)
        if not as_json:
            _print(found)
        if out is not None:
            from orchestrator.reports.diff_page import write_diff_page

            write_diff_page(found, out)
            print_note(f"page  {out}")


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from orchestrator.reports.diff_rows import compared_rows, fact_rows, recipe_rows, score_rows

    console = Console()
    for title, rows in (
        ("runs", fact_rows(found)),
        (f"recipe values that differ; {found['equal']} are equal", recipe_rows(found)),
        ("scores, with 95 % intervals over the test clips", score_rows(found)),
    ):
        if rows:
            table = Table(title=title, title_justify="left")
            for column in ("", *found["runs"]):
                table.add_column(cell(column), overflow="fold")
            for row in rows:
                table.add_row(cell(row.label), *map(cell, row.values))
            console.print(table)
    for name, model, text in compared_rows(found):
        print_out(f"{name} against {found['runs'][0]}, {model}: {text}")
    for name, reason in found["not_compared"].items():
        print_note(f"{name} is not compared with {found['runs'][0]}: {reason}")
