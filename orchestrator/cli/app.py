"""`antiphon`: parses the command line first, imports what is heavy afterwards.

Exit codes: 0 done, 1 failed, 2 the user's mistake, 75 preempted (saved; run it again).
"""

import json
import sys

import typer
from rich.console import Console
from rich.markup import escape

from orchestrator.cli import cluster, models, tracking
from orchestrator.cli.data import data_app, recipes
from orchestrator.cli.export import export
from orchestrator.cli.options import FAILED, MISTAKE, emitted
from orchestrator.cli.plan import plan
from orchestrator.cli.report import dashboard, report
from orchestrator.cli.run import run
from orchestrator.cli.search import search
from orchestrator.cli.taggers import evaluate, tag

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Audio taggers that teach each other, on Ray.")
for command in (run, recipes, evaluate, tag, report, plan, search, dashboard, export):
    app.command()(command)
for name, group in {"data": data_app, "cluster": cluster.app, "models": models.app, "track": tracking.app}.items():
    app.add_typer(group, name=name)

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


if __name__ == "__main__":
    main()
