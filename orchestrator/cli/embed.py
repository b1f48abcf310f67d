"""`antiphon embed`: a tagger's features, of files or a data set, and a linear model on them. Parses and prints."""

from typing import Annotated, Any

import typer

from orchestrator.cli.options import FAILED, CheckpointArg, JsonOption, SetOption, only_json
from orchestrator.cli.printing import print_note, print_out, print_warning


def embed(
    checkpoint: CheckpointArg,
    files: Annotated[list[str] | None, typer.Argument(help="Audio files, local or URIs.")] = None,
    data: Annotated[str, typer.Option(help="Instead of files: the recipe whose data set is embedded.")] = "",
    settings: SetOption = None,
    out: Annotated[
        str,
        typer.Option(metavar="FILE", help="Write a vector for each file or clip: a new .parquet or .npz file."),
    ] = "",
    probe: Annotated[
        bool, typer.Option("--probe", help="With --data: score a linear model on them, cross-validated over its folds.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write what the head of a tagger reads, one vector a clip; with --probe how well a linear model does on it."""
    from orchestrator.artifacts.embed import embed_data, embed_files
    from orchestrator.recipes.loader import load_recipe

    if bool(files) == bool(data):
        raise ValueError("embed: give either audio files or --data RECIPE")
    if not data and probe:
        raise ValueError("--probe: is for a data set; give --data RECIPE")
    if not data and settings:
        raise ValueError(f"--set {settings[0]}: changes the recipe of a data set; give --data RECIPE")
    if not (out or probe):
        raise ValueError("--out: name a .parquet or .npz file for the vectors; without one only --probe has a result")
    loaded = load_recipe(data, settings) if data else None
    with only_json(as_json) as emit:
        result = (
            embed_data(checkpoint, loaded, out=out, with_probe=probe)
            if loaded
            else embed_files(checkpoint, files or [], out)
        )
        emit(result)
        if not as_json:
            _print(result)
        for name, reason in result.get("broken", {}).items():
            print_note(f"{name}: {reason}")
        if unseen := result.get("probe", {}).get("unseen_fold"):
            print_warning(
                f"the tagger was trained on this data set: only fold {unseen} has clips that its features have not seen"
            )
        if result.get("broken"):
            raise typer.Exit(FAILED)


def _print(result: dict[str, Any]) -> None:
    if result["out"]:
        print_out(f"{result['features']} features of each: {result['out']}")
    if "probe" not in result:
        return
    from workloads.evaluate import metrics

    found = result["probe"]
    primary = metrics.primary(found["labels"])
    for fold in found["folds"]:
        score = fold["scores"][primary]
        print_out(f"  fold {fold['fold']}  {primary} {score:.4f}  ({fold['clips']} clips, C {fold['strength']:g})")
    values = [fold["scores"][primary] for fold in found["folds"]]
    print_out(f"{primary} {found['scores'][primary]:.4f} of all clips, by fold {min(values):.4f} to {max(values):.4f}")
