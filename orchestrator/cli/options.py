"""What several commands of the command line have in common: options, and the one JSON line of --json."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

RecipeArg = Annotated[str, typer.Argument(help="A shipped recipe's name (`antiphon recipes`) or a .toml/.json file.")]
CheckpointArg = Annotated[str, typer.Argument(help="A published tagger: RUN/models/NAME, anywhere.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one value of the recipe.")]
StorageOption = Annotated[str, typer.Option(help="Where it goes: a folder or s3://bucket/prefix.")]
TrackingOption = Annotated[
    str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow URI, or none; default: SQLite beside the runs.")
]
AddressOption = Annotated[str, typer.Option(help="A Ray cluster: auto or HOST:PORT; default: a local one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object as the last line; all else to stderr.")]

FAILED, MISTAKE, PREEMPTED = 1, 2, 75  # exit codes; 0: done

emitted: list[int] = []  # bytes of the one JSON line, once it is out


@contextmanager
def only_json(wanted: bool) -> Iterator[Any]:
    """With --json, whatever anybody prints goes to stderr, and what is emitted here is the only line on stdout."""
    if not wanted:
        yield lambda _: None
        return
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield lambda value: emitted.append(os.write(stdout, (json.dumps(value) + "\n").encode()))
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


@contextmanager
def report_may_fail(uri: str) -> Iterator[None]:
    """A report that cannot be written is said on stderr: what it tells of is finished and published all the same."""
    try:
        yield
    except Exception as error:  # a figure, a template, a full disk: none of them may change what the run came to
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"the report could not be written: {reason}; `antiphon report {uri}` writes it anew", file=sys.stderr)
