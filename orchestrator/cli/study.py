"""`antiphon study`: every way of teaching side by side. Parses and prints; `study/driver.py` does the work."""

from typing import Annotated, Any

import typer
from rich.console import Console

from orchestrator.cli.options import (
    EXIT_CODES,
    STORAGE,
    AddressOption,
    JsonOption,
    SetOption,
    StorageOption,
    TrackingOption,
    WaitOption,
    cluster_address,
    command_line,
    only_json,
    report_may_fail,
)
from orchestrator.cli.printing import print_note, print_warning

StudyArg = Annotated[
    str, typer.Argument(help="A shipped study's name (`antiphon recipes`), a .toml/.json file, or STUDY_ID/study.json.")
]
StudyIdOption = Annotated[
    str,
    typer.Option("--study-id", help="The study's name in the storage, with which its runs' begin; default: its own."),
]
SlotsOption = Annotated[int, typer.Option(help="Runs at once; default: as many as fit in the cluster.")]


def study(
    study: StudyArg,
    settings: SetOption = None,
    storage: StorageOption = STORAGE,
    tracking: TrackingOption = "",
    address: AddressOption = "",
    wait: WaitOption = 0.0,
    slots: SlotsOption = 0,
    study_id: StudyIdOption = "",
    local: Annotated[bool, typer.Option("--local", help="One run after another in this process, without Ray.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the methods and what ends the study.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare ways of teaching over folds and seeds with a control without teachers; again: go on with what is left."""
    from orchestrator.cli.study_table import print_plan, print_results
    from orchestrator.study.plan import load_plan
    from orchestrator.study.request import StudyRequest, check

    request = StudyRequest(
        load_plan(study, settings),
        command_line(),
        storage=storage,
        tracking=tracking,
        study_id=study_id,
        local=local,
        address=cluster_address(address, local=local),
        slots=slots,
        wait_s=wait,
    )
    with only_json(as_json) as emit:
        request = check(request, warn=print_warning)
        if dry_run:
            emit(request.plan.as_json())
            if not as_json:
                print_plan(request.plan)
            return
        from orchestrator.cli.progress_bar import progress
        from orchestrator.study.driver import run_study

        console = Console(stderr=True)
        result = run_study(request, show_progress=lambda location: progress(location.event_log, console))
        outcome = result.outcome
        emit(outcome)
        with report_may_fail(result.location.uri):
            from orchestrator.reports.write import write_study_report

            print_note(f"report  {write_study_report(result.location, outcome)}")
        if not as_json:
            print_results(outcome)
    _print_end(outcome)
    raise typer.Exit(EXIT_CODES[outcome["status"]])


def _print_end(outcome: dict[str, Any]) -> None:
    for run, error in outcome["failed"].items():
        print_note(f"failed: {run}: {error}")
    if outcome["status"] == "preempted":
        left = outcome["total"] - outcome["runs"]
        print_note(f"stopped with {left} runs left; repeat the command to go on")
    elif outcome["failed"]:
        print_note(f"{len(outcome['failed'])} runs failed; repeat the command to try them again")
