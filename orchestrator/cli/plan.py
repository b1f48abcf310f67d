"""`antiphon plan`: the cost of a run. Parses and prints; `planning/cost.py` and `planning/measure.py` do the work."""

import sys
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from orchestrator.cli import plan_scale
from orchestrator.cli.options import FAILED, JsonOption, RecipeArg, SetOption
from orchestrator.cli.printing import cell, print_note, print_out
from workloads.runtime.json_files import json_text

if TYPE_CHECKING:
    from orchestrator.planning.cost import Cost
    from orchestrator.planning.measure import Measured
    from orchestrator.planning.stores import StoreCost
    from workloads.config.recipe import Recipe
    from workloads.distill.schedule import Phase
    from workloads.runtime.opener import Opener


def plan(
    recipe: RecipeArg,
    settings: SetOption = None,
    devices: Annotated[int, typer.Option(help="Data-parallel workers; must divide train.shards.")] = 1,
    tflops: Annotated[
        float | None, typer.Option(help="The rate that a device reaches in practice, in TFLOP/s; needed for hours.")
    ] = None,
    clips: Annotated[
        int | None, typer.Option(help="Number of training clips, where the metadata is not available.")
    ] = None,
    tags: Annotated[int | None, typer.Option(help="Number of tags; together with --clips.")] = None,
    cluster: Annotated[
        str,
        typer.Option(
            metavar="SPEC", help="Also hours, bottleneck and price on 1 to 1000 workers of this cluster's spec."
        ),
    ] = "",
    group: Annotated[
        str, typer.Option(help="With --cluster: the group of its nodes; default: the only that fits.")
    ] = "",
    workers: Annotated[str, typer.Option(metavar="N,N,...", help="With --cluster: these numbers of workers.")] = "",
    clip_kb: Annotated[
        float | None, typer.Option(help="With --cluster: kB of a stored clip; default: as many as decoded.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--measure", metavar="STEPS", help="Train this many steps here and compare.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compute the cost of a run: parameters, FLOPs, bytes, hours. Exit code 1 if --measure contradicts it."""
    with redirect_stdout(sys.stderr):
        from orchestrator.planning.cost import count_clips, model_sizes, plan_cost
        from orchestrator.planning.measure import measure
        from orchestrator.recipes.loader import load_recipe
        from orchestrator.storage.fsspec_files import FsspecFiles
        from orchestrator.training.request import RunRequest, check_request
        from orchestrator.training.worker_count import WorkerCount

        loaded = _colocated(load_recipe(recipe, settings), cluster)
        files, measured, scale = FsspecFiles(), None, None
        _check_devices(loaded, devices)
        target = plan_scale.target(loaded, cluster, group=group, workers=workers, clip_kb=clip_kb, tflops=tflops)
        phases = check_request(RunRequest(loaded, "antiphon plan", workers=WorkerCount(devices, devices)))
        _check_options(tflops, clips, steps, phases[-1].end)
        counted = count_clips(loaded, files, clips=clips, tags=tags)
        sizes = model_sizes(loaded, tags=counted.tags)
        cost = plan_cost(loaded, phases, counted, sizes)
        stores = _stores(loaded, phases, cost, files, known=clips is None)
        if target is not None:
            scale = plan_scale.predict(target, loaded, phases, sizes, cost, files, known=clips is None, stores=stores)
        if steps is not None:
            measured = measure(loaded, plan_cost(loaded, phases, counted, sizes, until=steps), sizes, files=files)
    hours = None if tflops is None else cost.hours(tflops=tflops, devices=devices)
    if as_json:
        result = {"recipe": loaded.name, "devices": devices, "flops": cost.flops, "hours": hours, **asdict(cost)}
        result["stores"] = [asdict(store) for store in stores]
        result["measured"] = None if measured is None else _measured_json(measured, cost)
        typer.echo(json_text(result | {"cluster": None if scale is None else plan_scale.as_json(scale)}))
    else:
        _print_cost(loaded, cost, known=clips is None)
        _print_stores(stores)
        if hours is not None:
            typer.echo(f"hours        {hours:.3g} on {devices} x {tflops:g} TFLOP/s")
        if measured is not None:
            _print_measured(measured, cost, stated=tflops)
        if scale is not None:
            plan_scale.print_scale(loaded, scale)
    if measured is not None and measured.wrong:
        raise typer.Exit(FAILED)


def _stores(
    recipe: "Recipe", phases: "tuple[Phase, ...]", cost: "Cost", files: "Opener", *, known: bool
) -> "tuple[StoreCost, ...]":
    """The cost of the stores that teach; where the data are not at hand (not `known`), they need not be either."""
    from orchestrator.planning.stores import plan_stores

    try:
        return plan_stores(recipe, phases, cost, files)
    except (ValueError, OSError) as error:
        if known:
            raise
        print_note(f"note: not counted: {error}")
        return ()


def _colocated(recipe: "Recipe", cluster: str) -> "Recipe":
    """The recipe with all models on every worker, for which costs are counted; ValueError where hours on a cluster are
    asked for, which depend on the placement."""
    if recipe.placement == "colocated":
        return recipe
    if cluster:
        raise ValueError(
            f"placement = {recipe.placement!r}: --cluster predicts the times of workers that hold all models; --set "
            "placement=colocated"
        )
    print_note(f"note: placement = {recipe.placement!r} computes the same; clips that several workers read count once")
    return replace(recipe, placement="colocated")


def _check_options(tflops: float | None, clips: int | None, steps: int | None, end: int) -> None:
    if tflops is not None and not 0 < tflops < float("inf"):
        raise ValueError(f"--tflops {tflops:g}: must be above 0")
    if steps is not None and not 1 <= steps <= end:
        raise ValueError(f"--measure {steps}: must be 1 to {end}, the steps of the whole run")
    if steps is not None and clips is not None:
        raise ValueError(f"--clips {clips}: --measure trains on the recipe's own clips; leave one of the two out")


def _check_devices(recipe: "Recipe", devices: int) -> None:
    """ValueError if the recipe's shards cannot be divided among the devices."""
    if devices < 1:
        raise ValueError(f"--devices {devices}: must be 1 or more")
    if recipe.train.shards % devices:
        batch = recipe.train.batch_size
        size, left = divmod(batch, devices)
        note = f"SIZE (none keeps the {batch} clips of a step)" if left else f"{size} for steps of {batch} clips as now"
        raise ValueError(
            f"--devices {devices}: train.shards = {recipe.train.shards} must divide among them; "
            f"--set train.shards={devices} --set train.shard_size={note}"
        )


def _print_cost(recipe: "Recipe", cost: "Cost", *, known: bool) -> None:
    Console(width=140).print(_table(recipe.name, cost))
    scored = "1 to score" if known else "without scoring (--clips counts training clips)"
    typer.echo(f"FLOPs        of the networks alone, in forward passes per clip: 3 to learn, 1 to teach, {scored}")
    typer.echo("if stored    teachers' logits in fp16: bytes of one view x the views that students get")
    num_clips = cost.clips.train + cost.clips.val + cost.clips.test
    over = (
        f", more than data.cache_gb = {recipe.data.cache_gb:g}" if cost.cache_bytes > recipe.data.cache_gb * 1e9 else ""
    )
    typer.echo(
        f"clip cache   {size_of(cost.cache_bytes)} for {num_clips:,} clips, if each is data.clip_seconds long{over}"
    )
    times = cost.clips_read / num_clips
    typer.echo(f"read         {size_of(cost.bytes_read)}: {cost.clips_read:,} clips, {times:.3g} times each")
    typer.echo(f"checkpoints  {cost.checkpoints}, the last of {size_of(cost.checkpoint_bytes)}; tensors only")
    typer.echo(f"written      {size_of(cost.bytes_written)} in total; at most {size_of(cost.bytes_kept)} at any time")


def _print_stores(stores: "tuple[StoreCost, ...]") -> None:
    """Whose outputs teach, and what reading them takes; nothing without stores."""
    from workloads.stores.store import name_teachers

    for store in stores:
        print_out(f"store        {store.uri}: column {store.column} teaches {', '.join(store.edges)}")
        print_out(f"             outputs of {name_teachers(store.teachers)}")
        read = f"{size_of(store.step_bytes)} a step, {size_of(store.bytes_read)} in all"
        typer.echo(f"             rows of {size_of(store.row_bytes)}: {read}")
        typer.echo(f"             at most {size_of(store.memory_bytes)} in the memory of each worker")
        once = "copied once to each node" if store.remote else "read where they are"
        typer.echo(f"             {store.files:,} files of {size_of(store.file_bytes)}, {once}")


def _table(name: str, cost: "Cost") -> Table:
    table = Table(title=cell(f"{name}: {cost.steps:,} steps, {cost.epochs:.3g} epochs of {cost.clips.train:,} clips"))
    columns = ("model", "parameters", "MACs / clip", "learns", "teaches", "clips seen", "epochs", "FLOPs", "if stored")
    for column in columns:
        table.add_column(column, justify="left" if column == "model" else "right")
    for model_name, model in cost.models.items():
        table.add_row(
            model_name,
            f"{model.params:,}",
            f"{model.macs / 1e9:.4g} G",
            f"{model.own_steps:,}",
            f"{model.taught_steps:,}",
            f"{model.clips_seen:,}",
            f"{model.epochs:.3g}",
            f"{model.learn_flops + model.teach_flops + model.score_flops:.3g}",
            f"{size_of(model.store_view_bytes)} x {model.store_views}" if model.store_views else "-",
        )
    models = cost.models.values()
    params, macs, seen = (sum(getattr(model, key) for model in models) for key in ("params", "macs", "clips_seen"))
    table.add_row("all", f"{params:,}", f"{macs / 1e9:.4g} G", "", "", f"{seen:,}", "", f"{cost.flops:.3g}", "")
    return table


def _print_measured(measured: "Measured", cost: "Cost", *, stated: float | None) -> None:
    hours = cost.hours(tflops=measured.tflops, devices=1)
    typer.echo(f"measured     {measured.steps} steps here: {measured.seconds_per_step:.4g} s per step")
    typer.echo(f"             {measured.tflops:.4g} TFLOP/s, so {hours:.3g} hours for the whole run on one such device")
    if stated is not None:
        typer.echo(
            f"             --tflops {stated:g} is {stated / measured.tflops:.3g} times as much as this device reaches"
        )
    typer.echo(f"             {size_of(measured.files_bytes)} of files in its checkpoint")
    for entry in measured.compared:
        verdict = "WRONG" if entry in measured.wrong else "right"
        typer.echo(f"  {verdict}  {entry.what}: predicted {entry.predicted:,}, measured {entry.measured:,}")


def _measured_json(measured: "Measured", cost: "Cost") -> dict[str, Any]:
    hours = cost.hours(tflops=measured.tflops, devices=1)
    return asdict(measured) | {"hours": hours, "wrong": [entry.what for entry in measured.wrong]}


def size_of(number: int) -> str:
    """Bytes with a decimal unit: 1.05 GB."""
    value, units = float(number), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"
