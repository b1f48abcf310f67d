"""`antiphon submit`, `jobs`, `logs`, `stop`: jobs of a Ray cluster. Parses and prints; `orchestrator/jobs/` works."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from orchestrator.cli.options import FAILED, JsonOption, only_json
from orchestrator.cli.printing import cell, print_note

DETACHED = 130  # the exit code after Ctrl-C, as of any command; the job goes on
JobsAddressOption = Annotated[
    str,
    typer.Option(
        "--address",
        help="The cluster's dashboard, http://HEAD:8265; default: $RAY_API_SERVER_ADDRESS, else `antiphon cluster up`.",
    ),
]
NameArg = Annotated[str, typer.Argument(metavar="NAME", help="A job's name, which is its run's or search's id.")]


def submit(
    context: typer.Context,
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[run|search|teach|study] RECIPE [OPTION]", help="What the job does; `run` if not said."
        ),
    ],
    name: Annotated[
        str, typer.Option("--id", help="The name of the job and of its run or search; default: from recipe and time.")
    ] = "",
    address: JobsAddressOption = "",
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="A variable that the nodes must have, or one to set for the job."),
    ] = None,
    python: Annotated[str, typer.Option(help="Python on the nodes; default: python.")] = "",
    installed: Annotated[
        bool, typer.Option("--installed", help="The nodes have antiphon: send the recipe only.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the cluster has the job.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Have a Ray cluster run a command of antiphon, and follow it to its end; again: go on with what it has left."""
    from orchestrator.cli.submitted_command import submitted_command
    from orchestrator.jobs import control
    from orchestrator.jobs.client import Jobs
    from orchestrator.jobs.submission import Submission, check_environment

    check_environment(env or [])
    command = submitted_command(context, arguments, name, env or [])
    submission = Submission(
        command.kind,
        command.recipe,
        command.arguments,
        command.name,
        command.storage,
        command.teacher_runs,
        env=env or (),
        python=python,
        installed=installed,
    )
    with only_json(as_json) as emit:
        jobs = Jobs(address)
        job_id = control.submit(jobs, submission, say=print_note)
        code = None
        if not detach:
            with _detachable(command.name):
                code = control.follow(jobs, job_id, _write)
        emit({"job": job_id, "name": command.name, "uri": submission.uri, "exit_code": code})
    raise typer.Exit(code or 0)


def jobs(address: JobsAddressOption = "", as_json: JsonOption = False) -> None:
    """List the jobs of a Ray cluster."""
    from orchestrator.jobs.client import Jobs
    from orchestrator.jobs.control import STOP

    with only_json(as_json) as emit:
        found = [job for job in Jobs(address).all() if job.metadata.get("antiphon") != STOP]
        emit({"jobs": [_row(job) for job in found]})
        if not as_json:
            Console().print(_table(found))


def logs(
    name: NameArg,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends, and exit with its exit code.")
    ] = False,
    address: JobsAddressOption = "",
) -> None:
    """Print what a job has printed; of several jobs of that name the newest."""
    from orchestrator.jobs import control
    from orchestrator.jobs.client import Jobs

    cluster = Jobs(address)
    job = control.jobs_named(cluster, name)[0]
    if not follow:
        _write(cluster.log(job.id))
        return
    with _detachable(name):
        raise typer.Exit(control.follow(cluster, job.id, _write))


def stop(
    name: NameArg,
    address: JobsAddressOption = "",
    storage: Annotated[
        str, typer.Option(help="Where the run or search is stored: ask it by a file there, instead of through a job.")
    ] = "",
    patience: Annotated[float, typer.Option(help="Seconds until a job that has not ended is terminated.")] = 300.0,
) -> None:
    """Have a job, or any run or search, save and end."""
    if storage:
        from orchestrator.jobs.stop_request import stop_in_storage

        for asked in stop_in_storage(storage, name):
            print_note(f"{asked} is asked to save and stop")
        return
    from orchestrator.jobs import control
    from orchestrator.jobs.client import Jobs

    if not control.stop(Jobs(address), name, patience_s=patience, say=print_note):
        raise typer.Exit(FAILED)


@contextmanager
def _detachable(name: str) -> Iterator[None]:
    """Ctrl-C ends the command, and not the job."""
    try:
        yield
    except KeyboardInterrupt:
        print_note(f"the job goes on: `antiphon logs -f {name}` follows it, `antiphon stop {name}` saves and ends it")
        raise typer.Exit(DETACHED) from None


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _row(job: Any) -> dict[str, Any]:
    """One job for --json."""
    known = {key: job.metadata.get(key, "") for key in ("name", "uri")}
    times = {"started_ms": job.started_ms, "ended_ms": job.ended_ms}
    command = job.metadata.get("antiphon", "")
    return {"job": job.id, "command": command, **known, "status": job.status, "exit_code": job.exit_code, **times}


def _table(found: list[Any]) -> Table:
    table = Table()
    for column in ("job", "command", "status", "exit code", "started", "where"):
        table.add_column(column, overflow="fold")
    for job in found:
        started = f"{datetime.fromtimestamp(job.started_ms / 1000):%Y-%m-%d %H:%M:%S}" if job.started_ms else ""
        code = "" if job.exit_code is None else str(job.exit_code)
        metadata = job.metadata
        values = [job.id, metadata.get("antiphon", ""), job.status.lower(), code, started, metadata.get("uri", "")]
        table.add_row(*map(cell, values))
    return table
