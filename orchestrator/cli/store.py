"""`antiphon store`: what a store of teacher outputs holds, whether it is whole, stores as one, a store as a table.

Parses and prints; `orchestrator/stores/` reads and writes.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.counted_progress import counted_progress
from orchestrator.cli.options import FAILED, STORAGE, JsonOption, SetOption, only_json
from orchestrator.cli.printing import print_note, print_out, print_warning
from workloads.runtime.text import name_some
from workloads.stores.description import DRAWN_ELSEWHERE

if TYPE_CHECKING:
    from orchestrator.teaching.rehear import HeardAgain
    from workloads.config.teach import TeachRecipe

HEARD_CLIPS = 16
app = typer.Typer(no_args_is_help=True, help="Inspect, check, merge, import and export stores of teacher outputs.")

StoreArg = Annotated[str, typer.Argument(metavar="STORE", help="A store: its folder or URI.")]


@app.command()
def info(store: StoreArg, as_json: JsonOption = False) -> None:
    """Print what a store holds: rows, teachers, tags, views, bytes."""
    from orchestrator.stores.inspect import describe_store

    with only_json(as_json) as emit:
        found = describe_store(store)
        emit(found)
        if not as_json:
            for line in _info_lines(found):
                print_out(line)


def _info_lines(found: dict[str, Any]) -> list[str]:
    view = found["view_recipe"]
    augment = ", ".join(f"{key} {value}" for key, value in view["augment"].items()) or "no augmentation"
    drawn = "drawn elsewhere" if view["version"] == DRAWN_ELSEWHERE else f"version {view['version']}"
    lines = [
        f"{found['rows']:,} rows: {found['clips']:,} clips in {found['views']} views, {found['shards']} shards",
        f"{found['bytes']:,} bytes, {found['bytes_per_row']} a row",
        f"{found['tags']} tags ({found['labels']})" if found["tags"] else "no tags",
        *(
            f"teacher {name}: imported from files of {found['imported_from'][name]}, {sha256}"
            if found["imported_from"].get(name)
            else f"teacher {name}: weights {sha256}"
            for name, sha256 in found["weights"].items()
        ),
        f"views of {view['clip_seconds']:g} s at {view['rate']} Hz, {drawn}: {augment}",
    ]
    for name, column in found["columns"].items():
        mean = f"; the mean of their {column['mean_of']}" if "mean_of" in column else ""
        teachers = ", ".join(column["teachers"])
        lines.append(f"column {name}: {column['holds']}, {_shape_of(column)}, {column['dtype']}, of {teachers}{mean}")
    return lines


def _shape_of(column: dict[str, Any]) -> str:
    """What of a row is stored, in words."""
    if column["holds"] == "profile":
        return f"{column['frames']['count']} steps of {column['frames']['hop_seconds']:g} s"
    kept = f"top {column['k']} of {column['width']}" if "k" in column else f"all {column['width']}"
    return f"{kept} in {column['frames']['count']} frames" if "frames" in column else kept


@app.command()
def verify(
    store: StoreArg,
    hear: Annotated[
        str, typer.Option(metavar="RECIPE", help="Also hear some clips again through the teachers of this recipe.")
    ] = "",
    clips: Annotated[
        int, typer.Option(show_default=False, help=f"With --hear: how many clips; default: {HEARD_CLIPS}.")
    ] = 0,
    storage: Annotated[
        str,
        typer.Option(
            show_default=False, help=f"With --hear: where the runs of teachers 'run:...' are; default: {STORAGE}."
        ),
    ] = "",
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every file of a store: checksums, finite values, every clip once. Exit code 1 where one is wrong."""
    from orchestrator.stores.inspect import verify_store

    recipe = _teach_recipe(hear, clips, storage, settings)
    heard: HeardAgain | None = None
    with only_json(as_json) as emit:
        with counted_progress("shards checked") as on_shard:
            found = verify_store(store, on_shard)
        if recipe and not found.damaged:
            from orchestrator.teaching.rehear import hear_again

            heard = hear_again(recipe, store, clips=clips or HEARD_CLIPS, storage=storage or STORAGE)
        report = {"shards": found.shards, "rows": found.rows, "damaged": found.damaged, "foreign": found.foreign}
        emit(report | ({"heard": asdict(heard)} if heard else {}))
        if not as_json:
            print_out(f"{found.shards} shards, {found.rows:,} rows, {len(found.damaged)} damaged files")
            for problem in found.damaged:
                print_out(f"  {problem}")
            for line in _heard_lines(heard) if heard else ():
                print_out(line)
    if found.damaged:
        print_note("remove the damaged files, and what has filled the store makes them again, and only them")
    if found.foreign:
        print_warning(f"{len(found.foreign)} files are not of the store: {name_some(found.foreign, 3)}")
    if found.damaged or (heard and heard.differing):
        raise typer.Exit(FAILED)


def _teach_recipe(hear: str, clips: int, storage: str, settings: list[str] | None) -> "TeachRecipe | None":
    """The recipe of --hear, if there is one; ValueError for a mistake in these options, before anything is read."""
    from orchestrator.recipes.loader import load_teach_recipe

    if (clips or storage or settings) and not hear:
        raise ValueError("--clips, --storage and --set belong to --hear RECIPE; leave them out")
    if clips < 0:
        raise ValueError(f"--clips {clips}: must be 1 or more")
    return load_teach_recipe(hear, settings) if hear else None


def _heard_lines(heard: "HeardAgain") -> list[str]:
    largest = ", ".join(f"{value:.3g} ({name})" for name, value in heard.largest.items())
    lines = [f"{heard.clips} clips heard again, {heard.rows} rows: largest difference {largest}"]
    if heard.differing:
        lines.append(f"{len(heard.differing)} clips differ from what the teachers say: {name_some(heard.differing)}")
    return lines


@app.command()
def merge(
    stores: Annotated[list[str], typer.Argument(metavar="STORE STORE ...", help="Two stores or more.")],
    out: Annotated[str, typer.Option(help="The new store: a folder or URI.")],
    as_json: JsonOption = False,
) -> None:
    """Make one store of several with the same teachers, tags and views, and different clips. Killed: run it again."""
    from orchestrator.stores.merge import merge_stores

    if len(stores) < 2:
        raise ValueError(f"merge: {len(stores)} store given; name two or more")
    with only_json(as_json) as emit:
        with counted_progress("shards merged") as on_shard:
            manifest = merge_stores(stores, out, on_shard=on_shard)
        emit({"store": out, "rows": manifest["rows"], "shards": len(manifest["shards"])})
        if not as_json:
            print_out(f"{manifest['rows']:,} rows in {len(manifest['shards'])} shards: {out}")


@app.command()
def export(
    store: StoreArg,
    out: Annotated[str, typer.Argument(metavar="FILE.parquet", help="The table: clip_id, view, tags, values.")],
    as_json: JsonOption = False,
) -> None:
    """Write a store as a Parquet table with a row for each clip and view."""
    from orchestrator.stores.export import export_store

    with only_json(as_json) as emit:
        with counted_progress("shards exported") as on_shard:
            rows = export_store(store, out, on_shard)
        emit({"file": out, "rows": rows})
        if not as_json:
            print_out(f"{rows:,} rows: {out}")
