"""`antiphon init`: a manifest and a recipe for a folder of recordings. Parses, asks and prints; `scaffold/` works."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import JsonOption, only_json
from orchestrator.cli.printing import print_note, print_out

if TYPE_CHECKING:
    from orchestrator.scaffold.first_recipe import FirstRecipe
    from orchestrator.scaffold.questions import Ask, Question


def init(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="The folder with the recordings.")],
    out: Annotated[Path, typer.Option(help="Where the recipe and the manifest are written.")] = Path("."),
    name: Annotated[str, typer.Option(help="What they are called; default: as the folder.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing; take the first answer of each question.")] = False,
    tags_from: Annotated[
        str, typer.Option(metavar="KEY", help="Where the tags are: column:NAME, folder:LEVEL or name:PART.")
    ] = "",
    source_from: Annotated[
        str, typer.Option(metavar="KEY", help="The same for the recording or speaker of a clip, or none.")
    ] = "",
    separator: Annotated[
        str, typer.Option(metavar="semicolon|bar|comma|none", help="What parts several tags in one cell.")
    ] = "",
    minutes: Annotated[float, typer.Option(help="How long a run may take here; it gets fewer steps beyond that.")] = 60,
    as_json: JsonOption = False,
) -> None:
    """Look at a folder of recordings, and write a manifest and a recipe for them; says what a run of it takes."""
    from orchestrator.scaffold.first_recipe import write_first_recipe

    if not minutes > 0:  # nor is nan
        raise ValueError(f"--minutes {minutes:g}: must be above 0")
    with only_json(as_json) as emit:
        written = write_first_recipe(
            folder,
            out,
            _ask(yes=yes, may_ask=not as_json and sys.stdin.isatty()),
            name=name,
            tags_from=tags_from,
            source_from=source_from,
            separator=separator,
            most_minutes=minutes,
            say=print_note,
        )
        emit(_as_json(written))
        if not as_json:
            _print(written)


def _ask(*, yes: bool, may_ask: bool) -> "Ask":
    from orchestrator.scaffold.questions import refuse_to_guess

    if yes:
        return _take_first
    return _ask_on_terminal if may_ask else refuse_to_guess


def _take_first(question: "Question") -> int:
    value, text = question.answers[0]
    print_note(f"{question.text} Taken: {question.option} {value} ({text})")
    return 0


def _ask_on_terminal(question: "Question") -> int:
    print_note(question.text)
    for number, (_, text) in enumerate(question.answers, start=1):
        print_note(f"  {number}  {text}")
    last = len(question.answers)
    while not 1 <= (answer := typer.prompt(f"1 to {last}", default=1, type=int, err=True)) <= last:
        print_note(f"{answer}: must be 1 to {last}")
    return int(answer) - 1


def _print(written: "FirstRecipe") -> None:
    from orchestrator.cli.plan import size_of

    cost, file = written.cost, shlex.quote(str(written.recipe))
    print_out(f"{written.clips:,} clips with {written.tags} tags ({written.labels})")
    for line in written.about:
        print_out(f"  {line}")
    print_out(f"a run here takes {_duration(cost.minutes)}: {cost.steps:,} steps, of which some were timed")
    if cost.busy:
        print_out("  this machine is busy: timed on one thread; until it is not, train with --set train.threads=1")
    print_out(f"memory of the process that trains {size_of(cost.memory_bytes)}, on disk {size_of(cost.cache_bytes)}")
    if written.manifest:
        print_out(f"manifest  {written.manifest}")
    print_out(f"recipe    {written.recipe}")
    print_out(f"check it  antiphon data check {file}")
    print_out(f"train     antiphon run {file}")
    print_out("then tag  antiphon tag MODEL clip.wav, MODEL being one of those that the run names at its end")


def _duration(minutes: float) -> str:
    return f"about {minutes:.0f} minutes" if minutes >= 2 else f"about {60 * minutes:.0f} seconds"


def _as_json(written: "FirstRecipe") -> dict[str, Any]:
    cost = written.cost
    return {
        "recipe": str(written.recipe),
        "manifest": str(written.manifest) if written.manifest else None,
        "clips": written.clips,
        "tags": written.tags,
        "labels": written.labels,
        "about": list(written.about),
        "steps": cost.steps,
        "minutes": round(cost.minutes, 2),
        "memory_bytes": cost.memory_bytes,
        "cache_bytes": cost.cache_bytes,
    }
