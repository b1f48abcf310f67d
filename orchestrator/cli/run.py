"""`antiphon run`: train a recipe. Parses and prints; `training/driver.py` does the work."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from orchestrator.cli.comparison_table import comparison_table, scores_not_compared
from orchestrator.cli.options import (
    EXIT_CODES,
    STORAGE,
    AddressOption,
    CompareOption,
    JsonOption,
    RecipeArg,
    ResumeRunOption,
    RunIdOption,
    RunWorkersOption,
    SeedsOption,
    SetOption,
    StorageOption,
    TrackingOption,
    WaitOption,
    cluster_address,
    command_line,
    only_json,
    repeated_by,
    report_may_fail,
)
from orchestrator.cli.printing import cell, print_note, print_out, print_warning
from workloads.config.edge import Edge, teacher_name
from workloads.runtime.json_files import json_text

SHOWN_PHASES = 40  # of a dry run's table: the first and the last ones
console = Console(stderr=True)


def run(
    recipe: RecipeArg,
    settings: SetOption = None,
    workers: RunWorkersOption = "1",
    storage: StorageOption = STORAGE,
    tracking: TrackingOption = "",
    address: AddressOption = "",
    wait: WaitOption = 0.0,
    run_id: RunIdOption = "",
    resume: ResumeRunOption = "",
    patience: Annotated[float, typer.Option(help="Seconds to retry while the storage is unavailable.")] = 300.0,
    compare: CompareOption = None,
    seeds: SeedsOption = 1,
    local: Annotated[bool, typer.Option("--local", help="Train in this process, without Ray.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the resolved recipe and its phases.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe: its models teach each other according to its schedule."""
    from orchestrator.recipes.loader import load_recipe
    from orchestrator.training.request import RunRequest, check_request
    from orchestrator.training.seeds import require_seeds, run_seeds
    from orchestrator.training.worker_count import parse_workers

    if compare is not None:
        settings = [*(settings or []), f"compare={str(compare).lower()}"]
    request = RunRequest(
        load_recipe(recipe, settings),
        command_line(),
        storage=storage,
        tracking=tracking,
        workers=parse_workers(workers),
        address=cluster_address(address, local=local),
        local=local,
        run_id=run_id,
        resume=resume,
        patience_s=patience,
        wait_s=wait,
    )
    warned: list[str] = []

    def warn(line: str) -> None:
        warned.append(line)
        print_warning(line)

    with only_json(as_json) as emit:
        if dry_run:
            require_seeds(request, seeds)
            phases = check_request(request)
            notes = _data_notes(request.recipe)
            _dry_run(request.recipe, phases, emit, as_json)
            for note in notes:
                print_note(note)
            return
        from orchestrator.cli.progress_bar import progress

        result = run_seeds(
            request,
            seeds=seeds,
            show_progress=lambda location: progress(location.event_log, console, warned=warned),
            warn=warn,
            finished=lambda result: _write_report(result, patience_s=patience),
        )
        emit(result.outcome)
        _write_report(result, patience_s=patience)
        _print_outcome(result.outcome, resume=resume, resume_id=result.resume_id)
        raise typer.Exit(EXIT_CODES[result.outcome["status"]])


def _write_report(result: Any, *, patience_s: float) -> None:
    if result.published:
        with report_may_fail(result.location.uri):
            from orchestrator.reports.write import write_run_report  # Plotly costs a second

            resumable = result.outcome["status"] == "preempted"
            write_run_report(result.location, patience_s=patience_s, resumable=resumable)


def _print_outcome(outcome: dict[str, Any], *, resume: str, resume_id: str) -> None:
    """Print the outcome to stderr; ValueError if the run failed by a mistake of the user.

    `resume` is what the command had as --resume, `resume_id` what it needs where that is not the run's own id.
    """
    from orchestrator.tracking.uri import ui_command

    if outcome["mistake"]:
        raise ValueError(outcome["error"])
    if outcome["models"]:
        console.print(_table(outcome))
        if not any(row["val"] for row in outcome["models"].values()):
            print_note("no scores: no clip of the data has a label")
        for name, row in outcome["models"].items():
            print_note(f"model     {name}: {row['checkpoint']}")
    if outcome.get("compare"):
        console.print(comparison_table(outcome["compare"]))
        for line in scores_not_compared(outcome["compare"]):
            print_note(line)
    print_note(f"report    {outcome['report']}")
    if ui := ui_command(outcome["tracking"]):
        print_note(f"tracking  {ui}")
    if outcome["status"] != "preempted":
        if outcome["error"]:
            print_note(f"failed: {outcome['error']}")
        return
    done = outcome["resumed_from_step"] + outcome["steps_run"]
    again = repeated_by(resume, resume_id or outcome["run_id"])
    if outcome["error"]:  # of what is unavailable now: nobody took the machine away, and the reason comes first
        print_note(f"unavailable: {outcome['error']}")
        print_note(f"saved at step {done}; {again} to continue")
    else:
        print_note(f"preempted: saved at step {done}; {again} to continue")


