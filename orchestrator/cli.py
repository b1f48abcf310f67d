"""`antiphon`: parses the command line first, imports what is heavy afterwards.

Exit codes: 0 done, 1 failed, 2 the user's mistake, 75 preempted (saved; run it again).
"""

import json
import shlex
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator import cli_cluster, cli_dashboard, cli_export, cli_models, cli_plan, cli_search, cli_track
from orchestrator.options import (
    FAILED,
    MISTAKE,
    PREEMPTED,
    AddressOption,
    CheckpointArg,
    JsonOption,
    RecipeArg,
    SetOption,
    StorageOption,
    TrackingOption,
    emitted,
    only_json,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Audio taggers that teach each other, on Ray.")
data_app = typer.Typer(no_args_is_help=True, help="Look at a data set without training.")
app.add_typer(data_app, name="data")
app.add_typer(cli_cluster.app, name="cluster")
app.add_typer(cli_models.app, name="models")
app.add_typer(cli_track.app, name="track")

console = Console(stderr=True)


def main() -> None:
    """The command line; turns the user's mistakes into one line and exit code 2."""
    try:
        app()
    except ValueError as mistake:
        if "--json" in sys.argv and not emitted:
            print(json.dumps({"status": "failed", "mistake": True, "error": str(mistake)}))
        console.print(f"[red]mistake:[/] {escape(' '.join(str(mistake).split()))}", highlight=False, soft_wrap=True)
        raise SystemExit(MISTAKE) from None
    except OSError as error:  # a disk or a store that is full or away: nobody's mistake, and no reason for a traceback
        if "--json" in sys.argv and not emitted:
            print(json.dumps({"status": "failed", "mistake": False, "error": str(error)}))
        console.print(f"[red]failed:[/] {escape(' '.join(str(error).split()))}", highlight=False, soft_wrap=True)
        raise SystemExit(FAILED) from None


@app.command()
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
    from orchestrator.training.request import Request, check

    command = shlex.join(["antiphon", *sys.argv[1:]])
    request = Request(
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
            _dry_run(request.recipe, check(request), emit, as_json)
            return
        from orchestrator.progress import progress
        from orchestrator.runs.outcome import table
        from orchestrator.tracking.uri import ui_command

        outcome = run_recipe(request, show=lambda place: progress(place.spool, console))
        emit(outcome)
        if outcome["mistake"]:
            raise ValueError(outcome["error"])
        if outcome["models"]:
            console.print(table(outcome))
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


@app.command()
def recipes(as_json: JsonOption = False) -> None:
    """List the shipped recipes."""
    from orchestrator.recipes.loader import header, shipped_names

    with only_json(as_json) as emit:
        emit({"recipes": [{"name": name, "header": header(name)} for name in shipped_names()]})
        if not as_json:
            for name in shipped_names():
                typer.echo(f"{name}\n  " + "\n  ".join(header(name)))


@data_app.command("check")
def data_check(recipe: RecipeArg, settings: SetOption = None, as_json: JsonOption = False) -> None:
    """Decode a recipe's data set into the cache and say what is in it, without training."""
    from orchestrator.recipes.loader import load_recipe
    from orchestrator.storage.object_store import FsspecFiles
    from workloads.data.prepare import prepare

    loaded = load_recipe(recipe, settings)
    with only_json(as_json) as emit:
        found = prepare(loaded, FsspecFiles()).summary()
        emit(found)
        if not as_json:
            typer.echo(f"fingerprint {found['fingerprint']}")
            typer.echo("clips       " + ", ".join(f"{name} {count}" for name, count in found["clips"].items()))
            typer.echo(f"tags        {', '.join(found['tags'])}")
            typer.echo(f"quarantined {len(found['quarantined'])}")
            for broken in found["quarantined"]:
                typer.echo(f"  {broken['clip_id']}  {broken['path']}: {broken['reason']}")


@app.command()
def evaluate(
    checkpoint: CheckpointArg,
    data: Annotated[str, typer.Option(help="A recipe whose data set (and test fold) to score on.")],
    settings: SetOption = None,
    part: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    as_json: JsonOption = False,
) -> None:
    """Score a tagger on a part of a recipe's data set."""
    from orchestrator.artifacts.evaluate import evaluate_checkpoint
    from orchestrator.recipes.loader import load_recipe

    loaded = load_recipe(data, settings)
    with only_json(as_json) as emit:
        scores = evaluate_checkpoint(checkpoint, loaded, part)
        emit(scores)
        if not as_json:
            for name, value in scores["scores"].items():
                typer.echo(f"{name:10} {value:.4f}")


@app.command()
def tag(
    checkpoint: CheckpointArg,
    files: Annotated[list[str], typer.Argument(help="Audio files: wav, flac, ogg, mp3; local or URIs.")],
    top: Annotated[int, typer.Option(help="How many tags a file.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Say what can be heard in files."""
    from orchestrator.artifacts.evaluate import tag_files

    with only_json(as_json) as emit:
        heard, broken = tag_files(checkpoint, files, top=top)
        emit({"files": heard, "broken": broken})
        for name, tags in {} if as_json else heard.items():
            typer.echo(name)
            for label, probability in tags:
                typer.echo(f"  {probability:6.3f}  {label}")
        for name, reason in broken.items():
            console.print(f"{name}: {reason}", highlight=False)
        if broken:
            raise typer.Exit(FAILED)


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's or a search's folder or URI: STORAGE/ID.")],
    out: Annotated[str, typer.Option(help="Where to write it; default: ./RUN_ID.html.")] = "",
) -> None:
    """Write the report of a run or a search anew from its records, finished or not."""
    from orchestrator.reports.rewrite import rewrite_report

    typer.echo(rewrite_report(run, out))


app.command()(cli_plan.plan)
app.command()(cli_search.search)
app.command()(cli_dashboard.dashboard)
app.command()(cli_export.export)


if __name__ == "__main__":
    main()
