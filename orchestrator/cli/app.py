"""The `antiphon` command: registers every command, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 a mistake of the user, 75 try again: preempted (saved; resume it), driven by another
process, or a store, server or cluster that does not answer. Commands import heavy modules when they run, so that
`antiphon --help` stays below a second.
"""

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.cli import cluster, models, store, tracking
from orchestrator.cli.compare import compare
from orchestrator.cli.data import data_app, recipes
from orchestrator.cli.diff import diff
from orchestrator.cli.doctor import doctor
from orchestrator.cli.embed import embed
from orchestrator.cli.export import export
from orchestrator.cli.init import init
from orchestrator.cli.jobs import jobs, logs, stop, submit
from orchestrator.cli.options import FAILED, MISTAKE, PREEMPTED, emitted
from orchestrator.cli.pack import data_pack, data_verify
from orchestrator.cli.plan import plan
from orchestrator.cli.printing import cell, drop_stdout, open_streams, print_out, show_every_name
from orchestrator.cli.report import dashboard, report
from orchestrator.cli.run import run
from orchestrator.cli.runs import runs
from orchestrator.cli.search import search
from orchestrator.cli.serve import serve
from orchestrator.cli.status import status
from orchestrator.cli.store_import import store_import
from orchestrator.cli.study import study
from orchestrator.cli.taggers import evaluate, tag
from orchestrator.cli.teach import teach
from workloads.runtime.checkpoint_store import AlreadyDriven
from workloads.runtime.json_files import json_text
from workloads.runtime.redaction import redacting_stderr
from workloads.runtime.version import VERSION

app = typer.Typer(
    no_args_is_help=True,
    # Rich breaks lines before they reach stderr, and a secret over two lines is not found.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 120},
    help="Audio taggers that teach each other, on Ray.",
)
commands: tuple[Callable[..., None], ...] = (
    *(init, run, recipes, evaluate, tag, embed, serve, report, plan, search, study, dashboard, export, teach),
    *(runs, compare, diff, status, jobs, logs, stop, doctor),
)
for command in commands:
    app.command()(command)
# the options that are not its own belong to the command that it submits
app.command(context_settings={"ignore_unknown_options": True})(submit)
data_app.command("pack")(data_pack)
data_app.command("verify")(data_verify)
store.app.command("import")(store_import)
groups = {"data": data_app, "store": store.app, "cluster": cluster.app, "models": models.app, "track": tracking.app}
for name, group in groups.items():
    app.add_typer(group, name=name)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_out(f"antiphon {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. ValueError: the user's mistake. OSError: a disk or a store is full or unavailable."""
    open_streams()
    show_every_name()
    with redacting_stderr():
        try:
            app()
        except ValueError as mistake:
            raise _exit_for(mistake, "mistake", MISTAKE) from None
        except AlreadyDriven as busy:  # job systems repeat a command that ends so
            raise _exit_for(busy, "busy", PREEMPTED) from None
        except OSError as error:  # no mistake of the user, and a traceback would not help
            from orchestrator.storage.retry import Unavailable

            if isinstance(error, Unavailable):
                raise _exit_for(error, "unavailable", PREEMPTED) from None
            raise _exit_for(error, "failed", FAILED) from None
        except Exception as error:
            if not _is_stores(error):
                raise
            raise _exit_for(error, "failed", FAILED) from None


def program() -> None:
    """The command line as a process of its own, which ends at once where it is preempted.

    Tearing an interpreter with torch and Ray down takes a second of CPU time, on a busy machine ten of the thirty that
    Kubernetes gives. All files are closed by then.
    """
    try:
        main()
    except SystemExit as end:
        if end.code != PREEMPTED:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(PREEMPTED)


def _is_stores(error: Exception) -> bool:
    """Whether the client of an object store raised it: no credentials, a wrong profile, no region."""
    return type(error).__module__.split(".")[0] in ("botocore", "aiobotocore")


def _exit_for(error: Exception, label: str, code: int) -> SystemExit:
    """Print the error in one line on stderr, and as JSON if that is wanted and no JSON line is out yet."""
    if "--json" in sys.argv and not emitted:
        try:
            print(json_text({"status": "failed", "mistake": code == MISTAKE, "error": str(error)}), flush=True)
        except OSError:  # stdout may be on the disk that is full
            drop_stdout()
    line = cell(f"{label}: {' '.join(map(str.strip, str(error).splitlines()))}")
    line.stylize("red", 0, len(label) + 1)
    Console(stderr=True).print(line, soft_wrap=True)
    return SystemExit(code)


if __name__ == "__main__":
    program()
