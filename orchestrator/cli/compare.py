"""`antiphon compare`: what teaching did over finished runs. Parses and prints; `runs/pooled_comparison.py` reads."""

from typing import Annotated

import typer

from orchestrator.cli.options import JsonOption, only_json

RUNS = typer.Argument(metavar="RUN...", help="Folders or URIs of finished runs, one for each test fold and seed.")
CONTROLS = typer.Option(
    "--control", help="A finished run whose models are the controls; once for each. Else each run has its own."
)


def compare(
    runs: Annotated[list[str], RUNS], control: Annotated[list[str] | None, CONTROLS] = None, as_json: JsonOption = False
) -> None:
    """Pool finished runs of several test folds and seeds, and print what teaching did."""
    from rich.console import Console

    from orchestrator.cli.comparison_table import comparison_table, scores_not_compared
    from orchestrator.cli.printing import print_note
    from orchestrator.runs.pooled_comparison import compare_runs

    with only_json(as_json) as emit:
        result = compare_runs(runs, control or [])
        emit(result)
        if not as_json:
            Console().print(comparison_table(result["compare"]))
        for path, (taught, untaught) in sorted(result["differs"].items()):
            print_note(
                f"not only the edges differ: {path} is {taught} of the taught models, {untaught} of the controls"
            )
        for line in scores_not_compared(result["compare"]):
            print_note(line)
