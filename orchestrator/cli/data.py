"""`antiphon recipes` and `antiphon data check`: the shipped recipes, and a recipe's data set. Parses and prints."""

import typer

from orchestrator.cli.options import JsonOption, RecipeArg, SetOption, only_json
from orchestrator.cli.printing import print_out

data_app = typer.Typer(no_args_is_help=True, help="Check a data set without training.")


def recipes(as_json: JsonOption = False) -> None:
    """List the shipped recipes with their commands and results."""
    from orchestrator.recipes.loader import header, shipped_names

    with only_json(as_json) as emit:
        emit({"recipes": [{"name": name, "header": header(name)} for name in shipped_names()]})
        if not as_json:
            for name in shipped_names():
                typer.echo(f"{name}\n  " + "\n  ".join(header(name)))


@data_app.command("check")
def data_check(recipe: RecipeArg, settings: SetOption = None, as_json: JsonOption = False) -> None:
    """Decode a recipe's data set into the cache and print its clips, tags and quarantined files, without training."""
    from orchestrator.recipes.loader import load_recipe
    from orchestrator.storage.object_store import FsspecFiles
    from workloads.data.prepare import prepare

    loaded = load_recipe(recipe, settings)
    with only_json(as_json) as emit:
        summary = prepare(loaded, FsspecFiles()).summary()
        emit(summary)
        if not as_json:
            print_out(f"fingerprint {summary['fingerprint']}")
            print_out("clips       " + ", ".join(f"{name} {count}" for name, count in summary["clips"].items()))
            print_out(f"tags        {', '.join(summary['tags'])}")
            print_out(f"quarantined {len(summary['quarantined'])}")
            for broken in summary["quarantined"]:
                print_out(f"  {broken['clip_id']}  {broken['path']}: {broken['reason']}")
            print_out(f"mended      {len(summary['mended'])}")
            for mended in summary["mended"]:
                print_out(f"  {mended['clip_id']}  {mended['path']}: {'; '.join(mended['notes'])}")
