"""`antiphon recipes` and `antiphon data check`: what can be trained, and on which clips. Parses and prints."""

import typer

from orchestrator.cli.options import JsonOption, RecipeArg, SetOption, only_json

data_app = typer.Typer(no_args_is_help=True, help="Look at a data set without training.")


def recipes(as_json: JsonOption = False) -> None:
    """List the shipped recipes."""
    from orchestrator.recipes.loader import header, shipped_names

    with only_json(as_json) as emit:
        emit({"recipes": [{"name": name, "header": header(name)} for name in shipped_names()]})
        if not as_json:
            for name in shipped_names():
                typer.echo(f"{name}\n  " + "\n  ".join(header(name)))


@data_app.command("check")
def data_check(recipe: RecipeArg, settings: SetOption = None, as_json: JsonOption = False) -> None:
    """Decode a recipe's data set into the cache and say what is in it, without training."""
    from orchestrator.recipes.loader import load_recipe
    from orchestrator.storage.object_store import FsspecFiles
    from workloads.data.prepare import prepare

    loaded = load_recipe(recipe, settings)
    with only_json(as_json) as emit:
        found = prepare(loaded, FsspecFiles()).summary()
        emit(found)
        if not as_json:
            typer.echo(f"fingerprint {found['fingerprint']}")
            typer.echo("clips       " + ", ".join(f"{name} {count}" for name, count in found["clips"].items()))
            typer.echo(f"tags        {', '.join(found['tags'])}")
            typer.echo(f"quarantined {len(found['quarantined'])}")
            for broken in found["quarantined"]:
                typer.echo(f"  {broken['clip_id']}  {broken['path']}: {broken['reason']}")
