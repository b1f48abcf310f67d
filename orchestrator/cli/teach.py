"""`antiphon teach`: fill a store with what teachers say of clips. Parses and prints; `orchestrator/teaching/` works."""

from typing import Annotated

import typer
from rich.console import Console

from orchestrator.cli.counted_progress import counted_progress
from orchestrator.cli.options import (
    EXIT_CODES,
    STORAGE,
    AddressOption,
    JsonOption,
    SetOption,
    WaitOption,
    cluster_address,
    command_line,
    only_json,
)
from orchestrator.cli.printing import print_note, print_out, print_warning


def teach(
    teach_recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="The recipe of a store: a shipped one's name, or a .toml/.json file."),
    ],
    out: Annotated[str, typer.Option(help="The store: a new folder or s3://bucket/prefix, or one to go on with.")],
    settings: SetOption = None,
    workers: Annotated[int, typer.Option(help="Ray workers; each loads all teachers.")] = 1,
    storage: Annotated[
        str, typer.Option(help="Where the runs are whose models teach ('run:...'); the store itself goes to --out.")
    ] = STORAGE,
    address: AddressOption = "",
    wait: WaitOption = 0.0,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
    patience: Annotated[float, typer.Option(help="Seconds to retry while the storage is unavailable.")] = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Store what the teachers of a recipe say of every clip of its data. Killed: run it again."""
    from orchestrator.recipes.loader import load_teach_recipe

    loaded = load_teach_recipe(teach_recipe, settings)
    from orchestrator.teaching.fill import fill_store
    from orchestrator.teaching.job import TeachRequest

    address = cluster_address(address, local=local)
    request = TeachRequest(
        loaded,
        out,
        workers=workers,
        address=address,
        wait_s=wait,
        local=local,
        patience_s=patience,
        storage=storage,
        command=command_line(),
    )
    with only_json(as_json) as emit:
        from orchestrator.cli.progress_bar import progress

        with counted_progress("shards") as on_shard:
            result = fill_store(
                request,
                on_shard=on_shard,
                warn=print_warning,
                show_progress=lambda location: progress(location.event_log, Console(stderr=True)),
            )
        emit(result)
        if result["status"] == "done" and not as_json:
            print_out(f"{result['rows']:,} rows of {result['clips']:,} clips in {result['views']} views: {out}")
            if result["shards_written"]:
                print_out(
                    f"workers together: teachers heard clips for {result['seconds_heard']:.1f} s, waited "
                    f"{result['seconds_waited']:.1f} s for them, and {result['seconds_wrote']:.1f} s were writing"
                )
    if result["status"] == "preempted":
        print_note(f"stopped: the shards that are written stay; the same command goes on: {command_line()}")
    raise typer.Exit(EXIT_CODES[result["status"]])
