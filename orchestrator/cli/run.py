"""`antiphon run`, on the command line. Parses and prints; `training/driver.py` does the work."""

import json
import shlex
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.options import (
    FAILED,
    PREEMPTED,
    AddressOption,
    JsonOption,
    RecipeArg,
    SetOption,
    StorageOption,
    TrackingOption,
    only_json,
    report_may_fail,
)

console = Console(stderr=True)


def run(
    recipe: RecipeArg,
    settings: SetOption = None,
    workers: Annotated[int, typer.Option(help="Data-parallel workers; must divide train.shards.")] = 1,
    storage: StorageOption = "runs",
    tracking: TrackingOption = "",
    address: AddressOption = "",
    run_id: Annotated[str, typer.Option("--run-id", help="The new run's name; default: made of recipe and time.")] = "",
    resume: Annotated[
        str,
        typer.Option(metavar="ID|auto", help="Go on with a run; auto: this recipe's newest unfinished one, if any."),
    ] = "",
    patience: Annotated[float, typer.Option(help="Seconds to wait for a storage that went away.")] = 300.0,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and its phases.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe: its models teach each other as its schedule says."""
    from orchestrator.recipes.loader import load_recipe
    from orchestrator.training.driver import run as run_recipe
    from orchestrator.training.request import RunRequest, check_request

    command = shlex.join(["antiphon", *sys.argv[1:]])
    request = RunRequest(
        load_recipe(recipe, settings),
        command,
        storage=storage,
        tracking=tracking,
        workers=workers,
        address=address,
        local=local,
        run_id=run_id,
        resume=resume,
        patience_s=patience,
    )
    with only_json(as_json) as emit:
        if dry_run:
            _dry_run(request.recipe, check_request(request), emit, as_json)
            return
        from orchestrator.cli.progress_bar import progress
        from orchestrator.tracking.uri import ui_command

        result = run_recipe(request, show_progress=lambda location: progress(location.event_log, console))
        outcome = result.outcome
        if result.published:
            from orchestrator.reports.write import write_run_report  # Plotly costs a second

            with report_may_fail(result.location.uri):
                write_run_report(result.location, command, patience_s=patience)
        emit(outcome)
        if outcome["mistake"]:
            raise ValueError(outcome["error"])
        if outcome["models"]:
            console.print(_table(outcome))
        console.print(f"report    {outcome['report']}", highlight=False, soft_wrap=True)
        if ui := ui_command(outcome["tracking"]):
            console.print(f"tracking  {ui}", highlight=False, soft_wrap=True)
        if outcome["error"]:
            console.print(f"[red]failed:[/] {escape(outcome['error'])}", highlight=False, soft_wrap=True)
        raise typer.Exit({"done": 0, "failed": FAILED, "preempted": PREEMPTED}[outcome["status"]])


def _dry_run(recipe: Any, phases: Any, emit: Any, as_json: bool) -> None:
    """The resolved recipe and who learns from whom, when; as JSON the recipe alone, for `python -m workloads`."""
    from orchestrator.recipes.loader import resolve

    resolved = resolve(recipe)
    emit(resolved)
    if as_json:
        return
    typer.echo(json.dumps(resolved, indent=1))
    shown = Table(title=f"{recipe.name}: {len(phases)} phases, {sum(phase.steps for phase in phases)} steps")
    for column in ("phase", "steps", "learns", "edges"):
        shown.add_column(column)
    for number, phase in enumerate(phases):
        edges = ", ".join(f"{edge.teacher} -> {edge.student} ({edge.weight:g})" for edge in phase.edges)
        shown.add_row(str(number), f"{phase.start}-{phase.end}", ", ".join(phase.trains), edges or "labels only")
    Console().print(shown)


def _table(outcome: dict[str, Any]) -> Table:
    """The run's headline: one row a model."""
    rows = outcome["models"]
    metric = "accuracy" if any("accuracy" in row["val"] for row in rows.values()) else "mAP"
    shown = Table(title=f"{outcome['run_id']}: {outcome['status']} in {outcome['seconds']:.0f} s")
    columns = ("model", "taught", "learned", f"val {metric}", f"test {metric}", "parameters", "checkpoint")
    for column in columns:
        shown.add_column(column, overflow="fold", justify="left" if column in ("model", "checkpoint") else "right")
    for name, row in rows.items():
        scores = [f"{row[part][metric]:.3f}" if row[part] else "-" for part in ("val", "test")]
        shown.add_row(
            name,
            str(row["steps_taught"]),
            str(row["steps_learned"]),
            *scores,
            f"{row['params']:,}",
            row["checkpoint"],
        )
    return shown
