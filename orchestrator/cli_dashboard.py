"""`antiphon dashboard`: a search's page in the browser. Parses and prints; `dashboard.py` serves."""

from typing import Annotated

import typer


def dashboard(
    search: Annotated[str, typer.Argument(metavar="SEARCH", help="A search's folder or URI: STORAGE/SEARCH_ID.")],
    host: Annotated[
        str, typer.Option(help="Where to listen; whoever can reach it may read, there is no password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one.")] = 0,
) -> None:
    """Show a search, live while it runs and afterwards; ends with Ctrl-C."""
    from orchestrator.reports.search.dashboard import serve

    serve(search, host=host, port=port, ready=lambda address: typer.echo(f"dashboard {address}"))
