"""`antiphon models`: the published networks, timm's, and the import of published weights. Parses and prints.

The networks are listed in `workloads/models/catalog.py`; `artifacts/import_weights.py` reads weights.
"""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from orchestrator.cli.options import JsonOption
from orchestrator.cli.printing import print_out
from workloads.config.architectures import Timm
from workloads.config.data import MAX_CLIP_SECONDS
from workloads.config.recipe import LOG_MELS, FrontEnd, Model, restore
from workloads.models.catalog import CATALOG, CLASSES, SECONDS
from workloads.models.official.projects import SOURCES
from workloads.runtime.json_files import json_text

app = typer.Typer(invoke_without_command=True)
MODELS_HELP = (
    f"List the published networks, or timm's, with their sizes at {CLASSES} classes and clips of {SECONDS:g} s."
)
TIMM_KIND = "kaldi128"  # the front end of CMKD's EfficientNet and of AST, whose networks are timm's


@app.callback(help=MODELS_HELP)
def models(
    context: typer.Context,
    latency: Annotated[
        bool, typer.Option("--latency", help="Also the time per clip on this CPU: one thread, front end included.")
    ] = False,
    only: Annotated[str, typer.Option(help="Only names with this prefix: mn, dymn, ced_ ...")] = "",
    timm: Annotated[
        str, typer.Option(metavar="PATTERN", help="List timm's networks instead: 'convnext*', 'vit_*tiny*' ...")
    ] = "",
    seconds: Annotated[float, typer.Option(help="Length of the clips.")] = SECONDS,
    front_end: Annotated[
        str, typer.Option(help=f"Of timm's networks: {', '.join(LOG_MELS)}; default: {TIMM_KIND}.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    if context.invoked_subcommand:
        return
    if not 0 < seconds <= MAX_CLIP_SECONDS:  # nor is nan
        raise ValueError(f"--seconds {seconds:g}: must be above 0, at most {MAX_CLIP_SECONDS}")
    if timm and only:
        raise ValueError(f"--only {only!r}: is for the published networks; leave it out with --timm")
    if front_end and not timm:
        raise ValueError(f"--front-end {front_end!r}: is for timm's networks; give --timm PATTERN too")
    chosen = _timm_models(timm, front_end or TIMM_KIND) if timm else _published(only)
    rows, refused = _sizes(chosen, seconds, latency)
    if as_json:
        found = {"models": rows, "classes": CLASSES, "clip_seconds": seconds}
        typer.echo(json_text(found | ({"refused": refused} if timm else {})))
        return
    Console().print(_table(rows, seconds, latency))
    for name, reason in refused.items():
        print_out(f"{name}: {reason}")


def _published(prefix: str) -> dict[str, Model]:
    chosen = {name: model for name, model in CATALOG.items() if name.startswith(prefix)}
    if not chosen:
        raise ValueError(f"--only {prefix!r}: no published model has this prefix; the names are {', '.join(CATALOG)}")
    return chosen


def _timm_models(pattern: str, kind: str) -> dict[str, Model]:
    """timm's networks whose names match, over one front end."""
    if kind not in LOG_MELS:
        raise ValueError(f"--front-end {kind!r}: no such log-mel; known are {', '.join(LOG_MELS)}")
    from timm import list_models

    names = list_models(pattern)
    if not names:
        raise ValueError(f"--timm {pattern!r}: none of timm's {len(list_models())} networks matches; try '*vit*tiny*'")
    front_end = restore(FrontEnd, {"kind": kind})
    return {name: Model(arch=Timm(family="timm", name=name), front_end=front_end) for name in names}


def _sizes(chosen: dict[str, Model], seconds: float, latency: bool) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One row for each network, and why others cannot be built for such clips."""
    from workloads.models.size import model_size, seconds_per_clip

    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    with Console(stderr=True).status("counting") as status:
        for name, model in chosen.items():
            status.update(f"counting {name}")
            shape: dict[str, Any] = {"num_classes": CLASSES, "clip_seconds": seconds, "clip_rate": model.front_end.rate}
            try:
                size = model_size(model, **shape)
            except ValueError as error:
                refused[name] = str(error)
                continue
            row = {"name": name, "family": model.arch.family, "params": size.params, "macs": size.macs}
            row["front_end"] = model.front_end.kind
            if latency:
                row["latency_ms"] = round(1000 * seconds_per_clip(model, **shape), 2)
            rows.append(row)
    return rows, refused


def _table(rows: list[dict[str, Any]], seconds: float, latency: bool) -> Table:
    table = Table(title=f"{CLASSES} classes, clips of {seconds:g} s")
    for column in ("name", "family", "params / M", "MACs / G", "front end", *(["ms / clip"] if latency else [])):
        table.add_column(column, justify="right" if "/" in column else "left")
    for row in rows:
        timed = [f"{row['latency_ms']:.1f}"] if latency else []
        sizes = (f"{row['params'] / 1e6:.3f}", f"{row['macs'] / 1e9:.3f}")
        table.add_row(row["name"], row["family"], *sizes, row["front_end"], *timed)
    return table


@app.command("import")
def import_(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Published weights: a file (.pt, .pth, .bin, .ckpt, .safetensors), a hub folder, or hf://org/name.",
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="The tagger's new folder or URI; of wav2vec2 FILE.safetensors, for init."),
    ],
    family: Annotated[
        str, typer.Option(help=f"The network's family, where names and shapes leave it open: {', '.join(SOURCES)}.")
    ] = "",
    tags: Annotated[
        str, typer.Option(help="One tag per line, or a CSV with display_name; a hub folder's and AudioSet's need none.")
    ] = "",
    name: Annotated[str, typer.Option(help="The tagger's name; default: from the file's name.")] = "",
    strides: Annotated[
        str, typer.Option(help="Strides of an MN or DyMN other than 2222, such as 2221; the weights do not show them.")
    ] = "",
    labels: Annotated[
        str, typer.Option(help="single: one tag a clip; multi: any number; default: multi, of AST's ESC-50 single.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Make a tagger of weights that another project published: to tag, to start from (init), to teach."""
    from orchestrator.artifacts.import_weights import import_weights

    options = {"tags": tags or None, "name": name or None, "strides": strides or None, "labels": labels or None}
    tagger = import_weights(file, out, family=family or None, **options)
    if as_json:
        typer.echo(json_text(tagger))
    elif "checkpoint" in tagger:
        _print_imported(tagger)
    else:
        _print_encoder(tagger)


def _print_imported(tagger: dict[str, Any]) -> None:
    arch, front_end, dropped = tagger["model"]["arch"], tagger["model"]["front_end"], tagger["dropped"]
    sizes = ", ".join(f"{key} {value}" for key, value in arch.items() if key != "family")
    values = ", ".join(f"{key} {value}" for key, value in front_end.items() if value).removeprefix("kind ")
    print_out(f"{tagger['name']}: {arch['family']} ({sizes})")
    clips = f"clips of {tagger['clip_seconds']:g} s"
    print_out(f"{tagger['params']:,} parameters, {tagger['tags']} tags ({tagger['labels']}), {clips}")
    print_out(f"front end {values}; what file and folder do not say is as in that project's usual networks")
    print_out(f"from {tagger['origin']['project']}, licence {tagger['origin']['licence']}")
    if dropped:
        print_out(f"left out, {len(dropped)}: {', '.join(dropped[:4])}{' ...' * (len(dropped) > 4)}")
    print_out(f"checkpoint  {tagger['checkpoint']}")


def _print_encoder(imported: dict[str, Any]) -> None:
    from orchestrator.artifacts.import_encoder import settings_of

    print_out(f"{imported['params']:,} parameters, licence {imported['origin']['licence']}; no tags: it is no tagger")
    if dropped := imported["dropped"]:
        print_out(f"left out, {len(dropped)}: {', '.join(dropped[:4])}{' ...' * (len(dropped) > 4)}")
    print_out(f"in a recipe's model  {settings_of(imported)}")
