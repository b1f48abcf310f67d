"""`antiphon cluster`: the local stack on the command line. Parses and prints; `cluster/stack.py` does the work."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from orchestrator.cli.options import FAILED, JsonOption

if TYPE_CHECKING:
    from cluster.processes import Service, State


app = typer.Typer(no_args_is_help=True, help="Start, stop and look at a local Ray, MLflow and S3.")
notes = Console(stderr=True)

FolderOption = Annotated[Path, typer.Option(help="Where the stack keeps its record, keys, logs and data.")]
FOLDER = Path("~/.antiphon/stack")


@app.command()
def up(
    cpus: Annotated[int | None, typer.Option(help="CPUs that Ray may give out; default: all.")] = None,
    s3: Annotated[
        str | None, typer.Option(metavar="moto|rgw", help="An S3 server too: moto forgets, rgw keeps.")
    ] = None,
    mlflow: Annotated[bool, typer.Option("--mlflow/--no-mlflow", help="An MLflow server on SQLite.")] = True,
    folder: FolderOption = FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Start what does not run yet. The table goes to stderr: eval "$(antiphon cluster up)" sets the environment."""
    from cluster import stack

    try:
        with notes.status("starting; Ray and MLflow take 15 to 40 seconds"):
            result = stack.up(folder, cpus=cpus, mlflow=mlflow, s3=s3)
    except RuntimeError as failure:
        raise _failed(failure) from None
    environment = stack.client_environment(result)
    notes.print(_table((service, "up") for service in result.services))
    kept = [service.name for service in result.services if service.name not in result.launched]
    notes.print(f"started: {', '.join(result.launched) or 'nothing'}; was up: {', '.join(kept) or 'nothing'}")
    if as_json:
        _emit(
            folder=str(result.folder),
            address=result.ray_address,
            launched=result.launched,
            environment=environment,
            services=[_record(service, "up") for service in result.services],
        )
        return
    for name, value in environment.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
    typer.echo(f"# antiphon run RECIPE --address {result.ray_address}")


@app.command()
def down(folder: FolderOption = FOLDER, as_json: JsonOption = False) -> None:
    """Stop the stack's services, by their pids; data and logs stay."""
    from cluster import stack

    try:
        with notes.status("stopping"):
            stopped = stack.down(folder)
    except RuntimeError as failure:
        raise _failed(failure) from None
    notes.print(f"stopped: {', '.join(stopped) or 'nothing, it was down'}")
    if as_json:
        _emit(folder=str(folder.expanduser()), stopped=stopped)


@app.command()
def status(folder: FolderOption = FOLDER, as_json: JsonOption = False) -> None:
    """Show the services; exit code 1 if one of them is not up, or if there are none."""
    from cluster import stack

    states = stack.status(folder)
    good = bool(states) and all(state == "up" for _, state in states)
    if as_json:
        services = [_record(service, state) for service, state in states]
        _emit(folder=str(folder.expanduser()), up=good, services=services)
    elif states:
        Console().print(_table(states))
    else:
        notes.print(f"no stack in {folder}; start one: antiphon cluster up")
    if not good:
        raise typer.Exit(FAILED)


def _table(states: "Iterable[tuple[Service, State]]") -> Table:
    table = Table("service", "state", "address", "pid", "log")
    for service, state in states:
        table.add_row(service.name, state, service.address, str(service.pid), service.log)
    for column in table.columns:
        column.overflow = "fold"  # an address cut short is of no use
    return table


def _record(service: "Service", state: "State") -> dict[str, Any]:
    return {
        "name": service.name,
        "state": state,
        "address": service.address,
        "pid": service.pid,
        "log": service.log,
    }


def _emit(**values: Any) -> None:
    typer.echo(json.dumps(values))


def _failed(failure: RuntimeError) -> typer.Exit:
    notes.print(f"failed: {failure}", style="red", markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(FAILED)
