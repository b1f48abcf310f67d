"""What several commands share: options and arguments, exit codes, and the one JSON line of --json."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.printing import OutputDescriptor
from workloads.runtime.json_files import json_text
from workloads.runtime.redaction import redacted

FAILED, MISTAKE, PREEMPTED = 1, 2, 75
EXIT_CODES = {"done": 0, "failed": FAILED, "preempted": PREEMPTED}  # of the status of a run's or a search's outcome
STORAGE = "runs"  # the default of --storage


def _number_or_range(text: str) -> str:
    from orchestrator.training.worker_count import parse_workers

    try:
        parse_workers(text)
    except ValueError as mistake:
        raise typer.BadParameter(str(mistake)) from None
    return text


def _recipes_like(incomplete: str) -> list[str]:
    """The shipped recipes of runs that begin so; asked by the shell for each Tab key, so it imports nothing heavy."""
    from orchestrator.recipes.loader import shipped_names

    return [name for name in shipped_names() if name.startswith(incomplete)]


RecipeArg = Annotated[
    str,
    typer.Argument(
        help="A shipped recipe's name (`antiphon recipes`) or a .toml/.json file.", autocompletion=_recipes_like
    ),
]
CheckpointArg = Annotated[str, typer.Argument(help="A published tagger: the folder or URI RUN/models/NAME.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one value of the recipe.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object as the last line; all else to stderr.")]

# options of `run` and `search`
StorageOption = Annotated[str, typer.Option(help="Where runs and searches are stored: a folder or s3://bucket/prefix.")]
TrackingOption = Annotated[
    str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow URI, or none; default: SQLite beside the runs.")
]
AddressOption = Annotated[
    str,
    typer.Option(help="A Ray cluster: auto or HOST:PORT; default: $RAY_ADDRESS, as within a Ray job, or a local one."),
]
WaitOption = Annotated[
    float, typer.Option("--wait", metavar="SECONDS", help="How long to wait for a cluster that scales up.")
]
RunWorkersOption = Annotated[
    str,
    typer.Option(
        "--workers",
        metavar="N|MIN-MAX",
        callback=_number_or_range,
        help="Data-parallel workers; must divide train.shards. A range: as many as the cluster holds.",
    ),
]
WorkersOption = Annotated[int, typer.Option(help="Data-parallel workers of each trial; must divide train.shards.")]
RunIdOption = Annotated[
    str, typer.Option("--run-id", help="The new run's name, or with --resume auto that of one to create or continue.")
]
SearchIdOption = Annotated[
    str,
    typer.Option("--search-id", help="The new search's name, or with --resume auto that of one to create or continue."),
]
ResumeRunOption = Annotated[
    str,
    typer.Option(
        "--resume",
        metavar="ID|auto",
        help="Resume a run; auto: the one of --run-id, else the newest unfinished, if any.",
    ),
]
CompareOption = Annotated[
    bool | None,
    typer.Option(
        "--compare/--no-compare",
        help="Train untaught controls beside the students and print the difference; default: as the recipe says.",
        show_default=False,
    ),
]
SeedsOption = Annotated[
    int, typer.Option(metavar="N", help="Repeat the comparison with N seeds, from the recipe's own on.")
]
ResumeSearchOption = Annotated[
    str, typer.Option("--resume", metavar="ID|auto", help="Resume a search; auto: the one of --search-id, if any.")
]

emitted: list[int] = []  # the number of bytes of the JSON line, once it is written


def cluster_address(address: str, *, local: bool = False) -> str:
    """The address that a command connects to: the option's, else RAY_ADDRESS, which Ray sets within a job.

    Empty for a Ray of the command's own; what stands in the environment does not keep --local from running without.
    """
    return address or ("" if local else os.environ.get("RAY_ADDRESS", ""))


def repeated_by(resume: str, name: str) -> str:
    """How to go on with a run or search called `name` that a command with this --resume has begun."""
    return "repeat the command" if resume else f"repeat the command with --resume {name}"


def command_line() -> str:
    """The command as the user typed it, without secrets, for the records.

    With the program's path where a shell would not find it.
    """
    path = Path(sys.argv[0]).absolute()
    found = shutil.which("antiphon")
    is_other = path.is_file() and (found is None or not path.samefile(found))
    return shlex.join([str(path) if is_other else "antiphon", *map(redacted, sys.argv[1:])])


@contextmanager
def only_json(wanted: bool) -> Iterator[Any]:
    """With --json, redirect stdout to stderr, child processes' too; only what the yielded function gets is on stdout.

    Changes file descriptor 1 of the process for the time of the context: use it in one thread, and do not nest it.
    """
    if not wanted:
        yield lambda _: None
        return
    stdout = os.dup(1)
    out = OutputDescriptor(stdout)
    os.dup2(2, 1)
    try:
        yield lambda value: emitted.append(out.write((json_text(value) + "\n").encode()))
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


@contextmanager
def report_may_fail(uri: str) -> Iterator[None]:
    """Print an error of the report to stderr instead of raising it: the run or search is finished and published."""
    try:
        yield
    except Exception as error:  # a figure, a template, a full disk: none of them may change the outcome
        from orchestrator.storage.retry import describe_error

        reason = describe_error(error)
        print(
            f"the report could not be written: {reason}; `antiphon report {shlex.quote(uri)}` writes it again",
            file=sys.stderr,
        )
