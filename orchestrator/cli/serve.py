"""`antiphon serve`: taggers behind HTTP. Parses and prints; `orchestrator/serving/` serves."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated

import typer

from orchestrator.cli.options import AddressOption, cluster_address
from orchestrator.cli.printing import print_out

PACKAGES = {"fastapi": "fastapi", "multipart": "python-multipart", "mmh3": "mmh3"}  # module -> package of the extra


def serve(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Published taggers: RUN/models/NAME, or NAME=URI.")
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; there is no password, so every client that reaches it may ask.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8000,
    max_seconds: Annotated[float, typer.Option(help="The longest sound.")] = 300.0,
    max_mb: Annotated[float, typer.Option(help="The largest upload.")] = 50.0,
    batch_seconds: Annotated[float, typer.Option(help="Seconds of sound that are heard at once.")] = 60.0,
    batch_wait_ms: Annotated[float, typer.Option(help="How long a sound waits for others to be heard with.")] = 5.0,
    ongoing: Annotated[int, typer.Option(help="Requests that a replica works on at once.")] = 16,
    queued: Annotated[int, typer.Option(help="Requests that may wait besides; further ones get 503.")] = 32,
    replicas: Annotated[int, typer.Option(help="Processes that hold the taggers.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads of each replica.")] = 1,
    url_prefix: Annotated[
        list[str] | None,
        typer.Option("--url-prefix", metavar="URL/", help="Let clients name sounds below this address; default: none."),
    ] = None,
    address: AddressOption = "",
) -> None:
    """Serve taggers over HTTP with Ray Serve: /tag, /events, a page to drop a sound on; stop it with Ctrl-C."""
    if missing := [package for module, package in PACKAGES.items() if find_spec(module) is None]:
        raise ValueError(f"antiphon serve: needs {', '.join(missing)}, not installed; pip install 'antiphon[serve]'")
    from cluster.process_registry import free_ports
    from orchestrator.serving.hosts import accepted_hosts
    from orchestrator.serving.options import ServeOptions
    from orchestrator.serving.server import Address, named_models, serve_taggers

    found = named_models(models)
    options = ServeOptions(
        models={name: model.uri for name, model in found.items()},
        max_seconds=max_seconds,
        max_mb=max_mb,
        batch_seconds=batch_seconds,
        batch_wait_ms=batch_wait_ms,
        ongoing=ongoing,
        queued=queued,
        replicas=replicas,
        threads=threads,
        url_prefixes=tuple(url_prefix or ()),
        hosts=accepted_hosts(host),
    )
    for name, model in found.items():
        options.require_room(name, model.clip_seconds)
    where = Address(host, port or free_ports(1)[0], cluster_address(address))
    serve_taggers(options, where, ready=lambda url, metrics: _print_ready(options.models, url, metrics))


def _print_ready(models: Mapping[str, str], url: str, metrics: list[str]) -> None:
    print_out(f"models      {', '.join(models)}")
    print_out(f"page        {url}")
    print_out(f"interface   {url}openapi.json")
    for each in metrics:
        print_out(f"metrics     {each}")
