"""`antiphon report` and `antiphon dashboard`: the pages of runs and searches. Parses and prints."""

from typing import Annotated

import typer

from orchestrator.cli.printing import print_out


def report(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's, a search's or a study's folder or URI: STORAGE/ID.")
    ],
    out: Annotated[str, typer.Option(help="The file to write; default: ./RUN_ID.html.")] = "",
    without_audio: Annotated[bool, typer.Option("--without-audio", help="Leave out clips that a run's plays.")] = False,
) -> None:
    """Write the report of a run, a search or a study again from its records, finished or not."""
    from orchestrator.reports.write import rewrite_report

    print_out(rewrite_report(run, out, audio=not without_audio))


def dashboard(
    search: Annotated[str, typer.Argument(metavar="SEARCH", help="A search's folder or URI: STORAGE/SEARCH_ID.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; there is no password, so every client that reaches it can read.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: a free one.")] = 0,
) -> None:
    """Serve a page that shows a search, live while it runs and afterwards; stop it with Ctrl-C."""
    from orchestrator.reports.search.dashboard import serve

    serve(search, host=host, port=port, ready=lambda address: print_out(f"dashboard {address}"))
