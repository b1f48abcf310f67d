"""`antiphon store import`: a store of stored outputs that another project has published.

Parses and prints; `orchestrator/stores/imports/` reads and writes.
"""

from typing import Annotated, Any

import typer

from orchestrator.cli.counted_progress import counted_progress
from orchestrator.cli.options import JsonOption, SetOption, only_json
from orchestrator.cli.printing import print_out, print_warning
from workloads.runtime.text import name_some

SHOWN = 3  # clips named in a warning


def store_import(
    source: Annotated[str, typer.Argument(metavar="FILE", help="The published file, or CED's folder.")],
    format: Annotated[
        str, typer.Option("--from", help="Who published it: efficientat, ced, dcase24 or pretrainedsed.")
    ],
    out: Annotated[str, typer.Option(help="The new store: a folder or URI.")],
    index: Annotated[str, typer.Option(help="EfficientAT: the pickle that says which clip is in which row.")] = "",
    tags: Annotated[
        str, typer.Option(help="One tag per line, or a CSV with display_name; AudioSet's 527 need none.")
    ] = "",
    clips: Annotated[
        str, typer.Option(help="Only these clips: a table with clip_id, or a recipe, whose data set's clips are meant.")
    ] = "",
    settings: SetOption = None,
    names: Annotated[
        str, typer.Option(help="audioset: clips are named by their video; exact: by the name in the file.")
    ] = "audioset",
    k: Annotated[int, typer.Option("--k", help="Largest values kept of each row; 0: all.")] = 0,
    teacher: Annotated[str, typer.Option(help="The teacher's name; default: as --from.")] = "",
    front_end: Annotated[str, typer.Option(help="The teacher's front end; default: the published one.")] = "",
    clip_seconds: Annotated[
        float, typer.Option(show_default=False, help="Seconds that the teacher heard; default: the published 10.")
    ] = 0,
    rate: Annotated[
        int, typer.Option(show_default=False, help="Rate of what it heard, in Hz; default: the published one.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make a store of teacher outputs that another project has published. Killed: run it again."""
    from orchestrator.stores.imports.import_store import import_store
    from orchestrator.stores.imports.published import check_request
    from orchestrator.stores.imports.source import ImportRequest

    known = {"names": names, "k": k, "teacher": teacher, "front_end": front_end}
    request = ImportRequest(
        source,
        format,
        index=index,
        tags=tags,
        clip_seconds=clip_seconds,
        rate=rate,
        **known,  # type: ignore[arg-type]
    )
    check_request(request)
    with only_json(as_json) as emit:
        wanted = _wanted(clips, settings)
        with counted_progress("shards imported") as on_shard:
            result = import_store(request, out, wanted, on_shard=on_shard)
        emit(result)
        if not as_json:
            print_out(f"{result['rows']:,} rows of {result['clips']:,} clips in {result['views']} views: {out}")
    _warn(result, clips)


def _wanted(clips: str, settings: list[str] | None) -> set[str] | None:
    from orchestrator.recipes.loader import load_data
    from orchestrator.stores.imports.wanted import clips_of_data, clips_of_table, is_table

    if settings and (not clips or is_table(clips)):
        raise ValueError(f"--set {settings[0]}: changes the recipe of --clips; there is none")
    if not clips:
        return None
    return clips_of_table(clips) if is_table(clips) else clips_of_data(load_data(clips, settings))


def _warn(result: dict[str, Any], clips: str) -> None:
    for found, what in (
        (result["missing"], f"clips of {clips} have no rows"),
        (result["left_out"], "clips with rows are not wanted"),
    ):
        if found["count"]:
            more = f" and {found['count'] - SHOWN:,} more" if found["count"] > SHOWN else ""
            print_warning(f"{found['count']:,} {what}: {name_some(found['first'][:SHOWN])}{more}")
