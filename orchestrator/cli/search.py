"""`antiphon search`, on the command line. Parses and prints; `search.py` does the work."""

import shlex
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from orchestrator.cli.options import (
    FAILED,
    PREEMPTED,
    AddressOption,
    JsonOption,
    SetOption,
    StorageOption,
    TrackingOption,
    only_json,
    report_may_fail,
)


def search(
    recipe: Annotated[str, typer.Argument(help="A recipe with a [search.space]: shipped, or a .toml/.json file.")],
    settings: SetOption = None,
    storage: StorageOption = "runs",
    tracking: TrackingOption = "",
    address: AddressOption = "",
    budget: Annotated[
        str,
        typer.Option(
            help="Of trials, not of finals: how many in all (24), or how long from now (30m, 2h, 4gpuh: GPU-hours); "
            "default: search.trials."
        ),
    ] = "",
    workers: Annotated[int, typer.Option(help="Workers of a trial; several make it a Ray Train run of its own.")] = 1,
    slots: Annotated[int, typer.Option(help="Trials at once; default: as many as the cluster holds.")] = 0,
    search_id: Annotated[str, typer.Option("--search-id", help="The new search's name.")] = "",
    resume: Annotated[str, typer.Option(metavar="ID", help="Go on with a search.")] = "",
    finals: Annotated[bool, typer.Option(help="Hold the winner against its control on the test fold.")] = True,
    full: Annotated[
        int, typer.Option(metavar="N", help="Learn N trials again at full length, to see whether their ranking holds.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Search a recipe's space: which temperature, which weights, who teaches when."""
    from orchestrator.recipes.loader import load_recipe
    from orchestrator.search.driver import search as run_search
    from orchestrator.search.request import SearchRequest

    request = SearchRequest(
        load_recipe(recipe, settings),
        shlex.join(["antiphon", *sys.argv[1:]]),
        storage=storage,
        tracking=tracking,
        address=address,
        workers=workers,
        slots=slots,
        budget=budget,
        search_id=search_id,
        resume=resume,
        finals=finals,
        full=full,
    )
    with only_json(as_json) as emit:
        result = run_search(request)
        outcome = result.outcome
        if outcome["status"] != "preempted":
            from orchestrator.reports.write import write_search_page

            with report_may_fail(result.location.uri):
                write_search_page(result.location)
        emit(outcome)
    if outcome["status"] == "preempted":
        typer.echo(f"interrupted; the same command with --resume {outcome['search_id']} goes on", err=True)
    elif not as_json:
        _show(outcome)
    raise typer.Exit({"done": 0, "failed": FAILED, "preempted": PREEMPTED}[outcome["status"]])


def _show(outcome: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"{outcome['search_id']}: {outcome['completed']} of {outcome['trials']} trials done")
    for column in ("", "value"):
        table.add_column(column)
    best = outcome["best"]
    if best:
        table.add_row("best trial", f"{best['number']:04}, objective {best['objective']:.4f}")
        for place, value in best["settings"].items():
            table.add_row(place, f"{value:.4g}" if isinstance(value, float) else str(value))
    found = outcome["comparison"]
    if found and found["low"] is not None:
        words = "excludes the control" if found["excludes_control"] else "does not exclude the control"
        table.add_row(
            f"winner - control, {found['metric']}",
            f"{found['difference']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f}), {words}",
        )
    if outcome["agreement"]:
        agreed = outcome["agreement"]
        tau = "not defined" if agreed["tau"] is None else f"{agreed['tau']:+.2f}"
        table.add_row("ranking at full length", f"Kendall's tau {tau}, {len(agreed['trials'])} trials")
    table.add_row("stopped, failed", f"{outcome['stopped']}, {outcome['failed']}")
    beside = outcome["overhead_s_per_trial"]
    told = "" if beside is None else f", {beside} a trial beside its training"
    table.add_row("seconds", f"{outcome['seconds']:.0f}{told}")
    console.print(table)
    console.print(f"report     {outcome['report']}", highlight=False, soft_wrap=True)
    console.print(f"dashboard  antiphon dashboard {outcome['report'].removesuffix('/report.html')}", soft_wrap=True)
