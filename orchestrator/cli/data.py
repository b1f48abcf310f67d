"""`antiphon recipes` and `antiphon data check`: the shipped recipes, and a recipe's data set. Parses and prints."""

from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from orchestrator.cli.options import JsonOption, RecipeArg, SetOption, only_json
from orchestrator.cli.printing import cell, print_out, print_warning

MOST_TAGS = 40  # of more, only the rarest and the most frequent ones are printed
MOST_FOLDS = 5  # columns beside those of the parts, in 80 characters

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
    """Decode a recipe's data set into the cache; print its numbers, warnings and unusable files. Trains nothing."""
    from orchestrator.recipes.loader import load_recipe
    from orchestrator.storage.object_store import FsspecFiles
    from workloads.data.prepare import prepare

    loaded = load_recipe(recipe, settings)
    with only_json(as_json) as emit:
        prepared = prepare(loaded, FsspecFiles())
        summary, statistics = prepared.summary(), prepared.statistics()
        emit(summary | {"statistics": statistics})
        if not as_json:
            _print_check(summary, statistics, clip_seconds=loaded.data.clip_seconds)
    for warning in summary["warnings"]:
        print_warning(warning)


def _print_check(summary: dict[str, Any], statistics: dict[str, Any], *, clip_seconds: float) -> None:
    console = Console()
    console.print(_overview(summary, statistics, clip_seconds))
    console.print(_tag_table(statistics["tags"]))
    print_out(f"fingerprint {summary['fingerprint']}")
    print_out(f"quarantined {len(summary['quarantined'])}")
    for broken in summary["quarantined"]:
        print_out(f"  {broken['clip_id']}  {broken['path']}: {broken['reason']}")
    print_out(f"mended      {len(summary['mended'])}")
    for mended in summary["mended"]:
        print_out(f"  {mended['clip_id']}  {mended['path']}: {'; '.join(mended['notes'])}")


def _overview(summary: dict[str, Any], statistics: dict[str, Any], clip_seconds: float) -> Table:
    """Clips by part, durations, rates, and how the clips fit the window."""
    lengths, clips = summary["durations"], summary["clips"]
    rates = ", ".join(f"{rate} Hz ({count})" for rate, count in statistics["rates"].items())
    longer = f"{lengths['longer']} clips; a window in training leaves out {lengths['unheard']:.0%} of them"
    tags = statistics["tags"]
    empty = ", ".join(f"{sum(not tag['parts'][part] for tag in tags.values())} in {part}" for part in clips)
    rows = {
        "clips": f"{sum(clips.values())}, {statistics['untagged']} of them without a tag",
        **{part: f"{count} clips of {_folds(statistics['part_folds'][part])}" for part, count in clips.items()},
        **_unlabelled(summary),
        "tags": f"{len(tags)}; without a clip: {empty}",
        "seconds": f"{lengths['min']:.3g} to {lengths['max']:.3g}, median {lengths['median']:.3g}; "
        f"{_long(lengths['total'])} in all",
        "sample rates": rates,
        f"in windows of {clip_seconds:g} s": f"{lengths['padding']:.0%} is padding",
        f"longer than {clip_seconds:g} s": longer if lengths["longer"] else "none",
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, cell(value))
    return table


def _unlabelled(summary: dict[str, Any]) -> dict[str, str]:
    """The row about clips without labels; none where every clip has some."""
    train, unlabelled, left_out = summary["clips"]["train"], summary["unlabelled"], summary["left_out"]
    if not unlabelled and not left_out:
        return {}
    share = f" ({(train - unlabelled) / train:.1%} labelled)" if train else ""
    return {"unlabelled": f"{unlabelled} of {train} train clips{share}, {left_out} left out"}


def _folds(folds: list[int]) -> str:
    return f"fold{'' if len(folds) == 1 else 's'} {', '.join(map(str, folds))}" if folds else "no fold"


def _long(seconds: float) -> str:
    """A length of sound in seconds, minutes or hours."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def _tag_table(tags: dict[str, Any]) -> Table:
    """Clips of each tag by part and fold, the rarest first; of very many tags the ends of the list."""
    names, half = list(tags), MOST_TAGS // 2
    shown = names if len(names) <= MOST_TAGS else [*names[:half], "", *names[-half:]]
    parts, folds = (list(next(iter(tags.values()))[key]) for key in ("parts", "folds"))
    folds = folds if len(folds) <= MOST_FOLDS else []
    table = Table(box=box.SIMPLE_HEAD, title="clips of each tag")
    table.add_column("tag", overflow="fold")
    for column in ("all", *parts, *(f"fold\n{fold}" for fold in folds)):
        table.add_column(column, justify="right")
    for name in shown:
        if not name:
            table.add_row(f"... {len(names) - 2 * half} more", *[""] * (1 + len(parts) + len(folds)))
            continue
        counts = (tags[name]["clips"], *tags[name]["parts"].values(), *(tags[name]["folds"][fold] for fold in folds))
        table.add_row(cell(name), *map(str, counts))
    return table
