"""`antiphon search`: search a recipe's space. Parses and prints; `search/driver.py` does the work."""

import shlex
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from orchestrator.cli.options import (
    EXIT_CODES,
    STORAGE,
    AddressOption,
    JsonOption,
    RecipeArg,
    ResumeSearchOption,
    SearchIdOption,
    SetOption,
    StorageOption,
    TrackingOption,
    WaitOption,
    WorkersOption,
    cluster_address,
    command_line,
    only_json,
    repeated_by,
    report_may_fail,
)
from orchestrator.cli.printing import cell, print_note, print_out, print_warning

BudgetOption = Annotated[
    str,
    typer.Option(
        help="When to stop starting trials (finals not counted): a total number (24), or a time from now (30m, 2h, "
        "4gpuh: GPU-hours); default: search.trials."
    ),
]
SlotsOption = Annotated[int, typer.Option(help="Concurrent trials; default: as many as fit in the cluster.")]
FinalsOption = Annotated[
    bool,
    typer.Option(help="Repeat the finalists, the winner and its control with new seeds; compare winner and control."),
]
FullOption = Annotated[
    int, typer.Option(metavar="N", help="Train N trials again at full length, to see whether their ranking holds.")
]


def search(
    recipe: RecipeArg,
    settings: SetOption = None,
    storage: StorageOption = STORAGE,
    tracking: TrackingOption = "",
    address: AddressOption = "",
    wait: WaitOption = 0.0,
    budget: BudgetOption = "",
    workers: WorkersOption = 1,
    slots: SlotsOption = 0,
    search_id: SearchIdOption = "",
    resume: ResumeSearchOption = "",
    finals: FinalsOption = True,
    full: FullOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Search the space of a recipe's search.space table: temperatures, edge weights, schedules."""
    from orchestrator.recipes.loader import load_recipe
    from orchestrator.search.driver import search as run_search
    from orchestrator.search.request import SearchRequest

    request = SearchRequest(
        load_recipe(recipe, settings),
        command_line(),
        storage=storage,
        tracking=tracking,
        address=cluster_address(address),
        workers=workers,
        wait_s=wait,
        slots=slots,
        budget=budget,
        search_id=search_id,
        resume=resume,
        finals=finals,
        full=full,
    )
    with only_json(as_json) as emit:
        result = run_search(request, warn=print_warning)
        outcome = result.outcome
        emit(outcome)
        if outcome["status"] != "preempted":
            with report_may_fail(result.location.uri):
                from orchestrator.reports.write import write_search_page

                write_search_page(result.location)
    if outcome["status"] == "preempted":
        print_note(f"interrupted; to continue, {repeated_by(resume, outcome['search_id'])}")
    elif not as_json:
        _print_outcome(outcome)
    raise typer.Exit(EXIT_CODES[outcome["status"]])


def _print_outcome(outcome: dict[str, Any]) -> None:
    Console().print(_table(outcome))
    print_out(f"report     {outcome['report']}")
    print_out(f"dashboard  antiphon dashboard {shlex.quote(outcome['report'].removesuffix('/report.html'))}")


def _table(outcome: dict[str, Any]) -> Table:
    """One row for the best trial and each of its settings, the comparison, the agreement, counts and time."""
    table = Table(title=cell(f"{outcome['search_id']}: {outcome['completed']} of {outcome['trials']} trials done"))
    for column in ("", "value"):
        table.add_column(column)
    if best := outcome["best"]:
        table.add_row("best trial", f"{best['number']:04}, objective {best['objective']:.4f}")
        for path, value in best["settings"].items():
            table.add_row(cell(path), cell(f"{value:.4g}" if isinstance(value, float) else str(value)))
    comparison = outcome["comparison"]
    if comparison and comparison["low"] is not None:
        verdict = "excludes zero" if comparison["excludes_control"] else "includes zero"
        interval = f"{comparison['low']:+.4f} to {comparison['high']:+.4f}"
        table.add_row(
            f"winner - control, {comparison['metric']}", f"{comparison['difference']:+.4f} ({interval}), {verdict}"
        )
    if agreement := outcome["agreement"]:
        tau = "not defined" if agreement["tau"] is None else f"{agreement['tau']:+.2f}"
        table.add_row("ranking at full length", f"Kendall's tau {tau}, {len(agreement['trials'])} trials")
    table.add_row("stopped, failed", f"{outcome['stopped']}, {outcome['failed']}")
    overhead = outcome["overhead_s_per_trial"]
    per_trial = "" if overhead is None else f", {overhead} per trial in addition to training"
    table.add_row("seconds", f"{outcome['seconds']:.0f}{per_trial}")
    return table
