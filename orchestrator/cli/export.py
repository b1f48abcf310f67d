"""`antiphon export`: a tagger as one file. Parses and prints; `artifacts/export.py` does the work."""

import sys
from contextlib import redirect_stdout
from typing import Annotated, Any

import typer

from orchestrator.cli.options import CheckpointArg, JsonOption
from orchestrator.cli.printing import print_out
from workloads.runtime.json_files import json_text


def export(
    checkpoint: CheckpointArg,
    out: Annotated[str, typer.Argument(metavar="OUT", help="The new file; its model card is written to OUT.md.")],
    to: Annotated[
        str, typer.Option(help="Format: onnx, pt2 (torch.export), or hub: a folder that transformers loads.")
    ],
    front_end: Annotated[
        str, typer.Option(help="inside: waveforms of any length go in; outside: log-mels, not normalised.")
    ] = "inside",
    int8: Annotated[
        str, typer.Option(metavar="RECIPE", help="Also an int8 file, calibrated and scored on this recipe's data.")
    ] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one value of the recipe of --int8.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a tagger as one file that runs without antiphon, and compare its logits with PyTorch's."""
    if settings and not int8:
        raise ValueError(f"--set {settings[0]}: changes the recipe of --int8; give that too")
    if to == "hub" and (int8 or front_end != "inside"):
        raise ValueError(f"--{'int8' if int8 else 'front-end'}: is for files; leave it out with --to hub")
    with redirect_stdout(sys.stderr):
        from orchestrator.artifacts.export import check_target, export_checkpoint
        from orchestrator.recipes.loader import load_recipe

        if to == "hub":
            from orchestrator.artifacts.export_hub import check_hub_target, export_hub

            result = export_hub(checkpoint, check_hub_target(out))
        else:
            request = check_target(out, to=to, front_end=front_end, int8=bool(int8))
            result = export_checkpoint(checkpoint, request, load_recipe(int8, settings) if int8 else None)
    if as_json:
        typer.echo(json_text(result))
    else:
        _print(result)


def _print(result: dict[str, Any]) -> None:
    if result["to"] == "hub":
        print_out(
            f"difference  {result['largest_difference']:.2g} at most, between transformers' logits and antiphon's"
        )
        print_out(f"size        {result['bytes']:,} bytes")
        if result["own_code"]:
            print_out(f"code        comes with the folder: {result['own_code']}; load it with trust_remote_code=True")
    else:
        _print_file(result)
    for path in result["files"]:
        print_out(f"written     {path}")


def _print_file(result: dict[str, Any]) -> None:
    shape, latency = result["facts"]["input"]["shape"], result["latency_ms"]
    axes, longest = " x ".join(map(str, shape)), result["facts"]["input"]["longest"]
    bound = "" if longest is None else f", up to {longest:,} {shape[-1]}"
    print_out(
        f"input       {result['facts']['input']['kind']}, {axes} (an axis with a name may have any length{bound})"
    )
    if result["facts"]["input"]["kind"] == "waveform":
        seconds = f"{result['facts']['clip_seconds']:g} s"
        heard = "all their windows" if result["facts"]["long_clips"] == "windows" else "their first window"
        print_out(
            f"length      shorter than {seconds}: padded; longer: {heard} of {seconds}, as antiphon tag hears them"
        )
    print_out(f"difference  {result['largest_difference']:.2g} at most, between the file's logits and PyTorch's")
    print_out(f"size        {result['bytes']:,} bytes")
    print_out(
        f"latency     {latency['file']:.2f} ms per clip, PyTorch {latency['pytorch']:.2f} ms; one thread, medians"
    )
    if int8 := result["int8"]:
        score, scores, products = int8["score"], int8["scores"], int8["products"]
        print_out(
            f"int8        {score} {scores['int8'][score]:.4f}, float {scores['float'][score]:.4f}: "
            f"a loss of {int8['loss']:.4f} on {int8['scored_on']} clips"
        )
        print_out(
            f"            {int8['bytes']:,} bytes, {latency['int8']:.2f} ms per clip; {products['int8']} of "
            f"{products['int8'] + products['fp32']} convolutions and matrix products in int8"
            + "; depthwise convolutions are computed as sums, in fp32"
            * int8["sums_in_fp32"]
        )
