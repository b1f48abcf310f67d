"""`antiphon evaluate` and `antiphon tag`: scores and predictions of a published tagger. Parses and prints."""

from dataclasses import asdict
from typing import Annotated

import typer

from orchestrator.cli.options import FAILED, CheckpointArg, JsonOption, SetOption, only_json
from orchestrator.cli.printing import print_note, print_out
from orchestrator.cli.score_tables import print_scores


def evaluate(
    checkpoint: CheckpointArg,
    data: Annotated[str, typer.Option(help="The recipe whose data set and test fold to score on.")],
    settings: SetOption = None,
    part: Annotated[str, typer.Option(help="Part of the data set: train, val or test.")] = "test",
    out: Annotated[
        str, typer.Option(metavar="FILE", help="Write each clip's probabilities to this new .csv or .parquet file.")
    ] = "",
    psds: Annotated[
        bool, typer.Option("--psds", help="Also PSDS1, of taggers that say when tags sound; needs antiphon[psds].")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Score a tagger on a part of a recipe's data set: in all, by tag, and the clips heard most wrongly."""
    from orchestrator.artifacts.evaluate import evaluate_checkpoint
    from orchestrator.recipes.loader import load_recipe

    loaded = load_recipe(data, settings)
    with only_json(as_json) as emit:
        result = evaluate_checkpoint(checkpoint, loaded, part, out=out, psds=psds)
        emit(result)
        if not as_json:
            print_scores(result)
        if result["quarantined"]:
            print_note(
                f"{result['quarantined']} clips of the data set cannot be used and are not scored; "
                "`antiphon data check` names them"
            )


def tag(
    checkpoint: CheckpointArg,
    files: Annotated[list[str], typer.Argument(help="Audio files: wav, flac, ogg, opus, mp3; local or URIs.")],
    top: Annotated[int, typer.Option(help="Number of tags per file.")] = 5,
    events: Annotated[
        bool, typer.Option("--events", help="Print when tags sound, too: onset and offset in seconds.")
    ] = False,
    threshold: Annotated[float, typer.Option(help="With --events: the least probability of an event.")] = 0.5,
    as_json: JsonOption = False,
) -> None:
    """Print the most probable tags of audio files."""
    from orchestrator.artifacts.evaluate import tag_files

    with only_json(as_json) as emit:
        found = tag_files(checkpoint, files, top=top, events_above=threshold if events else None)
        in_time = {name: [asdict(event) for event in own] for name, own in found.events.items()}
        emit(
            {
                "files": found.tags,
                **({"events": in_time} if events else {}),
                "notes": found.notes,
                "broken": found.broken,
            }
        )
        for name, tags in {} if as_json else found.tags.items():
            print_out(name)
            for label, probability in tags:
                print_out(f"  {probability:6.3f}  {label}")
            for event in found.events.get(name, ()):
                print_out(f"  {event.onset:7.2f} to {event.offset:7.2f} s  {event.probability:6.3f}  {event.tag}")
        for name, notes in found.notes.items():
            print_note(f"{name}: {'; '.join(notes)}")
        for name, reason in found.broken.items():
            print_note(f"{name}: {reason}")
        if found.broken:
            raise typer.Exit(FAILED)
