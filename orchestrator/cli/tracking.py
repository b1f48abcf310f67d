"""`antiphon track`: send a run's records to MLflow. Parses and prints; `runs/backfill.py` does the work."""

import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.cli.options import FAILED, JsonOption
from orchestrator.cli.printing import print_out
from workloads.runtime.json_files import json_text

app = typer.Typer(no_args_is_help=True, help="Send the records of runs to MLflow.")
notes = Console(stderr=True)


@app.command()
def replay(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or URI: STORAGE/RUN_ID.")],
    tracking: Annotated[str, typer.Option(help="MLflow URI; default: where the run was tracked.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Send a run's records to MLflow, for example after an outage. Points that MLflow has are not sent again."""
    from orchestrator.runs.backfill import replay_run
    from orchestrator.tracking.log_reader import TrackingUnavailable

    try:
        with redirect_stdout(sys.stderr):  # MLflow prints the run's address
            result = replay_run(run, tracking)
    except TrackingUnavailable as error:
        notes.print(f"MLflow is unavailable, try again later: {error}", highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(FAILED) from None
    if as_json:
        typer.echo(json_text(result))
        return
    print_out(
        f"{result['run']}: {result['points_sent']} points sent to {result['tracking']}, "
        f"{result['points_held']} had been sent before"
    )
