"""`antiphon export`: a tagger as one file, on the command line. Parses and prints; `export.py` knows."""

import json
import sys
from contextlib import redirect_stdout
from typing import Annotated, Any

import typer

from orchestrator.cli.options import CheckpointArg, JsonOption


def export(
    checkpoint: CheckpointArg,
    out: Annotated[str, typer.Argument(metavar="OUT", help="The new file; a model card goes beside it, OUT.md.")],
    to: Annotated[str, typer.Option(help="onnx, or pt2: PyTorch's own.")],
    front_end: Annotated[
        str, typer.Option(help="inside: waveforms go in; outside: log-mels, not normalised.")
    ] = "inside",
    int8: Annotated[
        str, typer.Option(metavar="RECIPE", help="Also in int8, calibrated and scored on this recipe's data.")
    ] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one value of the recipe of --int8.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a tagger as one file that runs without antiphon, and check that it says the same."""
    if settings and not int8:
        raise ValueError(f"--set {settings[0]}: changes the recipe of --int8; give that too")
    with redirect_stdout(sys.stderr):
        from orchestrator.artifacts.export import check_target, export_checkpoint
        from orchestrator.recipes.loader import load_recipe

        target = check_target(out, to=to, front_end=front_end, int8=bool(int8))
        told = export_checkpoint(checkpoint, target, load_recipe(int8, settings) if int8 else None)
    if as_json:
        typer.echo(json.dumps(told))
    else:
        _print(told)


def _print(told: dict[str, Any]) -> None:
    shape, latency = told["facts"]["input"]["shape"], told["latency_ms"]
    axes, longest = " x ".join(map(str, shape)), told["facts"]["input"]["longest"]
    bound = "" if longest is None else f", up to {longest:,} {shape[-1]}"
    typer.echo(f"goes in     {told['facts']['input']['kind']}, {axes} (an axis with a name may have any length{bound})")
    typer.echo(f"difference  {told['largest_difference']:.2g} of a logit, at most, from PyTorch's")
    typer.echo(f"size        {told['bytes']:,} bytes")
    typer.echo(f"a clip      {latency['file']:.2f} ms, in PyTorch {latency['pytorch']:.2f} ms; one thread, medians")
    if int8 := told["int8"]:
        score, scores, products = int8["score"], int8["scores"], int8["products"]
        typer.echo(
            f"int8        {score} {scores['int8'][score]:.4f}, float {scores['float'][score]:.4f}: "
            f"a loss of {int8['loss']:.4f} on {int8['scored_on']} clips"
        )
        typer.echo(
            f"            {int8['bytes']:,} bytes, a clip {latency['int8']:.2f} ms; {products['int8']} of "
            f"{products['int8'] + products['fp32']} convolutions and matrix products in int8"
            + "; depthwise ones are sums here, in fp32"
            * int8["sums_in_fp32"]
        )
    for path in told["files"]:
        typer.echo(f"written     {path}")
