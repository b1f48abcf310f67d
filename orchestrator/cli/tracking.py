"""`antiphon track`: a run's records and MLflow, on the command line. Parses and prints; `catchup.py` does the work."""

import json
import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.cli.options import JsonOption

FAILED = 1

app = typer.Typer(no_args_is_help=True, help="Bring what runs have recorded to MLflow.")
notes = Console(stderr=True)


@app.command()
def replay(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or URI: STORAGE/RUN_ID.")],
    tracking: Annotated[str, typer.Option(help="MLflow URI; default: where the run was tracked.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Deliver a run's records to MLflow, as for a server that was away. What is there already is not sent again."""
    from orchestrator.runs.backfill import replay_run
    from orchestrator.tracking.log_reader import TrackingUnavailable

    try:
        with redirect_stdout(sys.stderr):  # MLflow prints where the run can be seen
            done = replay_run(run, tracking)
    except TrackingUnavailable as error:
        notes.print(f"MLflow does not take it, try again later: {error}", highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(FAILED) from None
    if as_json:
        typer.echo(json.dumps(done))
        return
    typer.echo(
        f"{done['run']}: {done['points_sent']} points delivered to {done['tracking']}, "
        f"{done['points_held']} were there already"
    )
