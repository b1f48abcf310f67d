"""`antiphon recipes`, `antiphon data check` and `antiphon data stats`: the shipped recipes, and a recipe's data set.

Parses and prints.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from orchestrator.cli.options import JsonOption, RecipeArg, SetOption, only_json
from orchestrator.cli.printing import cell, print_out, print_warning
from workloads.runtime.text import name_some

if TYPE_CHECKING:
    from workloads.data.levels import Levels
    from workloads.data.prepare import PreparedData
    from workloads.evaluate.input_statistics import InputStatistics

MOST_TAGS = 40  # of more, only the rarest and the most frequent ones are printed
SHOWN_CLIPS = 3  # silent or clipped ones, by name
MOST_FOLDS = 5  # columns beside those of the parts, in 80 characters

data_app = typer.Typer(no_args_is_help=True, help="Check and describe a data set without training.")


def recipes(as_json: JsonOption = False) -> None:
    """List the shipped recipes with their commands and results."""
    from orchestrator.recipes.loader import header, shipped_names, shipped_study_names, shipped_teach_names

    names = shipped_names() + shipped_teach_names() + shipped_study_names()
    with only_json(as_json) as emit:
        emit({"recipes": [{"name": name, "header": header(name)} for name in names]})
        if not as_json:
            for name in names:
                typer.echo(f"{name}\n  " + "\n  ".join(header(name)))


@data_app.command("check")
def data_check(recipe: RecipeArg, settings: SetOption = None, as_json: JsonOption = False) -> None:
    """Decode a recipe's data set into the cache; print its numbers, warnings and unusable files. Trains nothing."""
    with only_json(as_json) as emit:
        prepared = _prepare(recipe, settings)
        summary, statistics = prepared.summary(), prepared.statistics()
        emit(summary | {"statistics": statistics})
        if not as_json:
            _print_check(summary, statistics)
    for warning in summary["warnings"]:
        print_warning(warning)


@data_app.command("stats")
def data_stats(recipe: RecipeArg, settings: SetOption = None, as_json: JsonOption = False) -> None:
    """Hear a recipe's data set: clips per tag and fold, silence, clipping, and the mean and std of each front end."""
    from workloads.data.levels import levels
    from workloads.evaluate.input_statistics import input_statistics

    with only_json(as_json) as emit:
        prepared = _prepare(recipe, settings, for_models=True)
        summary, statistics = prepared.summary(), prepared.statistics()
        heard, inputs = levels(prepared.dataset.clips, prepared.cache), input_statistics(prepared)
        front_ends = {
            name: asdict(found) | {"std": found.std, "set": found.settings(name)} for name, found in inputs.items()
        }
        emit(summary | {"statistics": statistics, "levels": asdict(heard), "front_ends": front_ends})
        if not as_json:
            _print_tables(summary, statistics)
            for line in (*_level_lines(heard), *_front_end_lines(inputs)):
                print_out(line)
    for warning in summary["warnings"]:
        print_warning(warning)


def _prepare(recipe: str, settings: list[str] | None, *, for_models: bool = False) -> "PreparedData":
    """A recipe's data set, decoded into the cache; `for_models`: ValueError where its models take no such clips."""
    from orchestrator.recipes.loader import load_recipe
    from orchestrator.storage.fsspec_files import FsspecFiles
    from workloads.data.prepare import prepare
    from workloads.distill.store_checks import check_stores
    from workloads.models.buildable import require_buildable

    loaded, files = load_recipe(recipe, settings), FsspecFiles()
    if for_models:
        require_buildable(loaded)
    return prepare(loaded, files, model_tags=check_stores(loaded, files), tags_of="store")


def _level_lines(heard: "Levels") -> list[str]:
    """How many clips are silent and clipped, with some of their names."""
    from workloads.data.levels import CLIPPED_RUN, SILENT_DB

    found = {
        f"silent (peak below {SILENT_DB:g} dB)": heard.silent,
        f"clipped ({CLIPPED_RUN} samples or more in a row at full scale)": heard.clipped,
    }
    return [
        f"{what}: {len(ids)} of {heard.clips} clips ({len(ids) / heard.clips:.1%})"
        + (f": {name_some(ids, SHOWN_CLIPS)}" if ids else "")
        for what, ids in found.items()
    ]


def _front_end_lines(inputs: "dict[str, InputStatistics]") -> list[str]:
    """For each model the statistics of its front end, and the words that set them."""
    lines = []
    for name, found in inputs.items():
        twice = "" if found.deviations == 1 else f", of which std is {found.deviations:g}"
        lines.append(f"{name}: {found.kind} has mean {found.mean:.5g}, deviation {found.deviation:.5g}{twice}")
        lines.append("  " + " ".join(f"--set {setting}" for setting in found.settings(name)))
    return lines


def _print_tables(summary: dict[str, Any], statistics: dict[str, Any]) -> None:
    console = Console()
    console.print(_overview(summary, statistics, summary["clip_seconds"]))
    console.print(_tag_table(statistics["tags"]))


def _print_check(summary: dict[str, Any], statistics: dict[str, Any]) -> None:
    _print_tables(summary, statistics)
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