def _data_notes(recipe: Any) -> list[str]:
    """What to say of the data; a table that is not on this machine may be where the recipe is to run."""
    from orchestrator.training.driver import check_recipe_data, with_learnable_controls
    from workloads.data.table import NoSuchTable
    from workloads.runtime.precision import precision_warnings

    warnings = precision_warnings(recipe.train)
    unchecked = []
    try:
        warnings += check_recipe_data(with_learnable_controls(recipe, warnings.append))
    except NoSuchTable as missing:
        unchecked = [f"note: the data is not checked: {missing}"]
    return [f"warning: {warning}" for warning in warnings] + unchecked


def _dry_run(recipe: Any, phases: Any, emit: Any, as_json: bool) -> None:
    """Print the resolved recipe and a table of its phases; with --json the recipe alone, for `python -m workloads`."""
    from orchestrator.recipes.loader import resolve

    resolved = resolve(recipe)
    emit(resolved)
    if as_json:
        return
    typer.echo(json_text(resolved, indent=1))
    table = Table(title=cell(f"{recipe.name}: {len(phases)} phases, {sum(phase.steps for phase in phases)} steps"))
    for column in ("phase", "steps", "learns", "edges"):
        table.add_column(column)
    shown = list(enumerate(phases))
    left_out = len(shown) - SHOWN_PHASES
    for number, phase in shown if left_out <= 0 else shown[: SHOWN_PHASES // 2] + shown[-SHOWN_PHASES // 2 :]:
        if left_out > 0 and number == len(shown) - SHOWN_PHASES // 2:
            table.add_row("...", f"{left_out:,} more", "", "")
        edges = ", ".join(f"{_teacher(edge)} -> {edge.student} ({edge.weight:g})" for edge in phase.edges)
        table.add_row(str(number + 1), f"{phase.start}-{phase.end}", ", ".join(phase.trains), edges or "labels only")
    Console().print(table)
    _print_stores(recipe)


def _print_stores(recipe: Any) -> None:
    """Whose outputs the stores hold that teach: a run refuses other teachers only where it is resumed."""
    from orchestrator.planning.stores import stores_in
    from orchestrator.storage.fsspec_files import FsspecFiles
    from workloads.stores.store import name_teachers

    for key, store, column in stores_in(recipe, FsspecFiles()):
        print_out(f"{key}: column {column} of {store.uri}, outputs of {name_teachers(store.teachers(column))}")


def _table(outcome: dict[str, Any]) -> Table:
    """One row per model of the run: steps, scores, size."""
    rows = outcome["models"]
    metric = "accuracy" if any("accuracy" in row["val"] for row in rows.values()) else "mAP"
    table = Table(title=cell(f"{outcome['run_id']}: {outcome['status']} in {outcome['seconds']:.0f} s"))
    parts = ("val", "test") if any(row["val"] for row in rows.values()) else ()  # no scores of data without labels
    shown = [(part, metric) for part in parts]
    others = ("frame_mAP", "attention_mass", "own_attention_mass")
    shown += [("test", name) for name in others if any(name in row["test"] for row in rows.values())]
    headers = (f"{part} {name.replace('_', ' ')}" for part, name in shown)
    for column in ("model", "steps learned", "steps as teacher", *headers, "parameters"):
        table.add_column(column, overflow="fold", justify="left" if column == "model" else "right")
    for name, row in rows.items():
        scores = [f"{row[part][name]:.3f}" if name in row[part] else "-" for part, name in shown]
        table.add_row(name, str(row["steps_learned"]), str(row["steps_taught"]), *scores, f"{row['params']:,}")
    return table


def _teacher(edge: Edge) -> str:
    label = edge.name or teacher_name(edge.teacher)
    return label if edge.carries == "logits" else f"{label}, {edge.carries},"
