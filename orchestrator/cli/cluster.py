"""`antiphon cluster`: the local stack, and files that make real clusters. Parses and prints; `cluster/` works."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from orchestrator.cli.options import FAILED, JsonOption
from orchestrator.cli.printing import print_note, print_out

if TYPE_CHECKING:
    from cluster.processes import Service, State


app = typer.Typer(no_args_is_help=True, help="A local Ray, MLflow and S3, and files for real clusters.")
notes = Console(stderr=True)

FolderOption = Annotated[Path, typer.Option(help="Folder of the stack: records, keys, logs and data.")]
FOLDER = Path("~/.antiphon/stack")


@app.command()
def up(
    cpus: Annotated[int | None, typer.Option(help="CPUs that Ray may assign; default: all.")] = None,
    s3: Annotated[
        str | None,
        typer.Option(
            metavar="moto|rgw", help="Also an S3 server: moto loses its objects when it ends, rgw (Ceph) keeps them."
        ),
    ] = None,
    mlflow: Annotated[bool, typer.Option("--mlflow/--no-mlflow", help="Also an MLflow server, on SQLite.")] = True,
    folder: FolderOption = FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Start the services that do not run yet. Prints shell exports: eval "$(antiphon cluster up)" sets them."""
    from cluster import stack

    try:
        with notes.status("starting; Ray and MLflow take 15 to 40 seconds"):
            result = stack.up(folder, cpus=cpus, mlflow=mlflow, s3=s3)
    except RuntimeError as failure:
        raise _failed(failure) from None
    environment = stack.client_environment(result)
    notes.print(_table((service, "up") for service in result.services))
    running = [service.name for service in result.services if service.name not in result.launched]
    print_note(f"started: {', '.join(result.launched) or 'nothing'}; was up: {', '.join(running) or 'nothing'}")
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
        typer.echo(f"export {name}={shlex.quote(value)}")  # with the S3 server's key: `eval` needs it
    print_out(f"# antiphon run RECIPE --address {result.ray_address}")


@app.command()
def down(folder: FolderOption = FOLDER, as_json: JsonOption = False) -> None:
    """Stop the stack's services; data and logs stay."""
    from cluster import stack

    try:
        with notes.status("stopping"):
            stopped = stack.down(folder)
    except RuntimeError as failure:
        raise _failed(failure) from None
    print_note(f"stopped: {', '.join(stopped) or 'nothing was running'}")
    if as_json:
        _emit(folder=str(folder.expanduser()), stopped=stopped)


@app.command()
def status(folder: FolderOption = FOLDER, as_json: JsonOption = False) -> None:
    """Show the services and their states; exit code 1 if one of them is not up, or if there is none."""
    from cluster import stack

    states = stack.status(folder)
    all_up = bool(states) and all(state == "up" for _, state in states)
    if as_json:
        services = [_record(service, state) for service, state in states]
        _emit(folder=str(folder.expanduser()), up=all_up, services=services)
    elif states:
        Console().print(_table(states))
        for service, _ in states:
            print_out(f"log  {service.log}")
    else:
        print_note(f"no stack in {folder}; start one: antiphon cluster up")
    if not all_up:
        raise typer.Exit(FAILED)


@app.command()
def leave(
    seconds: Annotated[
        float, typer.Option(help="How long that may take; Kubernetes kills a pod 30 seconds after it says so.")
    ] = 25.0,
) -> None:
    """Before this node is taken away: have drivers here save and end, and workers move to other nodes."""
    from orchestrator.jobs.leave_node import leave_node

    if not leave_node(seconds=seconds, say=print_note):
        raise typer.Exit(FAILED)


@app.command()
def render(
    context: typer.Context,
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="A .toml file, or `example`: the shipped one.")],
    to: Annotated[str, typer.Option(metavar="kuberay|autoscaler|slurm", help="What the text is for.")],
    kind: Annotated[
        str, typer.Option(metavar="job|cron|cluster|service", help="What is to be made; default: as the spec says.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="The file to write; default: print it.")] = None,
) -> None:
    """Write the manifests, cluster file or batch script of a spec; nothing is sent anywhere."""
    from cluster.render import render as render_spec
    from orchestrator.cli.rendered_command import checked_spec
    from workloads.runtime.atomic_files import replace_text, require_folder_for

    if out is not None:
        require_folder_for(out, "--out")
    text = render_spec(checked_spec(context, spec, kind), to)
    if out is None:
        typer.echo(text, nl=False)
        return
    replace_text(out, text)
    print_note(f"wrote {out}")


def _table(states: "Iterable[tuple[Service, State]]") -> Table:
    table = Table("service", "state", "address", "pid")
    for service, state in states:
        table.add_row(service.name, state, service.address, str(service.pid))
    for column in table.columns:
        column.overflow = "fold"  # a truncated address is useless
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
