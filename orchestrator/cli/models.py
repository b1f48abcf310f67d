"""`antiphon models`: which networks there are, and those that others trained. Parses and prints.

`workloads/catalog.py` knows the names, `imports.py` reads published weights.
"""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from orchestrator.cli.options import JsonOption
from workloads.models.catalog import CATALOG, CLASSES, SECONDS
from workloads.models.official.projects import SOURCES

app = typer.Typer(invoke_without_command=True)
MODELS_HELP = f"List the published networks with their sizes at {CLASSES} classes and clips of {SECONDS:g} s."


@app.callback(help=MODELS_HELP)
def models(
    context: typer.Context,
    latency: Annotated[
        bool, typer.Option("--latency", help="Time one clip on this CPU, one thread, front end included.")
    ] = False,
    only: Annotated[str, typer.Option(help="Only names that begin so: mn, dymn, ced_ ...")] = "",
    as_json: JsonOption = False,
) -> None:
    if context.invoked_subcommand:
        return
    chosen = {name: model for name, model in CATALOG.items() if name.startswith(only)}
    if not chosen:
        raise ValueError(f"--only {only!r}: no published model begins so; they are {', '.join(CATALOG)}")
    from workloads.models.size import model_size, seconds_per_clip

    rows: list[dict[str, Any]] = []
    with Console(stderr=True).status("counting") as status:
        for name, model in chosen.items():
            status.update(f"counting {name}")
            shape: dict[str, Any] = {"num_classes": CLASSES, "clip_seconds": SECONDS, "clip_rate": model.front_end.rate}
            size = model_size(model, **shape)
            row = {"name": name, "family": model.arch.family, "params": size.params, "macs": size.macs}
            row["front_end"] = model.front_end.kind
            if latency:
                row["latency_ms"] = round(1000 * seconds_per_clip(model, **shape), 2)
            rows.append(row)
    if as_json:
        typer.echo(json.dumps({"models": rows, "classes": CLASSES, "clip_seconds": SECONDS}))
    else:
        Console().print(_table(rows, latency))


def _table(rows: list[dict[str, Any]], latency: bool) -> Table:
    table = Table(title=f"{CLASSES} classes, clips of {SECONDS:g} s")
    for column in ("name", "family", "params / M", "MACs / G", "front end", *(["ms / clip"] if latency else [])):
        table.add_column(column, justify="right" if "/" in column else "left")
    for row in rows:
        timed = [f"{row['latency_ms']:.1f}"] if latency else []
        sizes = (f"{row['params'] / 1e6:.3f}", f"{row['macs'] / 1e9:.3f}")
        table.add_row(row["name"], row["family"], *sizes, row["front_end"], *timed)
    return table


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Published weights: .pt, .pth, .bin or .safetensors.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder or URI for the tagger.")],
    family: Annotated[str, typer.Option(help=f"What it is: {', '.join(SOURCES)}.")],
    tags: Annotated[
        str, typer.Option(help="One tag per line, or a CSV with display_name; AudioSet's 527 need none.")
    ] = "",
    name: Annotated[str, typer.Option(help="The tagger's name; default: made of the file's.")] = "",
    strides: Annotated[
        str, typer.Option(help="Of an MN or DyMN that has others than 2222, such as 2221; weights do not show them.")
    ] = "",
    labels: Annotated[
        str, typer.Option(help="single: one tag a clip; multi: any number; default: multi, of AST's ESC-50 single.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Make a tagger of weights that another project published: to tag, to start from (init), to teach."""
    from orchestrator.artifacts.import_weights import import_weights

    told = {"tags": tags or None, "name": name or None, "strides": strides or None, "labels": labels or None}
    made = import_weights(file, out, family=family, **told)
    if as_json:
        typer.echo(json.dumps(made))
        return
    arch = made["model"]["arch"]
    sizes = ", ".join(f"{key} {value}" for key, value in arch.items() if key != "family")
    typer.echo(f"{made['name']}: {arch['family']} ({sizes})")
    typer.echo(
        f"{made['params']:,} parameters, {made['tags']} tags ({made['labels']}), clips of {made['clip_seconds']:g} s"
    )
    hears = ", ".join(f"{key} {value}" for key, value in made["model"]["front_end"].items() if value)
    typer.echo(
        f"hears {hears.removeprefix('kind ')}; what the file does not tell is as in that project's usual networks"
    )
    typer.echo(f"from {made['origin']['project']}, licence {made['origin']['licence']}")
    if made["dropped"]:
        typer.echo(
            f"left out, {len(made['dropped'])}: {', '.join(made['dropped'][:4])}{' ...' * (len(made['dropped']) > 4)}"
        )
    typer.echo(f"checkpoint  {made['checkpoint']}")
